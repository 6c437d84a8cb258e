from backtranslation import funnel, logs, records

with logs.job(snakemake.log[0]):
    given = {name: records.read(path) for name, path in snakemake.input.items() if name != "code"}
    seed_pairs = [*given["train"], *given["heldout"]]
    read = {(row["source"], row["row"]) for row in [*given["segments"], *given["segment_drops"]] if row.get("stage") != "read"}
    unread = [row for row in given["segment_drops"] if row["stage"] == "read"]
    uncut = [row for row in given["segment_drops"] if row["stage"] != "read"]
    counts = {name: len(rows) for name, rows in given.items()}
    table = funnel.funnel(
        [
            ("seed", "read pairs", len(seed_pairs) + counts["seed_drops"], given["seed_drops"], len(seed_pairs)),
            ("documents", "read corpus", len(read) + len(unread), unread, len(read)),
            ("corpus", "cut and filter", counts["segments"] + len(uncut), uncut, counts["segments"]),
            ("corpus", "sample", counts["segments"], given["sample_drops"], counts["sample"]),
            ("candidates", "gate", counts["sample"] * snakemake.params.candidates, given["gate_drops"], counts["candidates"]),
            ("candidates", "curate", counts["candidates"], given["curation_drops"], counts["curated"]),
            ("backward", "train", counts["train"], given["backward_drops"], counts["train"] - counts["backward_drops"]),
            ("forward", "train", counts["mixed"], given["forward_drops"], counts["mixed"] - counts["forward_drops"]),
        ]
    )
    logs.logger.info("\n%s", table.to_string(index=False))
    dropped = [row for name, rows in given.items() if name.endswith("_drops") for row in rows]
    statistics = funnel.signal_statistics(given["rated"], {row["id"] for row in given["curated"]}, (*records.SIGNALS, "combination"), snakemake.params.signal)
    for frame, path in ((funnel.reasons(dropped), snakemake.output.reasons), (statistics.round(4), snakemake.output.signals), (table, snakemake.output.funnel)):
        with records.atomic(path) as temporary:
            frame.to_csv(temporary, sep="\t", index=False)
