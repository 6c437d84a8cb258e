from pathlib import Path

from backtranslation import costs, logs, plots, records

with logs.job(snakemake.log[0]):
    # The benchmarks and logs of the run so far, whichever rules it has, lie beside this log file.
    run = Path(snakemake.log[0]).parents[1]
    table = costs.costs(run / "benchmarks", run / "logs")
    logs.logger.info("\n%s", table.to_string(index=False))
    plots.costs(table, snakemake.output.figure)
    records.write_table(table.round(3), snakemake.output.table)
