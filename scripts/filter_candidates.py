from backtranslation import judge, logs, records

with logs.job(snakemake.log[0]):
    keep, made = snakemake.params.keep, snakemake.output
    rated = [row for shard in snakemake.input.shards for row in records.read(shard)]
    records.settle("rate", records.read(snakemake.input.candidates), rated, [])
    rated.sort(key=lambda row: row["id"])
    combined = judge.combine(rated, records.read_json(snakemake.input.combination))
    rated = [{**row, "combination": float(p)} for row, p in zip(rated, combined, strict=True)]
    best, others = judge.best_of(rated, keep["signal"])
    kept, low = judge.keep(best, keep["signal"], keep["rule"], keep["value"])
    records.settle("curate", rated, kept, [*others, *low])
    records.write(rated, records.RATED, made.rated)
    records.write([*others, *low], records.DROPPED, made.dropped)
    records.write(kept, records.RATED, made.curated)
