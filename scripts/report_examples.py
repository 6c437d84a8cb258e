from backtranslation import logs, pages, records

with logs.job(snakemake.log[0]):
    given = snakemake.input
    pages.examples(
        records.read(given.rated),
        {row["id"] for row in records.read(given.curated)},
        records.read(given.gate_drops),
        records.read_jsonl(given.answers),
        snakemake.params.keep["signal"],
        snakemake.params.examples,
        snakemake.output.page,
    )
