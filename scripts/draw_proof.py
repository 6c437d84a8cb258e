import pandas as pd

from backtranslation import logs, plots, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    summary = records.read_json(given.summary)
    arms = pd.read_csv(given.arms, sep="\t", dtype={"seed": str})
    plots.quality(arms, summary, snakemake.params.drawn or summary["measure"], snakemake.output.quality)
    plots.differences(pd.read_csv(given.comparisons, sep="\t"), summary, snakemake.output.differences)
