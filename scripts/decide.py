import pandas as pd

from backtranslation import audit, iterating, logs, records

with logs.job(snakemake.log[0]):
    stop, signal = snakemake.params.stop, snakemake.params.signal
    if stop["signal"] == "audit":
        found = [audit.overall(records.read_json(path), signal)["auroc"] for path in snakemake.input.measured]
        # Who has no value knows as much as a coin.
        values = [0.5 if value is None else value for value in found]
    else:
        values = [float(pd.read_csv(path, sep="\t")["loss"].mean()) for path in snakemake.input.measured]
    decision = iterating.decide(values, stop["signal"] == "audit", stop["patience"])
    verdict = "no further iteration" if decision["stop"] else "goes on"
    logs.logger.info("%s of M_0 to M_%d: %s; %s, the best is M_%d", stop["signal"], len(values) - 1, values, verdict, decision["best"])
    records.write_json(decision, snakemake.output.decision)
