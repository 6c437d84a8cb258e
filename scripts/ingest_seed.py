from collections import Counter

from backtranslation import decontamination, logs, records, segments, sources

with logs.job(snakemake.log[0]):
    settings, contamination = snakemake.params.seed, snakemake.params.decontamination
    pairs, dropped = sources.read_seed(settings["sources"])
    protected = decontamination.protect(contamination["prompts"], [], contamination["words"])
    clean, contaminated = decontamination.screen(pairs, protected)
    train, heldout = segments.split(clean, settings["heldout"], snakemake.params.random_seed)
    ended = [*dropped, *contaminated]
    logs.logger.info("%s: %d train, %d held out, %d dropped", dict(Counter(row["source"] for row in clean)), len(train), len(heldout), len(ended))
    records.settle("ingest", [*pairs, *dropped], [*train, *heldout], ended)
    records.write(ended, records.DROPPED, snakemake.output.dropped)
    records.write(heldout, records.PAIRS, snakemake.output.heldout)
    records.write(train, records.PAIRS, snakemake.output.train)
