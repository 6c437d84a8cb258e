# The forward models, each trained from the base model: M_0 on the seed pairs, M_t on seed and A_k^(t).


rule mix_examples:
    input:
        train="<results>/seed/train.parquet",
        heldout="<results>/seed/heldout.parquet",
        curated=curated_of,
        code=library("augment"),
    output:
        examples=ensure(
            "<results>/forward/{iteration}/train_examples.parquet", non_empty=True
        ),
        heldout=ensure(
            "<results>/forward/{iteration}/heldout_examples.parquet", non_empty=True
        ),
    log:
        "<logs>/mix_examples/{iteration}.log",
    benchmark:
        "<benchmarks>/mix_examples/{iteration}.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime="30m",
    params:
        tags=config["forward"]["tags"],
        seed_share=config["forward"]["seed_share"],
    message:
        "Mixing the training examples of M_{wildcards.iteration}"
    script:
        "../scripts/mix_examples.py"


use rule train_backward as train_forward with:
    input:
        examples="<results>/forward/{iteration}/train_examples.parquet",
        heldout="<results>/forward/{iteration}/heldout_examples.parquet",
        manifest="<model>/manifest.json",
        code=library("training", "templates"),
    output:
        multiext(
            "<results>/forward/{iteration}/adapter/",
            "adapter_model.safetensors",
            "adapter_config.json",
            "training.json",
            "history.tsv",
        ),
        dropped="<results>/forward/{iteration}/dropped.parquet",
    log:
        "<logs>/train_forward/{iteration}.log",
    benchmark:
        "<benchmarks>/train_forward/{iteration}.jsonl"
    params:
        training=training_settings("forward"),
        template=config["model"]["template"],
        random_seed=config["random_seed"],
    message:
        "Training the forward model M_{wildcards.iteration}"


rule merge_forward:
    input:
        adapter=chosen(
            "<results>/forward/{iteration}/adapter/adapter_model.safetensors"
        ),
        manifest="<model>/manifest.json",
        code=library("models", "templates"),
    output:
        multiext(
            "<results>/forward/model/",
            "model.safetensors",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
        ),
    log:
        "<logs>/merge_forward.log",
    benchmark:
        "<benchmarks>/merge_forward.jsonl"
    conda:
        "../envs/model.yaml"
    threads: 2
    resources:
        mem_mb=model_memory,
        runtime="1h",
    params:
        template=config["model"]["template"],
    message:
        "Merging the forward adapter into a model that stands alone"
    script:
        "../scripts/merge_forward.py"
