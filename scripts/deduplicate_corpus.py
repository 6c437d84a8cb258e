from backtranslation import corpus, logs

with logs.job(snakemake.log[0]):
    given, made, params = snakemake.input, snakemake.output, snakemake.params
    corpus.merge(
        given.pieces,
        given.dropped,
        given.counts,
        params.names,
        params.near_duplicates,
        made.segments,
        made.dropped,
        made.counts,
    )
