import pandas as pd

from backtranslation import logs, plots, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    judge = records.read_json(given.judge)
    plots.win_rates(pd.read_csv(given.arms, sep="\t", dtype={"seed": str}), judge, made.figure)
    records.write_table(pd.DataFrame(judge.items(), columns=["what", "value"]), made.judge)
