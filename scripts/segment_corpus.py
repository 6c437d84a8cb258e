from backtranslation import corpus, decontamination, logs, records

with logs.job(snakemake.log[0]):
    params, made = snakemake.params, snakemake.output
    heldout = records.read(snakemake.input.heldout) if params.decontamination["heldout"] else []
    protected = decontamination.protect(params.decontamination["prompts"], heldout, params.decontamination["words"])
    corpus.cut_part(params.part, params.filters, protected, made.pieces, made.dropped, made.counts)
