from backtranslation import labelling, logs, records

with logs.job(snakemake.log[0]):
    given, made, params = snakemake.input, snakemake.output, snakemake.params
    rows = labelling.draw(records.read(given.rated), records.read(given.dropped), params.labelling, params.random_seed)
    labelling.table(rows, made.table)
    labelling.page(rows, made.page)
