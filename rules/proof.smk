# Does curation make a better model? Arms trained alike on the same candidates, a cell for each arm, size and seed.


rule draw_heldout:
    input:
        pairs="<results>/seed/heldout.parquet",
        train="<results>/seed/train.parquet",
        segments="<results>/corpus/segments.parquet",
        sample="<results>/corpus/sample.parquet",
        code=library("arms"),
    output:
        heldout=ensure("<results>/proof/heldout.parquet", non_empty=True),
        dropped="<results>/proof/dropped.parquet",
    log:
        "<logs>/draw_heldout.log",
    benchmark:
        "<benchmarks>/draw_heldout.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="1h",
    params:
        corpus_pairs=config["proof"]["corpus_pairs"],
        words=config["decontamination"]["words"],
        random_seed=config["random_seed"],
    message:
        "Choosing pairs that no arm is trained on"
    script:
        "../scripts/draw_heldout.py"


rule mix_arm:
    input:
        train="<results>/seed/train.parquet",
        rated=cell_candidates,
        code=library("arms"),
    output:
        examples=f"<results>/proof/{CELL}/examples.parquet",
    log:
        f"<logs>/mix_arm/{CELL}.log",
    benchmark:
        f"<benchmarks>/mix_arm/{CELL}.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        signal=config["curation"]["keep"]["signal"],
        tags=config["forward"]["tags"],
        seed_share=cell_seed_share,
    message:
        "Mixing the examples of {wildcards.arm}, n {wildcards.n}, seed {wildcards.seed}"
    script:
        "../scripts/mix_arm.py"


use rule train_backward as train_arm with:
    input:
        examples=f"<results>/proof/{CELL}/examples.parquet",
        manifest="<model>/manifest.json",
        code=library("training", "templates"),
    output:
        multiext(
            f"<results>/proof/{CELL}/adapter/",
            "training.json",
            "history.tsv",
            *WEIGHTS,
        ),
        dropped=f"<results>/proof/{CELL}/dropped.parquet",
    log:
        f"<logs>/train_arm/{CELL}.log",
    benchmark:
        f"<benchmarks>/train_arm/{CELL}.jsonl"
    params:
        training=cell_training,
        template=config["model"]["template"],
        random_seed=cell_seed,
    message:
        "Training {wildcards.arm}, n {wildcards.n}, seed {wildcards.seed}"


rule measure_arm:
    input:
        heldout="<results>/proof/heldout.parquet",
        examples=f"<results>/proof/{CELL}/examples.parquet",
        adapter=cell_adapter,
        manifest="<model>/manifest.json",
        code=library("proof", "engines"),
    output:
        values=ensure(f"<results>/proof/{CELL}/values.tsv", non_empty=True),
        answers=f"<results>/proof/{CELL}/answers.jsonl",
    log:
        f"<logs>/measure_arm/{CELL}.log",
    benchmark:
        f"<benchmarks>/measure_arm/{CELL}.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="6h",
    params:
        precision=config["precision"],
        template=config["model"]["template"],
        tags=config["forward"]["tags"],
        batch_tokens=config["generation"]["batch_tokens"],
        cell=cell_of,
        answers=config["proof"]["answers"],
        answer_tokens=config["proof"]["answer_tokens"],
    message:
        "Measuring {wildcards.arm}, n {wildcards.n}, seed {wildcards.seed}"
    script:
        "../scripts/measure_arm.py"


rule audit_pairwise:
    input:
        heldout="<results>/proof/heldout.parquet",
        preferences=config["proof"]["preferences"] or [],
        judge="<judge>/manifest.json" if not config["proof"]["judge"] else [],
        code=library("pairwise"),
    output:
        figures="<results>/proof/pairwise.json",
    log:
        "<logs>/audit_pairwise.log",
    benchmark:
        "<benchmarks>/audit_pairwise.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        gpu=0 if config["proof"]["judge"] else 1,
        mem_mb=model_memory,
        runtime="6h",
    params:
        served=config["proof"]["judge"],
        precision=config["precision"],
        template=JUDGE_MODEL["template"],
        batch_tokens=config["generation"]["batch_tokens"],
        random_seed=config["random_seed"],
    message:
        "Trying the pairwise judge on preferences"
    script:
        "../scripts/audit_pairwise.py"


rule judge_arm:
    input:
        own=f"<results>/proof/{CELL}/answers.jsonl",
        other=untouched("<results>/proof/{cell}/answers.jsonl"),
        judge="<judge>/manifest.json" if not config["proof"]["judge"] else [],
        code=library("pairwise"),
    output:
        wins=ensure(f"<results>/proof/{CELL}/wins.tsv", non_empty=True),
    log:
        f"<logs>/judge_arm/{CELL}.log",
    benchmark:
        f"<benchmarks>/judge_arm/{CELL}.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        gpu=0 if config["proof"]["judge"] else 1,
        mem_mb=model_memory,
        runtime="6h",
    params:
        served=config["proof"]["judge"],
        precision=config["precision"],
        template=JUDGE_MODEL["template"],
        batch_tokens=config["generation"]["batch_tokens"],
        cell=cell_of,
    message:
        "Judging the answers of {wildcards.arm}, n {wildcards.n}, seed {wildcards.seed}"
    script:
        "../scripts/judge_arm.py"


rule compare_arms:
    input:
        values=cells("<results>/proof/{cell}/values.tsv"),
        wins=judged("<results>/proof/{cell}/wins.tsv"),
        judge="<results>/proof/pairwise.json" if config["proof"]["answers"] else [],
        code=library("pairwise"),
    output:
        arms=report(
            "<results>/arms.tsv",
            caption="../config/captions/arms.rst",
            category="6. Is the model better?",
            labels={"shows": "every arm, size and training seed"},
        ),
        comparisons=report(
            "<results>/proof/comparisons.tsv",
            caption="../config/captions/comparisons.rst",
            category="6. Is the model better?",
            labels={"shows": "the arms against each other"},
        ),
        words=report(
            "<results>/proof/words.tsv",
            caption="../config/captions/words.rst",
            category="6. Is the model better?",
            labels={"shows": "what can be said, and what cannot"},
        ),
        # In the report where there is a choice.
        settings=(
            report(
                "<results>/proof/settings.tsv",
                caption="../config/captions/settings.rst",
                category="6. Is the model better?",
                labels={"shows": "the settings that were tried"},
            )
            if config["proof"]["search"]
            else "<results>/proof/settings.tsv"
        ),
        summary="<results>/summary.json",
    log:
        "<logs>/compare_arms.log",
    benchmark:
        "<benchmarks>/compare_arms.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="1h",
    params:
        search=list(config["proof"]["search"] or {}),
        random_seed=config["random_seed"],
    message:
        "Comparing the arms"
    script:
        "../scripts/compare_arms.py"


rule draw_proof:
    input:
        arms="<results>/arms.tsv",
        comparisons="<results>/proof/comparisons.tsv",
        summary="<results>/summary.json",
        code=library("plots", "logs"),
    output:
        quality=report(
            "<results>/proof/quality.svg",
            caption="../config/captions/quality.rst",
            category="6. Is the model better?",
            labels={"shows": "quality against quantity"},
        ),
        differences=report(
            "<results>/proof/differences.svg",
            caption="../config/captions/differences.rst",
            category="6. Is the model better?",
            labels={"shows": "the differences between arms"},
        ),
    log:
        "<logs>/draw_proof.log",
    benchmark:
        "<benchmarks>/draw_proof.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        drawn=config["proof"]["drawn"],
    message:
        "Drawing quality against quantity"
    script:
        "../scripts/draw_proof.py"


# Where answers are judged (proof.answers).
rule draw_win_rates:
    input:
        arms="<results>/arms.tsv",
        judge="<results>/proof/pairwise.json",
        code=library("plots", "logs"),
    output:
        figure=report(
            "<results>/proof/win_rates.svg",
            caption="../config/captions/win_rates.rst",
            category="6. Is the model better?",
            labels={"shows": "win rates, and what their judge is worth"},
        ),
        judge="<results>/proof/pairwise.tsv",
    log:
        "<logs>/draw_win_rates.log",
    benchmark:
        "<benchmarks>/draw_win_rates.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    message:
        "Drawing win rates beside the audit of their judge"
    script:
        "../scripts/draw_win_rates.py"
