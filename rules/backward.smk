# The backward model p(instruction | response), trained on the reversed seed.


rule reverse_seed:
    input:
        pairs="<results>/seed/{part}.parquet",
        code=library("augment"),
    output:
        examples=ensure("<results>/backward/{part}_examples.parquet", non_empty=True),
    log:
        "<logs>/reverse_seed/{part}.log",
    benchmark:
        "<benchmarks>/reverse_seed/{part}.jsonl"
    wildcard_constraints:
        part="train|heldout",
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        # In a mapping, since Snakemake would fill the braces of a plain text.
        prompt={"text": config["backward"]["prompt"]},
    message:
        "Reversing the {wildcards.part} pairs"
    script:
        "../scripts/reverse_seed.py"


rule train_backward:
    input:
        examples="<results>/backward/train_examples.parquet",
        heldout="<results>/backward/heldout_examples.parquet",
        manifest="<model>/manifest.json",
        code=library("training", "templates"),
    output:
        multiext(
            "<results>/backward/adapter/",
            "training.json",
            "history.tsv",
            *WEIGHTS,
        ),
        dropped="<results>/backward/dropped.parquet",
    log:
        "<logs>/train_backward.log",
    benchmark:
        "<benchmarks>/train_backward.jsonl"
    conda:
        "../envs/training.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        training=training_settings("backward"),
        template=config["model"]["template"],
        random_seed=config["random_seed"],
    message:
        "Training the backward model"
    script:
        "../scripts/train.py"
