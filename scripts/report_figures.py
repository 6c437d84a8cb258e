import pandas as pd

from backtranslation import logs, plots, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    rated = records.read(given.rated)
    kept = {row["id"] for row in records.read(given.curated)}
    paths = {"backward model": given.backward, **{f"forward model M_{t}": path for t, path in enumerate(given.forward)}}
    histories = {name: pd.read_csv(path, sep="\t") for name, path in paths.items()}
    plots.funnel(pd.read_csv(given.funnel, sep="\t"), made.funnel)
    plots.scores(rated, kept, snakemake.params.keep["signal"], made.scores)
    plots.lengths(rated, kept, made.lengths)
    plots.length_by_rating(rated, snakemake.params.keep["signal"], made.by_rating)
    plots.heldout(pd.read_csv(given.heldout, sep="\t"), made.heldout)
    plots.training(histories, made.training)
