from pathlib import Path

from backtranslation import engines, evaluation, logs, models, proof, records
from backtranslation.templates import Template, both_tags

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base = models.folder_of(given.manifest)
    template = Template(models.load_tokenizer(base), params.template)
    adapter = Path(given.adapter).parent if given.adapter else None
    engine = engines.TransformersEngine(base, template.stop_id, adapter, batch_tokens=params.batch_tokens, **params.precision)
    system = both_tags(params.tags)
    pairs = proof.fitting(records.read(given.heldout), engine, template, system, params.answer_tokens if params.answers else 0)
    shape = [pairs, models.identity(given.manifest, adapter), models.computed_in(params.precision["dtype"])]
    shape += [records.code_of(given.code), template.jinja, *params]
    work = records.WorkFile(Path(snakemake.output.values).parent / ".work", ["measure", *shape])
    values = proof.measure(pairs, engine, template, system, work)
    asked = [{"id": row["id"], "prompt": row["instruction"], "system": system} for row in pairs if row["set"] == "seed"][: params.answers]
    answers = evaluation.answers(asked, engine, template, work, "answer", params.answer_tokens) if asked else []
    added = sum(row["origin"] == "augmented" for row in records.read(given.examples))
    cell = {"size": params.cell["n"], **params.cell, "n": added}
    records.write_jsonl(
        [{"id": row["id"], "prompt": row["prompt"], "answer": answer} for row, answer in zip(asked, answers, strict=True)],
        snakemake.output.answers,
    )
    records.write_table(values.assign(**cell), snakemake.output.values)
    work.clear()
