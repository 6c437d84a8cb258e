import pandas as pd

from backtranslation import logs, plots, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    judge = records.read_json(given.judge)
    plots.win_rates(pd.read_csv(given.arms, sep="\t", dtype={"seed": str}), judge, made.figure)
    with records.atomic(made.judge) as temporary:
        pd.Series(judge).rename_axis("what").rename("value").to_csv(temporary, sep="\t")
