from pathlib import Path

from backtranslation import exports, logs, records

with logs.job(snakemake.log[0]):
    rows = records.read(snakemake.input.curated)
    exports.write_all(rows, snakemake.params.tags["augmented"], Path(snakemake.output.parquet).parent)
    logs.logger.info("%d pairs", len(rows))
