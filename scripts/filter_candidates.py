from backtranslation import judge, logs, records

with logs.job(snakemake.log[0]):
    keep = snakemake.params.keep
    rated = [row for shard in snakemake.input.shards for row in records.read(shard)]
    records.settle("rate", records.read(snakemake.input.candidates), rated, [])
    rated.sort(key=lambda row: row["id"])
    kept, dropped = judge.keep(rated, keep["signal"], keep["rule"], keep["value"])
    records.settle("curate", rated, kept, dropped)
    records.write(rated, records.RATED, snakemake.output.rated)
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
    columns = ("id", "source", "instruction", "text", *records.SIGNALS)
    records.write_jsonl(({name: row[name] for name in columns} for row in kept), snakemake.output.jsonl)
    records.write(kept, records.RATED, snakemake.output.curated)
