from backtranslation import logs, models, records, segments

with logs.job(snakemake.log[0]):
    rows = records.read(snakemake.input.segments)
    tokenizer = models.load_tokenizer(models.folder_of(snakemake.input.manifest))
    lengths = [len(ids) for ids in tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"]]
    params = snakemake.params
    kept, dropped = segments.sample(rows, lengths, params.token_quantiles, params.size, params.random_seed)
    records.settle("sample", rows, kept, dropped)
    if not kept:
        raise ValueError(f"corpus.sample: no segment is left of {len(rows)}; widen corpus.token_quantiles")
    logs.logger.info("sampled %d of %d", len(kept), len(rows))
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
    records.write(kept, records.SEGMENTS, snakemake.output.sample)
