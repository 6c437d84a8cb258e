import gc
from pathlib import Path

import pandas as pd

from backtranslation import engines, evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base = models.folder_of(given.manifest)
    template = Template(models.load_tokenizer(base), params.template)
    options = {"stop_id": template.stop_id, "batch_tokens": params.batch_tokens, **params.precision}
    backward, forward = records.read(given.backward_examples), records.read(given.forward_examples)
    backward_adapter, forward_adapter = Path(given.backward_adapter).parent, Path(given.forward_adapter).parent
    identities = [models.identity(given.manifest, trained) for trained in (backward_adapter, forward_adapter)]
    shape = [backward, forward, identities, models.computed_in(params.precision["dtype"]), records.code_of(given.code)]
    work = records.WorkFile(Path(snakemake.output.table).parent / ".work", ["evaluate", *shape, template.jinja, *params])

    engine = engines.TransformersEngine(base, **options)
    base_backward = evaluation.losses(backward, engine, template, work, "base backward")
    losses = {"base": evaluation.losses(forward, engine, template, work, "base forward")}
    base_answers = evaluation.answers(forward[: params.answers], engine, template, work, "base answers")
    # Each is let go before the next is loaded, so that they are not in memory together.
    del engine
    gc.collect()
    engine = engines.TransformersEngine(base, adapter=backward_adapter, **options)
    tuned_backward = evaluation.losses(backward, engine, template, work, "tuned backward")
    del engine
    gc.collect()
    # Not the merged model: 4 bits of it would be those of the base model again, without what training added.
    engine = engines.TransformersEngine(base, adapter=forward_adapter, **options)
    answers = evaluation.answers(forward[: params.answers], engine, template, work, "forward answers")

    losses |= {f"M_{t}": pd.read_csv(path, sep="\t")["loss"].to_numpy() for t, path in enumerate(given.forward_losses)}
    table = [evaluation.compare("backward", "base", "true instruction", base_backward, tuned_backward, params.random_seed)]
    for t in range(len(given.forward_losses)):
        # Each against the base model, M_0 and the one before.
        for other in dict.fromkeys(["base", *(["M_0", f"M_{t - 1}"] if t else [])]):
            table.append(evaluation.compare(f"M_{t}", other, "true response", losses[other], losses[f"M_{t}"], params.random_seed))
    pairs = pd.DataFrame({"id": [row["id"] for row in forward], "backward_base": base_backward, "backward_tuned": tuned_backward, **losses})
    records.write_table(pairs, snakemake.output.pairs)
    records.write_jsonl(
        [
            {"id": row["id"], "prompt": row["prompt"], "base": old, "forward": new, "human": row["completion"]}
            for row, old, new in zip(forward, base_answers, answers, strict=False)
        ],
        snakemake.output.answers,
    )
    records.write_table(pd.DataFrame(table).round(4), snakemake.output.table)
    work.clear()
