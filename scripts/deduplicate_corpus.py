from backtranslation import corpus, logs, sources

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
    for source in snakemake.config["corpus"]["sources"]:
        if unknown := sources.unknown_kinds(source):
            kinds = ", ".join(f"{suffix or 'no suffix'} {count}" for suffix, count in unknown.most_common())
            logs.warn(f"{source['path']}: {unknown.total()} files of kinds that are not read were passed over ({kinds})")
