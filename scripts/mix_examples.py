from backtranslation import augment, logs, records

with logs.job(snakemake.log[0]):
    tags = snakemake.params.tags
    train, curated = records.read(snakemake.input.train), records.read(snakemake.input.curated)
    heldout = augment.for_inference(records.read(snakemake.input.heldout), tags)
    records.write(heldout, records.EXAMPLES, snakemake.output.heldout)
    records.write(augment.mix(train, curated, tags), records.EXAMPLES, snakemake.output.examples)
