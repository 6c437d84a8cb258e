from pathlib import Path

from backtranslation import engines, logs, models, pairwise, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base = models.folder_of(given.judge)
    template = Template(models.load_tokenizer(base), params.template)
    if given.preferences:
        preferences = pairwise.preferences(given.preferences)
    else:
        pairs = [row for row in records.read(given.heldout) if row["set"] == "seed"]
        preferences = [
            {"instruction": row["instruction"], "chosen": row["response"], "rejected": pairs[at - 1]["response"]}
            for at, row in enumerate(pairs)
        ]
    engine = engines.TransformersEngine(base, template.stop_id, batch_tokens=params.batch_tokens, **params.precision)
    shape = [preferences, models.identity(given.judge), models.computed_in(params.precision["dtype"]), records.code_of(given.code)]
    work = records.WorkFile(Path(snakemake.output.figures).parent / ".work", ["pairwise", *shape, template.jinja, *params])
    figures = pairwise.audited(preferences, engine, template, params.random_seed, work)
    figures = {"on": "preferences of people" if given.preferences else "true responses against those of other pairs", **figures}
    logs.logger.info("%s", figures)
    records.write_json(figures, snakemake.output.figures)
    work.clear()
