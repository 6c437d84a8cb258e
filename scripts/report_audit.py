import pandas as pd

from backtranslation import audit, logs, plots, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    table, rated = pd.read_csv(given.table, sep="\t"), records.read(given.rated)
    figures, verdict = records.read_json(given.figures), records.read_json(given.verdict)
    records.write_json(figures, snakemake.output.figures)
    plots.audit(table, verdict, snakemake.output.aurocs)
    plots.roc({name: audit.roc(rated, name) for name in table["signal"].unique()}, table, verdict, snakemake.output.roc)
    calibration = audit.calibration(rated, snakemake.params.random_seed)
    plots.reliability(pd.read_csv(given.reliability, sep="\t"), calibration, snakemake.output.reliability)
    records.write_table(audit.lines(figures, verdict), snakemake.output.lines)
