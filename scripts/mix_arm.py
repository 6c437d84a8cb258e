from collections import Counter

from backtranslation import arms, grid, logs, records

with logs.job(snakemake.log[0]):
    given, params, cell = snakemake.input, snakemake.params, snakemake.wildcards
    mixed = arms.examples(
        cell.arm,
        int(cell.n) if cell.arm in grid.SIZED else None,
        records.read(given.train),
        records.read(given.rated) if given.rated else [],
        params.signal,
        params.tags,
        params.seed_share,
        int(cell.seed),
    )
    logs.logger.info("%s: %s", cell.arm, dict(Counter(row["origin"] for row in mixed)))
    records.write(mixed, records.EXAMPLES, snakemake.output.examples)
