from backtranslation import browse, logs, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    ids, total = browse.lowest([given.rated, given.gate_drops])
    rated, dropped, gated = (records.read(given[name], ids) for name in ("rated", "dropped", "gate_drops"))
    written = [row for shard in given.written for row in records.read(shard, ids)]
    collected = browse.collect(rated, dropped, gated, written, records.read_jsonl(given.round_trip), total)
    browse.page(collected, snakemake.output.page)
