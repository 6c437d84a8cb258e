import pandas as pd

from backtranslation import iterating, logs, plots, records

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    rated = [records.read(path) for path in given.rated]
    curated = [records.read(path) for path in given.curated]
    dropped = [records.read(path) for path in given.dropped]
    audits = [records.read_json(path) for path in given.audits]
    losses = [pd.read_csv(path, sep="\t") for path in given.losses]
    table = iterating.side_by_side(rated, curated, dropped, audits, losses, params.signal, params.random_seed)
    table["ends_with"] = table["iteration"] == params.best
    logs.logger.info("\n%s", table.T.to_string())
    plots.iterations(rated, iterating.NOTEBOOK_RATINGS, iterating.PAPER_SHARES, snakemake.output.figure)
    # A column for each iteration: their number is small, that of the figures is not.
    turned = table.round(4).astype(object).set_index("iteration").T.rename_axis("iteration").reset_index()
    records.write_table(turned, snakemake.output.table)
