from collections import Counter

from backtranslation import arms, logs, records

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    pairs, train, sample = (records.read(path) for path in (given.pairs, given.train, given.sample))
    heldout, dropped = arms.heldout(pairs, train, arms.known(given.segments), sample, params.corpus_pairs, params.words, params.random_seed)
    logs.logger.info("pairs to measure on: %s; %d dropped as contaminated", dict(Counter(row["set"] for row in heldout)), len(dropped))
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
    records.write(heldout, records.MEASURED, snakemake.output.heldout)
