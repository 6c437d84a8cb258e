from collections import Counter

from backtranslation import funnel, logs, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    # What belongs to the corpus may be larger than the memory: only its counts are read.
    counts = {name: records.count(path) for name, path in given.items() if name not in ("code", "corpus_counts")}
    drops = {name: funnel.reasons_of(path) for name, path in given.items() if name.endswith("_drops")}
    corpus = records.read_json(given.corpus_counts)
    by_stage = {stage: Counter() for stage in ("read", "segment", "deduplicate")}
    for (stage, reason), rows in drops["segment_drops"].items():
        by_stage[stage][stage, reason] = rows
    seed_pairs = counts["train"] + counts["heldout"]
    table = funnel.funnel(
        [
            ("seed", "read pairs", seed_pairs + counts["seed_drops"], drops["seed_drops"], seed_pairs),
            ("documents", "read corpus", corpus["rows"], by_stage["read"], corpus["rows"] - corpus["unread"]),
            ("corpus", "cut and filter", corpus["pieces"], by_stage["segment"], corpus["segments"]),
            ("corpus", "deduplicate", corpus["segments"], by_stage["deduplicate"], counts["segments"]),
            ("corpus", "sample", counts["segments"], drops["sample_drops"], counts["sample"]),
            ("candidates", "gate", counts["sample"] * snakemake.params.candidates, drops["gate_drops"], counts["candidates"]),
            ("candidates", "curate", counts["candidates"], drops["curation_drops"], counts["curated"]),
            ("backward", "train", counts["train"], drops["backward_drops"], counts["train"] - counts["backward_drops"]),
            ("forward", "train", counts["mixed"], drops["forward_drops"], counts["mixed"] - counts["forward_drops"]),
        ]
    )
    logs.logger.info("\n%s", table.to_string(index=False))
    kept = {row["id"] for row in records.read(given.curated)}
    statistics = funnel.signal_statistics(records.read(given.rated), kept, (*records.SIGNALS, "combination"), snakemake.params.signal)
    reasons = funnel.reasons(sum(drops.values(), Counter()))
    for frame, path in ((reasons, snakemake.output.reasons), (statistics.round(4), snakemake.output.signals), (table, snakemake.output.funnel)):
        records.write_table(frame, path)
