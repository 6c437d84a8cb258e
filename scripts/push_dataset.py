from pathlib import Path

from backtranslation import hub, logs, records

with logs.job(snakemake.log[0], online=True):
    params = snakemake.params
    files = [Path(path) for path in snakemake.input.files]
    records.write_json(hub.push(files, params.repo, params.kind, params.private), snakemake.output.pushed)
