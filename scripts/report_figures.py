import pandas as pd

from backtranslation import logs, plots, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    rated = records.read(given.rated)
    kept = {row["id"] for row in records.read(given.curated)}
    histories = {name: pd.read_csv(given[name], sep="\t") for name in ("backward", "forward")}
    plots.funnel(pd.read_csv(given.funnel, sep="\t"), made.funnel)
    plots.scores(rated, kept, snakemake.params.keep["signal"], made.scores)
    plots.lengths(rated, kept, made.lengths)
    plots.training(histories, made.training)
