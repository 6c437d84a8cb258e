from pathlib import Path

from backtranslation import costs, logs, plots, records

with logs.job(snakemake.log[0]):
    given, made = snakemake.input, snakemake.output
    tokens = {
        "train_backward": records.read_json(given.backward)["tokens"],
        "train_forward": sum(records.read_json(path)["tokens"] for path in given.forward),
        "write_instructions": sum(row["tokens"] for row in records.read(given.candidates)),
    }
    # The benchmarks of the run so far, whichever rules it has, lie beside its log files.
    table = costs.costs(Path(snakemake.log[0]).parents[1] / "benchmarks", tokens)
    logs.logger.info("\n%s", table.to_string(index=False))
    plots.costs(table, made.figure)
    with records.atomic(made.table) as temporary:
        table.round(3).to_csv(temporary, sep="\t", index=False)
