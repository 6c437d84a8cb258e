# The base model, the seed pairs, and the corpus as segments.


rule fetch_model:
    input:
        code=library("models"),
    output:
        manifest="resources/models/{model}/manifest.json",
    log:
        "<logs>/fetch_model/{model}.log",
    benchmark:
        "<benchmarks>/fetch_model/{model}.jsonl"
    wildcard_constraints:
        model="|".join(map(re.escape, MODELS)),
    localrule: True
    conda:
        "../envs/model.yaml"
    threads: 2
    resources:
        mem_mb=model_memory,
        runtime="2h",
    params:
        model=lambda wildcards: MODELS[wildcards.model],
    message:
        "Fetching the model {params.model[name]}"
    script:
        "../scripts/fetch_model.py"


rule ingest_seed:
    input:
        files=source_files("seed"),
        code=library("sources"),
    output:
        train=ensure("<results>/seed/train.parquet", non_empty=True),
        heldout=ensure("<results>/seed/heldout.parquet", non_empty=True),
        dropped="<results>/seed/dropped.parquet",
    log:
        "<logs>/ingest_seed.log",
    benchmark:
        "<benchmarks>/ingest_seed.jsonl"
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="1h",
    params:
        seed=config["seed"],
        random_seed=config["random_seed"],
    message:
        "Reading the seed pairs and setting a held-out part aside"
    script:
        "../scripts/ingest_seed.py"


rule segment_corpus:
    input:
        files=source_files("corpus"),
        code=library("sources"),
    output:
        segments=ensure("<results>/corpus/segments.parquet", non_empty=True),
        dropped="<results>/corpus/dropped.parquet",
    log:
        "<logs>/segment_corpus.log",
    benchmark:
        "<benchmarks>/segment_corpus.jsonl"
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="4h",
    params:
        sources=config["corpus"]["sources"],
    message:
        "Cutting the corpus into segments"
    script:
        "../scripts/segment_corpus.py"


rule sample_segments:
    input:
        segments="<results>/corpus/segments.parquet",
        manifest="<model>/manifest.json",
        code=library("segments", "models"),
    output:
        sample=ensure("<results>/corpus/sample.parquet", non_empty=True),
        dropped="<results>/corpus/not_sampled.parquet",
    log:
        "<logs>/sample_segments.log",
    benchmark:
        "<benchmarks>/sample_segments.jsonl"
    conda:
        "../envs/model.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        token_quantiles=config["corpus"]["token_quantiles"],
        size=config["corpus"]["sample"],
        random_seed=config["random_seed"],
    message:
        "Drawing {params.size} segments"
    script:
        "../scripts/sample_segments.py"
