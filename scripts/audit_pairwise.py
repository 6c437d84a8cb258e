from pathlib import Path

from backtranslation import labels, logs, pairwise, records

with logs.job(snakemake.log[0], online=bool(snakemake.params.served)):
    given, params = snakemake.input, snakemake.params
    if given.preferences:
        preferences = labels.read_preferences(given.preferences)
    else:
        preferences = pairwise.true_against_others([row for row in records.read(given.heldout) if row["set"] == "seed"])
    judge, identity = pairwise.load_judge(params.served, given.judge, params.template, params.batch_tokens, params.precision)
    shape = [preferences, *identity, records.code_of(given.code)]
    work = records.WorkFile(Path(snakemake.output.figures).parent / ".work", ["pairwise", *shape, *params])
    figures = pairwise.audited(preferences, judge, params.random_seed, work)
    figures = {"on": "preferences of people" if given.preferences else "true responses against those of other pairs", **figures}
    logs.logger.info("%s", figures)
    records.write_json(figures, snakemake.output.figures)
    work.clear()
