# Self-curation: in iteration t the judge M_(t-1) rates each candidate, and the best are kept as A_k^(t).


rule rate_candidates:
    input:
        candidates="<results>/augment/candidates.parquet",
        # No candidate is rated before the judge was audited, and none by one that audit.on_fail stops.
        figures="<results>/audit/{iteration}/audit.json",
        adapter="<results>/backward/adapter/training.json",
        rubric=config["judge"]["rubric"],
        manifest="<model>/manifest.json",
        judge="<judge>/manifest.json",
        judge_adapter=judge_adapter,
        earlier=earlier("<results>/curation/{iteration}/shards/{scatteritem}.parquet"),
        code=library("audit"),
    output:
        rated=ensure(
            "<results>/curation/{iteration}/shards/{scatteritem}.parquet",
            non_empty=True,
        ),
    log:
        "<logs>/rate_candidates/{iteration}/{scatteritem}.log",
    benchmark:
        "<benchmarks>/rate_candidates/{iteration}/{scatteritem}.jsonl"
    conda:
        ENGINE_ENV
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        judge=judge_settings,
    message:
        "Rating candidates, iteration {wildcards.iteration}, shard {wildcards.scatteritem}"
    script:
        "../scripts/rate_candidates.py"


rule filter_candidates:
    input:
        shards=gather.shard(
            "<results>/curation/{{iteration}}/shards/{scatteritem}.parquet"
        ),
        candidates="<results>/augment/candidates.parquet",
        combination="<results>/audit/{iteration}/combination.json",
        code=library("judge"),
    output:
        rated=ensure("<results>/curation/{iteration}/rated.parquet", non_empty=True),
        curated=ensure("<results>/curation/{iteration}/curated.parquet", non_empty=True),
        dropped="<results>/curation/{iteration}/dropped.parquet",
    log:
        "<logs>/filter_candidates/{iteration}.log",
    benchmark:
        "<benchmarks>/filter_candidates/{iteration}.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="1h",
    params:
        keep=config["curation"]["keep"],
    message:
        "Keeping the best candidates by {params.keep[signal]}, iteration {wildcards.iteration}"
    script:
        "../scripts/filter_candidates.py"


# Only with curation.stop: whether another iteration is worth it.
checkpoint decide:
    input:
        measured=measured_so_far,
        code=library("iterating"),
    output:
        decision="<results>/curation/{iteration}/decision.json",
    log:
        "<logs>/decide/{iteration}.log",
    benchmark:
        "<benchmarks>/decide/{iteration}.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        stop=config["curation"]["stop"],
        signal=config["curation"]["keep"]["signal"],
    message:
        "Is another iteration after {wildcards.iteration} worth it?"
    script:
        "../scripts/decide.py"


rule publish_curated:
    input:
        rated=chosen("<results>/curation/{iteration}/rated.parquet"),
        curated=chosen("<results>/curation/{iteration}/curated.parquet"),
        dropped=chosen("<results>/curation/{iteration}/dropped.parquet"),
        code=library("records"),
    output:
        rated="<results>/curation/rated.parquet",
        curated="<results>/curation/curated.parquet",
        dropped="<results>/curation/dropped.parquet",
        jsonl=ensure("<results>/curation/curated.jsonl", non_empty=True),
    log:
        "<logs>/publish_curated.log",
    benchmark:
        "<benchmarks>/publish_curated.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    message:
        "Writing the curated set"
    script:
        "../scripts/publish_curated.py"
