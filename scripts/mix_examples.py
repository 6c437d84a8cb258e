from backtranslation import augment, logs, records

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    curated = records.read(given.curated) if given.curated else []
    heldout = augment.for_inference(records.read(given.heldout), params.tags)
    records.write(heldout, records.EXAMPLES, snakemake.output.heldout)
    mixed = augment.mix(records.read(given.train), curated, params.tags, params.seed_share)
    records.write(mixed, records.EXAMPLES, snakemake.output.examples)
