# Self-curation: the judge rates each candidate, and the best are kept.


rule rate_candidates:
    input:
        candidates="<results>/augment/candidates.parquet",
        # No candidate is rated before the judge was audited; another floor rates none again.
        verdict=ancient("<results>/audit/verdict.json"),
        adapter="<results>/backward/adapter/training.json",
        rubric=config["judge"]["rubric"],
        manifest="<model>/manifest.json",
        code=library("judge"),
    output:
        rated=ensure("<results>/curation/shards/{scatteritem}.parquet", non_empty=True),
    log:
        "<logs>/rate_candidates/{scatteritem}.log",
    benchmark:
        "<benchmarks>/rate_candidates/{scatteritem}.jsonl"
    conda:
        ENGINE_ENV
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        judge=judge_settings(),
    message:
        "Rating candidates, shard {wildcards.scatteritem}"
    script:
        "../scripts/rate_candidates.py"


rule filter_candidates:
    input:
        shards=gather.shard("<results>/curation/shards/{scatteritem}.parquet"),
        candidates="<results>/augment/candidates.parquet",
        combination="<results>/audit/combination.json",
        code=library("judge"),
    output:
        rated=ensure("<results>/curation/rated.parquet", non_empty=True),
        curated=ensure("<results>/curation/curated.parquet", non_empty=True),
        jsonl="<results>/curation/curated.jsonl",
        dropped="<results>/curation/dropped.parquet",
    log:
        "<logs>/filter_candidates.log",
    benchmark:
        "<benchmarks>/filter_candidates.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime="1h",
    params:
        keep=config["curation"]["keep"],
    message:
        "Keeping the best candidates by {params.keep[signal]}"
    script:
        "../scripts/filter_candidates.py"
