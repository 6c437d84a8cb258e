from backtranslation import corpus, logs, models

with logs.job(snakemake.log[0]):
    params, token_counts = snakemake.params, None
    if snakemake.input.get("manifest"):
        tokenizer = models.load_tokenizer(models.folder_of(snakemake.input.manifest))

        def token_counts(texts):
            return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    drawn = corpus.sample(
        snakemake.input.segments,
        params.size,
        params.random_seed,
        params.weights,
        params.stratify,
        token_counts,
        params.tokens,
        params.token_quantiles,
        snakemake.output.sample,
        snakemake.output.dropped,
    )
    logs.logger.info("drew %d segments", drawn)
