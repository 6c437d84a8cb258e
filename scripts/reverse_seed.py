from backtranslation import augment, logs, records

with logs.job(snakemake.log[0]):
    examples = augment.reverse(records.read(snakemake.input.pairs), snakemake.params.prompt["text"])
    records.write(examples, records.EXAMPLES, snakemake.output.examples)
