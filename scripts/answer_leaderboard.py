from pathlib import Path

from backtranslation import engines, leaderboards, logs, models, records
from backtranslation.templates import Template, both_tags

with logs.job(snakemake.log[0]):
    given, params, output = snakemake.input, snakemake.params, Path(snakemake.output[0])
    board = snakemake.rule.removeprefix("answer_")
    questions = getattr(leaderboards, board)(Path(given.questions))
    # As users get it: from its own folder, with its own template.
    folder = Path(given.model).parent
    template = Template(models.load_tokenizer(folder))
    engine = engines.TransformersEngine(folder, template.stop_id, batch_tokens=params.batch_tokens, **params.precision)
    system = both_tags(params.tags)
    shape = [[question.row for question in questions], models.identity(given.manifest, folder), models.computed_in(params.precision["dtype"])]
    work = records.WorkFile(output.parent / ".work", [*shape, records.code_of(given.code), template.jinja, *params])
    answers = leaderboards.answer(questions, engine, template, system, params.max_new_tokens, params.random_seed, work)
    if board == "alpaca_eval":
        records.write_json(leaderboards.as_model_outputs(questions, answers, params.name), output)
    else:
        records.write_jsonl(leaderboards.as_model_answers(questions, answers, params.name), output)
    work.clear()
