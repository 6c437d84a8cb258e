from pathlib import Path

from backtranslation import logs, models

with logs.job(snakemake.log[0], online=True):
    models.fetch(snakemake.params.model, Path(snakemake.output.manifest))
