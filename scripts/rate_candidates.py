from pathlib import Path

from backtranslation import audit, judge, logs, records

with logs.job(snakemake.log[0]):
    given, config = snakemake.input, snakemake.config
    # From the configuration and not from params, since another floor rates none again.
    audit.hold(records.read_json(given.figures), config["curation"]["keep"]["signal"], config["audit"]["floor"], config["audit"]["on_fail"])
    shard, shards = map(int, snakemake.wildcards.scatteritem.split("-of-"))
    candidates = records.read(given.candidates)[shard - 1 :: shards]
    asked, shape = judge.configured(given, snakemake.params.judge, snakemake.resources.gpu)
    content = [[row["id"], row["instruction"]] for row in candidates]
    work = records.WorkFile(Path(snakemake.output[0]).parent / ".work", ["signals", shape, records.code_of(given.code), content])
    rated = judge.rate(candidates, asked, work, records.read(given.earlier) if given.earlier else None)
    records.write(rated, records.RATED, snakemake.output.rated)
    work.clear()
