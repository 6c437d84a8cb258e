from backtranslation import audit, logs, records

with logs.job(snakemake.log[0]):
    params = snakemake.params
    verdict = audit.hold(records.read_json(snakemake.input.figures), params.signal, params.floor, params.on_fail)
    records.write_json(verdict, snakemake.output.verdict)
