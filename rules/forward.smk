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
        mem_mb=data_memory,
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
            "training.json",
            "history.tsv",
            *WEIGHTS,
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
        adapter=chosen("<results>/forward/{iteration}/adapter/training.json"),
        heldout=chosen("<results>/forward/{iteration}/heldout_examples.parquet"),
        manifest="<model>/manifest.json",
        code=library("evaluation", "engines"),
    output:
        multiext(
            "<results>/forward/model/",
            "model.safetensors",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "merge.json",
        ),
    log:
        "<logs>/merge_forward.log",
    benchmark:
        "<benchmarks>/merge_forward.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        # Only a quantised model is measured before and after.
        gpu=int(config["precision"]["quantization"] != "none"),
        mem_mb=model_memory,
        runtime="2h",
    params:
        template=config["model"]["template"],
        into=config["forward"]["merge"],
        batch_tokens=config["generation"]["batch_tokens"],
    message:
        "Merging the forward adapter into a model that stands alone"
    script:
        "../scripts/merge_forward.py"
