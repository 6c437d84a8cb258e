from backtranslation import logs, records, segments, sources

with logs.job(snakemake.log[0], online=True):
    settings = snakemake.params.seed
    pairs, dropped = sources.read_seed(settings["sources"])
    train, heldout = segments.split(pairs, settings["heldout"], snakemake.params.random_seed)
    logs.logger.info("%s: %d train, %d held out, %d dropped", segments.describe(pairs), len(train), len(heldout), len(dropped))
    records.settle("ingest", [*pairs, *dropped], [*train, *heldout], dropped)
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
    records.write(heldout, records.PAIRS, snakemake.output.heldout)
    records.write(train, records.PAIRS, snakemake.output.train)
