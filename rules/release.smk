# What goes out into the world: the curated set in the forms that training tools read, and its card.


rule export_curated:
    input:
        curated="<results>/curation/curated.parquet",
        code=library("exports", "logs"),
    output:
        parquet=ensure("<results>/release/data/curated.parquet", non_empty=True),
        messages=ensure("<results>/release/data/messages.jsonl", non_empty=True),
        alpaca=ensure("<results>/release/data/alpaca.json", non_empty=True),
        sharegpt=ensure("<results>/release/data/sharegpt.json", non_empty=True),
        llama_factory="<results>/release/data/dataset_info.json",
    log:
        "<logs>/export_curated.log",
    benchmark:
        "<benchmarks>/export_curated.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        tags=config["forward"]["tags"],
    message:
        "Writing the curated set for training tools"
    script:
        "../scripts/export_curated.py"


rule dataset_card:
    input:
        curated="<results>/curation/curated.parquet",
        funnel="<results>/report/funnel.tsv",
        audit=chosen("<results>/audit/{iteration}/audit.json"),
        verdict=chosen("<results>/audit/{iteration}/verdict.json"),
        manifest="<model>/manifest.json",
        code=library("cards", "logs"),
    output:
        card=ensure("<results>/release/data/README.md", non_empty=True),
    log:
        "<logs>/dataset_card.log",
    benchmark:
        "<benchmarks>/dataset_card.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        card=CARD,
    message:
        "Writing the card of the curated set"
    script:
        "../scripts/dataset_card.py"


rule model_card:
    input:
        heldout="<results>/evaluation/heldout.tsv",
        training=chosen("<results>/forward/{iteration}/adapter/training.json"),
        merge="<results>/forward/model/merge.json",
        audit=chosen("<results>/audit/{iteration}/audit.json"),
        verdict=chosen("<results>/audit/{iteration}/verdict.json"),
        manifest="<model>/manifest.json",
        code=library("cards", "logs"),
    output:
        card=ensure("<results>/forward/model/README.md", non_empty=True),
    log:
        "<logs>/model_card.log",
    benchmark:
        "<benchmarks>/model_card.jsonl"
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="30m",
    params:
        card=CARD,
        best=best_iteration,
    message:
        "Writing the card of the forward model"
    script:
        "../scripts/model_card.py"


rule answer_alpaca_eval:
    input:
        questions=config["release"]["leaderboards"]["alpaca_eval"] or [],
        adapter=chosen("<results>/forward/{iteration}/adapter/training.json"),
        manifest="<model>/manifest.json",
        code=library("leaderboards", "engines"),
    output:
        ensure("<results>/release/alpaca_eval/model_outputs.json", non_empty=True),
    log:
        "<logs>/answer_alpaca_eval.log",
    benchmark:
        "<benchmarks>/answer_alpaca_eval.jsonl"
    conda:
        "../envs/inference.yaml"
    threads: 2
    resources:
        gpu=1,
        mem_mb=model_memory,
        runtime="12h",
    params:
        name=config["name"],
        template=config["model"]["template"],
        tags=config["forward"]["tags"],
        precision=config["precision"],
        batch_tokens=config["generation"]["batch_tokens"],
        max_new_tokens=config["release"]["leaderboards"]["max_new_tokens"],
        random_seed=config["random_seed"],
    message:
        "Answering AlpacaEval's questions"
    script:
        "../scripts/answer_leaderboard.py"


use rule answer_alpaca_eval as answer_mt_bench with:
    input:
        questions=config["release"]["leaderboards"]["mt_bench"] or [],
        adapter=chosen("<results>/forward/{iteration}/adapter/training.json"),
        manifest="<model>/manifest.json",
        code=library("leaderboards", "engines"),
    output:
        ensure(
            f"<results>/release/mt_bench/model_answer/{config['name']}.jsonl",
            non_empty=True,
        ),
    log:
        "<logs>/answer_mt_bench.log",
    benchmark:
        "<benchmarks>/answer_mt_bench.jsonl"
    message:
        "Answering MT-bench's questions"


# To the hub, only when asked for by the target push; the token is in the environment and nowhere else.
rule push_dataset:
    input:
        files=[
            "<results>/release/data/README.md",
            "<results>/release/data/curated.parquet",
            "<results>/release/data/messages.jsonl",
            "<results>/release/data/alpaca.json",
            "<results>/release/data/sharegpt.json",
            "<results>/release/data/dataset_info.json",
        ],
        code=library("hub"),
    output:
        pushed="<results>/release/pushed/dataset.json",
    log:
        "<logs>/push_dataset.log",
    benchmark:
        "<benchmarks>/push_dataset.jsonl"
    localrule: True
    conda:
        "../envs/data.yaml"
    threads: 1
    resources:
        mem_mb=data_memory,
        runtime="12h",
    params:
        kind="dataset",
        repo=config["release"]["push"]["dataset"],
        private=config["release"]["push"]["private"],
    message:
        "Pushing the curated set to {params.repo}"
    script:
        "../scripts/push_dataset.py"


use rule push_dataset as push_model with:
    input:
        files=[
            "<results>/forward/model/README.md",
            "<results>/forward/model/model.safetensors",
            "<results>/forward/model/config.json",
            "<results>/forward/model/generation_config.json",
            "<results>/forward/model/tokenizer.json",
            "<results>/forward/model/tokenizer_config.json",
            "<results>/forward/model/chat_template.jinja",
            "<results>/forward/model/merge.json",
        ],
        code=library("hub"),
    output:
        pushed="<results>/release/pushed/model.json",
    log:
        "<logs>/push_model.log",
    benchmark:
        "<benchmarks>/push_model.jsonl"
    params:
        kind="model",
        repo=config["release"]["push"]["model"],
        private=config["release"]["push"]["private"],
    message:
        "Pushing the forward model to {params.repo}"
