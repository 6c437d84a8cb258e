from backtranslation import browse, logs, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    rated, dropped, gated = (records.read(given[name]) for name in ("rated", "dropped", "gate_drops"))
    written = [row for shard in given.written for row in records.read(shard)]
    collected = browse.collect(rated, dropped, gated, written, records.read_jsonl(given.round_trip))
    browse.page(collected, snakemake.output.page)
