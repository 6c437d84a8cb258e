from backtranslation import audit, logs, records

with logs.job(snakemake.log[0]):
    params = snakemake.params
    verdict = audit.verdict(records.read_json(snakemake.input.figures), params.signal, params.floor)
    logs.logger.info("%s%s", "" if verdict["passed"] else "BELOW THE FLOOR: ", verdict["text"])
    if params.on_fail == "stop" and not verdict["passed"]:
        raise audit.AuditError(f"audit: the judge is not to be believed, {verdict['text']}; see judge and audit.floor")
    records.write_json(verdict, snakemake.output.verdict)
