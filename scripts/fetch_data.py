from pathlib import Path

from backtranslation import logs, sources

with logs.job(snakemake.log[0], online=True):
    sources.fetch(snakemake.params.source, Path(snakemake.output.rows))
