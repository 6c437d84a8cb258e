import pandas as pd

from backtranslation import audit, logs, plots, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    figures, verdict = records.read_json(given.figures), records.read_json(given.verdict)
    records.write_json(figures, snakemake.output.figures)
    plots.audit(pd.read_csv(given.table, sep="\t"), verdict, snakemake.output.aurocs)
    plots.reliability(pd.read_csv(given.reliability, sep="\t"), snakemake.output.reliability)
    with records.atomic(snakemake.output.lines) as temporary:
        audit.lines(figures, verdict).to_csv(temporary, sep="\t", index=False)
