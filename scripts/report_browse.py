from backtranslation import browse, logs, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    collected = browse.collect(
        records.read(given.rated), records.read(given.dropped), records.read(given.gate_drops), records.read_jsonl(given.round_trip)
    )
    browse.page(collected, snakemake.output.page)
