# The base model, data sets of the hub, the seed pairs, and the corpus as segments.


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
        "../envs/inference.yaml"
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


rule fetch_data:
    input:
        code=library("sources"),
    output:
        rows="resources/data/{data}/rows.parquet",
    log:
        "<logs>/fetch_data/{data}.log",
    benchmark:
        "<benchmarks>/fetch_data/{data}.jsonl"
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="12h",
    params:
        source=lambda wildcards: DATA_SETS[wildcards.data],
    message:
        "Fetching the data set {params.source[hub]}"
    script:
        "../scripts/fetch_data.py"


rule ingest_seed:
    input:
        files=source_files(config["seed"]["sources"]),
        prompts=source_files(config["decontamination"]["prompts"]),
        code=library("decontamination", "segments"),
    output:
        train=ensure("<results>/seed/train.parquet", non_empty=True),
        heldout=ensure("<results>/seed/heldout.parquet", non_empty=True),
        dropped="<results>/seed/dropped.parquet",
    log:
        "<logs>/ingest_seed.log",
    benchmark:
        "<benchmarks>/ingest_seed.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="1h",
    params:
        seed=config["seed"],
        decontamination=config["decontamination"],
        random_seed=config["random_seed"],
    message:
        "Reading the seed pairs and setting a held-out part aside"
    script:
        "../scripts/ingest_seed.py"


rule segment_corpus:
    input:
        files=files_of_part,
        heldout="<results>/seed/heldout.parquet",
        prompts=source_files(config["decontamination"]["prompts"]),
        code=library("corpus"),
    output:
        pieces="<results>/corpus/parts/{part}.parquet",
        dropped="<results>/corpus/parts/{part}.dropped.parquet",
        counts="<results>/corpus/parts/{part}.json",
    log:
        "<logs>/segment_corpus/{part}.log",
    benchmark:
        "<benchmarks>/segment_corpus/{part}.jsonl"
    wildcard_constraints:
        part="[0-9]+",
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="4h",
    params:
        part=part_of,
        filters=config["corpus"]["filters"],
        decontamination=config["decontamination"],
    message:
        "Cutting part {wildcards.part} of the corpus into segments"
    script:
        "../scripts/segment_corpus.py"


rule deduplicate_corpus:
    input:
        pieces=of_parts("<results>/corpus/parts/{part}.parquet"),
        dropped=of_parts("<results>/corpus/parts/{part}.dropped.parquet"),
        counts=of_parts("<results>/corpus/parts/{part}.json"),
        code=library("corpus"),
    output:
        segments=ensure("<results>/corpus/segments.parquet", non_empty=True),
        dropped="<results>/corpus/dropped.parquet",
        counts="<results>/corpus/counts.json",
    log:
        "<logs>/deduplicate_corpus.log",
    benchmark:
        "<benchmarks>/deduplicate_corpus.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=merge_memory,
        runtime="4h",
    params:
        names=corpus_names,
        near_duplicates=config["corpus"]["near_duplicates"],
    message:
        "Dropping segments that the corpus has twice"
    script:
        "../scripts/deduplicate_corpus.py"


rule sample_segments:
    input:
        segments="<results>/corpus/segments.parquet",
        manifest=tokenizer_for_lengths(),
        code=library("corpus", "models"),
    output:
        sample=ensure("<results>/corpus/sample.parquet", non_empty=True),
        dropped="<results>/corpus/not_sampled.parquet",
    log:
        "<logs>/sample_segments.log",
    benchmark:
        "<benchmarks>/sample_segments.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        mem_mb=data_memory,
        runtime="4h",
    params:
        tokens=config["corpus"]["tokens"],
        token_quantiles=config["corpus"]["token_quantiles"],
        size=config["corpus"]["sample"],
        weights=[source["weight"] for source in config["corpus"]["sources"]],
        stratify=config["corpus"]["stratify"],
        random_seed=config["random_seed"],
    message:
        "Drawing {params.size} segments"
    script:
        "../scripts/sample_segments.py"
