# Did training help? Loss on pairs that no model was trained on.


rule evaluate_forward:
    input:
        examples="<results>/forward/{iteration}/heldout_examples.parquet",
        adapter="<results>/forward/{iteration}/adapter/training.json",
        manifest="<model>/manifest.json",
        code=library("evaluation", "engines"),
    output:
        losses=ensure("<results>/evaluation/forward/{iteration}.tsv", non_empty=True),
    log:
        "<logs>/evaluate_forward/{iteration}.log",
    benchmark:
        "<benchmarks>/evaluate_forward/{iteration}.jsonl"
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
        batch_tokens=config["generation"]["batch_tokens"],
    message:
        "Measuring M_{wildcards.iteration} on held-out pairs"
    script:
        "../scripts/evaluate_forward.py"


rule evaluate:
    input:
        backward_examples="<results>/backward/heldout_examples.parquet",
        backward_adapter="<results>/backward/adapter/training.json",
        forward_examples="<results>/forward/0/heldout_examples.parquet",
        forward_losses=iterations(
            "<results>/evaluation/forward/{iteration}.tsv", first=0
        ),
        forward_adapter=chosen("<results>/forward/{iteration}/adapter/training.json"),
        manifest="<model>/manifest.json",
        code=library("evaluation", "engines"),
    output:
        table=report(
            ensure("<results>/evaluation/heldout.tsv", non_empty=True),
            caption="../config/captions/heldout.rst",
            category="6. Is the model better?",
            labels={"shows": "loss on held-out pairs"},
        ),
        pairs="<results>/evaluation/pairs.tsv",
        answers="<results>/evaluation/answers.jsonl",
    log:
        "<logs>/evaluate.log",
    benchmark:
        "<benchmarks>/evaluate.jsonl"
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
        batch_tokens=config["generation"]["batch_tokens"],
        random_seed=config["random_seed"],
        answers=config["report"]["examples"],
    message:
        "Measuring the models on held-out pairs"
    script:
        "../scripts/evaluate.py"


rule round_trip:
    input:
        heldout="<results>/seed/heldout.parquet",
        sample="<results>/corpus/sample.parquet",
        adapter="<results>/backward/adapter/training.json",
        manifest="<model>/manifest.json",
        code=library("evaluation", "engines"),
    output:
        table=report(
            ensure("<results>/evaluation/round_trip.tsv", non_empty=True),
            caption="../config/captions/round_trip.rst",
            category="5. Did training work?",
            labels={"shows": "generated against true instructions"},
        ),
        written="<results>/evaluation/round_trip.jsonl",
    log:
        "<logs>/round_trip.log",
    benchmark:
        "<benchmarks>/round_trip.jsonl"
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
        # In a mapping, since Snakemake would fill the braces of a plain text.
        prompt={"text": config["backward"]["prompt"]},
        max_new_tokens=config["generation"]["max_new_tokens"],
        batch_tokens=config["generation"]["batch_tokens"],
        pairs=config["audit"]["pairs"],
        embedding=config["report"]["embedding"],
        random_seed=config["random_seed"],
    message:
        "Comparing generated with true instructions"
    script:
        "../scripts/round_trip.py"


# A target of its own, which nothing else asks for.
rule harness:
    input:
        tasks=harness_files,
        adapter=chosen("<results>/forward/{iteration}/adapter/training.json"),
        manifest="<model>/manifest.json",
        code=library("harness"),
    output:
        table=report(
            ensure("<results>/evaluation/harness.tsv", non_empty=True),
            caption="../config/captions/harness.rst",
            category="6. Is the model better?",
            labels={"shows": "tasks of lm-evaluation-harness"},
        ),
        json="<results>/evaluation/harness.json",
    log:
        "<logs>/harness.log",
    benchmark:
        "<benchmarks>/harness.jsonl"
    conda:
        HARNESS_ENV
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        folder=config["release"]["harness"]["tasks"],
        names=config["release"]["harness"]["names"],
        limit=config["release"]["harness"]["limit"],
        precision=config["precision"],
        template=config["model"]["template"],
        tags=config["forward"]["tags"],
        batch_tokens=config["generation"]["batch_tokens"],
        random_seed=config["random_seed"],
    message:
        "Measuring the models on tasks of lm-evaluation-harness"
    script:
        "../scripts/harness.py"
