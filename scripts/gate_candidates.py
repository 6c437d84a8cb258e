from backtranslation import gate, logs, records

with logs.job(snakemake.log[0]):
    candidates = [row for shard in snakemake.input.shards for row in records.read(shard)]
    # As many candidates for each segment; the first one bears its id.
    records.settle("augment", records.read(snakemake.input.sample), [row for row in candidates if row["id"] == row["segment"]], [])
    kept, dropped = gate.gate(candidates)
    records.settle("gate", candidates, kept, dropped)
    logs.logger.info("%d of %d candidates pass (%.1f %%)", len(kept), len(candidates), 100 * len(kept) / len(candidates))
    if not kept:
        raise ValueError(f"gate: none of {len(candidates)} candidates passes; the backward model writes no usable instruction")
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
    records.write(kept, records.CANDIDATES, snakemake.output.candidates)
