# Self-augmentation: the backward model writes an instruction for every sampled segment.


rule write_instructions:
    input:
        sample="<results>/corpus/sample.parquet",
        adapter="<results>/backward/adapter/training.json",
        manifest="<model>/manifest.json",
        code=library("augment"),
    output:
        candidates=ensure(
            "<results>/augment/shards/{scatteritem}.parquet", non_empty=True
        ),
    log:
        "<logs>/write_instructions/{scatteritem}.log",
    benchmark:
        "<benchmarks>/write_instructions/{scatteritem}.jsonl"
    conda:
        ENGINE_ENV
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        generation=config["generation"],
        # In a mapping, since Snakemake would fill the braces of a plain text.
        prompt={"text": config["backward"]["prompt"]},
        engine=config["engine"],
        precision=config["precision"],
        template=config["model"]["template"],
        random_seed=config["random_seed"],
    message:
        "Writing instructions, shard {wildcards.scatteritem}"
    script:
        "../scripts/write_instructions.py"


rule gate_candidates:
    input:
        shards=gather.shard("<results>/augment/shards/{scatteritem}.parquet"),
        sample="<results>/corpus/sample.parquet",
        code=library("gate"),
    output:
        candidates=ensure("<results>/augment/candidates.parquet", non_empty=True),
        dropped="<results>/augment/dropped.parquet",
    log:
        "<logs>/gate_candidates.log",
    benchmark:
        "<benchmarks>/gate_candidates.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="1h",
    message:
        "Dropping broken instructions"
    script:
        "../scripts/gate_candidates.py"
