from pathlib import Path

import pandas as pd

from backtranslation import engines, evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    params = snakemake.params
    base = models.folder_of(snakemake.input.manifest)
    template = Template(models.load_tokenizer(base), params.template)
    options = {"stop_id": template.stop_id, "batch_tokens": params.batch_tokens}
    backward = records.read(snakemake.input.backward_examples)
    forward = records.read(snakemake.input.forward_examples)

    engine = engines.TransformersEngine(base, **options, **params.precision)
    base_backward = evaluation.losses(backward, engine, template)
    base_forward = evaluation.losses(forward, engine, template)
    base_answers = evaluation.answers(forward[: params.answers], engine, template)
    engine = engines.TransformersEngine(base, adapter=Path(snakemake.input.backward_adapter).parent, **options, **params.precision)
    tuned_backward = evaluation.losses(backward, engine, template)
    merged = Path(snakemake.input.forward_model).parent
    # The merged model is measured as users get it: from its own folder, with its own template.
    template = Template(models.load_tokenizer(merged))
    engine = engines.TransformersEngine(merged, **options, **params.precision)
    tuned_forward = evaluation.losses(forward, engine, template)
    tuned_answers = evaluation.answers(forward[: params.answers], engine, template)

    seed = params.random_seed
    table = [
        evaluation.compare("backward", "loss of the true instruction", base_backward, tuned_backward, seed),
        evaluation.compare("forward", "loss of the true response", base_forward, tuned_forward, seed),
    ]
    pairs = pd.DataFrame(
        {
            "id": [row["id"] for row in forward],
            "backward_base": base_backward,
            "backward_tuned": tuned_backward,
            "forward_base": base_forward,
            "forward_tuned": tuned_forward,
        }
    )
    with records.atomic(snakemake.output.pairs) as temporary:
        pairs.to_csv(temporary, sep="\t", index=False)
    records.write_jsonl(
        [
            {"id": row["id"], "prompt": row["prompt"], "base": old, "forward": new, "human": row["completion"]}
            for row, old, new in zip(forward, base_answers, tuned_answers, strict=False)
        ],
        snakemake.output.answers,
    )
    with records.atomic(snakemake.output.table) as temporary:
        pd.DataFrame(table).round(4).to_csv(temporary, sep="\t", index=False)
