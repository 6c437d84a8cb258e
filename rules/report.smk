# Tables, figures and examples for `snakemake --report`.
#
# One label per result: with two labels of two values each, the report page of Snakemake 9.27 makes
# switches of them and fails on combinations that do not exist.


rule report_funnel:
    input:
        train="<results>/seed/train.parquet",
        heldout="<results>/seed/heldout.parquet",
        seed_drops="<results>/seed/dropped.parquet",
        segments="<results>/corpus/segments.parquet",
        segment_drops="<results>/corpus/dropped.parquet",
        corpus_counts="<results>/corpus/counts.json",
        sample="<results>/corpus/sample.parquet",
        sample_drops="<results>/corpus/not_sampled.parquet",
        candidates="<results>/augment/candidates.parquet",
        gate_drops="<results>/augment/dropped.parquet",
        rated="<results>/curation/rated.parquet",
        curated="<results>/curation/curated.parquet",
        curation_drops="<results>/curation/dropped.parquet",
        backward_drops="<results>/backward/dropped.parquet",
        mixed=chosen("<results>/forward/{iteration}/train_examples.parquet"),
        forward_drops=chosen("<results>/forward/{iteration}/dropped.parquet"),
        code=library("funnel", "logs"),
    output:
        funnel=report(
            "<results>/report/funnel.tsv",
            caption="../config/captions/funnel.rst",
            category="2. What was thrown away, and why?",
            labels={"shows": "rows through every stage, counted"},
        ),
        reasons=report(
            "<results>/report/reasons.tsv",
            caption="../config/captions/reasons.rst",
            category="2. What was thrown away, and why?",
            labels={"shows": "reasons of dropped rows"},
        ),
        signals=report(
            "<results>/report/signals.tsv",
            caption="../config/captions/signals.rst",
            category="4. What was kept?",
            labels={"shows": "distribution of the signals"},
        ),
    log:
        "<logs>/report_funnel.log",
    benchmark:
        "<benchmarks>/report_funnel.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        candidates=config["generation"]["candidates"],
        signal=config["curation"]["keep"]["signal"],
        best=best_iteration,
    message:
        "Counting the rows through every stage"
    script:
        "../scripts/report_funnel.py"


rule report_figures:
    input:
        funnel="<results>/report/funnel.tsv",
        rated="<results>/curation/rated.parquet",
        curated="<results>/curation/curated.parquet",
        backward="<results>/backward/adapter/history.tsv",
        forward=iterations("<results>/forward/{iteration}/adapter/history.tsv", first=0),
        heldout="<results>/evaluation/heldout.tsv",
        code=library("plots", "logs"),
    output:
        funnel=report(
            "<results>/report/funnel.svg",
            caption="../config/captions/funnel_figure.rst",
            category="2. What was thrown away, and why?",
            labels={"shows": "rows through every stage, drawn"},
        ),
        scores=report(
            "<results>/report/scores.svg",
            caption="../config/captions/scores.rst",
            category="4. What was kept?",
            labels={"shows": "ratings and gains"},
        ),
        lengths=report(
            "<results>/report/lengths.svg",
            caption="../config/captions/lengths.rst",
            category="4. What was kept?",
            labels={"shows": "lengths of instructions and responses"},
        ),
        by_rating=report(
            "<results>/report/length_by_rating.svg",
            caption="../config/captions/length_by_rating.rst",
            category="4. What was kept?",
            labels={"shows": "length of instructions by rating"},
        ),
        heldout=report(
            "<results>/report/heldout.svg",
            caption="../config/captions/heldout_figure.rst",
            category="6. Is the model better?",
            labels={"shows": "differences on held-out pairs, drawn"},
        ),
        training=report(
            "<results>/report/training.svg",
            caption="../config/captions/training.rst",
            category="5. Did training work?",
            labels={"shows": "training curves"},
        ),
    log:
        "<logs>/report_figures.log",
    benchmark:
        "<benchmarks>/report_figures.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        keep=config["curation"]["keep"],
    message:
        "Drawing the figures"
    script:
        "../scripts/report_figures.py"


rule report_examples:
    input:
        rated="<results>/curation/rated.parquet",
        curated="<results>/curation/curated.parquet",
        gate_drops="<results>/augment/dropped.parquet",
        answers="<results>/evaluation/answers.jsonl",
        code=library("pages", "logs"),
    output:
        page=report(
            "<results>/report/examples.html",
            caption="../config/captions/examples.rst",
            category="4. What was kept?",
            labels={"shows": "kept, dropped and answered"},
        ),
    log:
        "<logs>/report_examples.log",
    benchmark:
        "<benchmarks>/report_examples.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        keep=config["curation"]["keep"],
        examples=config["report"]["examples"],
    message:
        "Collecting examples"
    script:
        "../scripts/report_examples.py"


rule report_browse:
    input:
        rated="<results>/curation/rated.parquet",
        dropped="<results>/curation/dropped.parquet",
        gate_drops="<results>/augment/dropped.parquet",
        written=gather.shard("<results>/augment/shards/{scatteritem}.parquet"),
        round_trip="<results>/evaluation/round_trip.jsonl",
        code=library("browse", "logs"),
    output:
        page=report(
            "<results>/report/browse.html",
            caption="../config/captions/browse.rst",
            category="4. What was kept?",
            labels={"shows": "all candidates, to search and sort"},
        ),
    log:
        "<logs>/report_browse.log",
    benchmark:
        "<benchmarks>/report_browse.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    message:
        "Making the page of all candidates"
    script:
        "../scripts/report_browse.py"


rule report_labelling:
    input:
        rated="<results>/curation/rated.parquet",
        dropped="<results>/curation/dropped.parquet",
        code=library("labelling", "logs"),
    output:
        page=report(
            "<results>/report/labelling.html",
            caption="../config/captions/labelling.rst",
            category="4. What was kept?",
            labels={"shows": "a sample to label yourself"},
        ),
        table="<results>/report/labelling.csv",
    log:
        "<logs>/report_labelling.log",
    benchmark:
        "<benchmarks>/report_labelling.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        labelling=config["report"]["labelling"],
        random_seed=config["random_seed"],
    message:
        "Drawing a sample for people to label"
    script:
        "../scripts/report_labelling.py"


rule report_iterations:
    input:
        rated=iterations("<results>/curation/{iteration}/rated.parquet"),
        curated=iterations("<results>/curation/{iteration}/curated.parquet"),
        dropped=iterations("<results>/curation/{iteration}/dropped.parquet"),
        audits=iterations("<results>/audit/{iteration}/audit.json"),
        losses=iterations("<results>/evaluation/forward/{iteration}.tsv", first=0),
        code=library("iterating", "plots", "logs"),
    output:
        table=report(
            "<results>/report/iterations.tsv",
            caption="../config/captions/iterations.rst",
            category="4. What was kept?",
            labels={"shows": "the iterations side by side"},
        ),
        figure=report(
            "<results>/report/iterations.svg",
            caption="../config/captions/iterations_figure.rst",
            category="4. What was kept?",
            labels={"shows": "ratings beside the paper's and the notebook's"},
        ),
    log:
        "<logs>/report_iterations.log",
    benchmark:
        "<benchmarks>/report_iterations.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        signal=config["curation"]["keep"]["signal"],
        random_seed=config["random_seed"],
        best=best_iteration,
        iterations=LAST,
    message:
        "Comparing the iterations"
    script:
        "../scripts/report_iterations.py"


# Last, so that all jobs but those of the report have been measured.
rule report_costs:
    input:
        heldout="<results>/evaluation/heldout.tsv",
        round_trip="<results>/evaluation/round_trip.tsv",
        iterations="<results>/report/iterations.tsv",
        code=library("costs", "plots", "logs"),
    output:
        table=report(
            "<results>/report/costs.tsv",
            caption="../config/captions/costs.rst",
            category="7. What did it cost?",
            labels={"shows": "time, memory and tokens of every rule"},
        ),
        figure=report(
            "<results>/report/costs.svg",
            caption="../config/captions/costs_figure.rst",
            category="7. What did it cost?",
            labels={"shows": "time and memory, drawn"},
        ),
    log:
        "<logs>/report_costs.log",
    benchmark:
        "<benchmarks>/report_costs.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    message:
        "Adding up time and memory"
    script:
        "../scripts/report_costs.py"


rule report_setup:
    input:
        manifest="<model>/manifest.json",
        judge="<judge>/manifest.json",
        train="<results>/seed/train.parquet",
        heldout="<results>/seed/heldout.parquet",
        segments="<results>/corpus/segments.parquet",
        sample="<results>/corpus/sample.parquet",
        rubric=config["judge"]["rubric"],
        # With conda the models' packages are in other environments than this rule's.
        environments=[
            short_path((Path(workflow.basedir) / "rules" / path).resolve())
            for path in ("../envs/training.yaml", ENGINE_ENV)
        ],
        code=library("pages", "logs"),
    output:
        page=report(
            "<results>/report/setup.html",
            caption="../config/captions/setup.rst",
            category="1. What went in?",
            labels={"shows": "models, data, versions, configuration"},
        ),
    log:
        "<logs>/report_setup.log",
    benchmark:
        "<benchmarks>/report_setup.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        config=config,
    message:
        "Writing down what went in"
    script:
        "../scripts/report_setup.py"


rule report_words:
    input:
        funnel="<results>/report/funnel.tsv",
        audit=chosen("<results>/audit/{iteration}/audit.json"),
        verdict=chosen("<results>/audit/{iteration}/verdict.json"),
        signals="<results>/report/signals.tsv",
        heldout="<results>/evaluation/heldout.tsv",
        round_trip="<results>/evaluation/round_trip.tsv",
        costs="<results>/report/costs.tsv",
        manifest="<model>/manifest.json",
        code=library("words", "logs"),
    output:
        page=report(
            "<results>/report/words.html",
            caption="../config/captions/in_short.rst",
            category="0. In short",
            labels={"shows": "the run in words"},
        ),
        # What the captions of each question begin with.
        paragraphs=expand(
            "<results>/report/words/{question}.html", question=range(1, 8)
        ),
    log:
        "<logs>/report_words.log",
    benchmark:
        "<benchmarks>/report_words.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        keep=config["curation"]["keep"],
        best=best_iteration,
    message:
        "Putting the run into words"
    script:
        "../scripts/report_words.py"
