from pathlib import Path

from backtranslation import engines, leaderboards, logs, models, records
from backtranslation.templates import Template, both_tags

with logs.job(snakemake.log[0]):
    given, params, output = snakemake.input, snakemake.params, Path(snakemake.output[0])
    board = snakemake.rule.removeprefix("answer_")
    questions = getattr(leaderboards, board)(Path(given.questions))
    base, adapter = models.folder_of(given.manifest), Path(given.adapter).parent
    template = Template(models.load_tokenizer(base), params.template)
    # Not the merged model: 4 bits of it would be those of the base model again, without what training added.
    engine = engines.TransformersEngine(base, template.stop_id, adapter, batch_tokens=params.batch_tokens, **params.precision)
    system = both_tags(params.tags)
    shape = [[question.row for question in questions], models.identity(given.manifest, adapter), models.computed_in(params.precision["dtype"])]
    work = records.WorkFile(output.parent / ".work", [*shape, records.code_of(given.code), template.jinja, *params])
    answers = leaderboards.answer(questions, engine, template, system, params.max_new_tokens, params.random_seed, work)
    if board == "alpaca_eval":
        records.write_json(leaderboards.as_model_outputs(questions, answers, params.name), output)
    else:
        records.write_jsonl(leaderboards.as_model_answers(questions, answers, params.name), output)
    work.clear()
