from pathlib import Path

from backtranslation import engines, logs, models, pairwise, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base = models.folder_of(given.judge)
    template = Template(models.load_tokenizer(base), params.template)
    engine = engines.TransformersEngine(base, template.stop_id, batch_tokens=params.batch_tokens, **params.precision)
    answers = zip(records.read_jsonl(given.own), records.read_jsonl(given.other[0]), strict=True)
    rows = [{"id": own["id"], "instruction": own["prompt"], "own": own["answer"], "other": other["answer"]} for own, other in answers]
    shape = [rows, models.identity(given.judge), models.computed_in(params.precision["dtype"]), records.code_of(given.code)]
    work = records.WorkFile(Path(snakemake.output.wins).parent / ".work", ["judge", *shape, template.jinja, *params])
    wins = pairwise.compare(rows, engine, template, work)
    with records.atomic(snakemake.output.wins) as temporary:
        wins.assign(**{"size" if name == "n" else name: value for name, value in params.cell.items()}).to_csv(temporary, sep="\t", index=False)
    work.clear()
