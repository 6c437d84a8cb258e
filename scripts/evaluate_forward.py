from pathlib import Path

import pandas as pd

from backtranslation import engines, evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base, adapter = models.folder_of(given.manifest), Path(given.adapter).parent
    template = Template(models.load_tokenizer(base), params.template)
    examples = records.read(given.examples)
    engine = engines.TransformersEngine(base, template.stop_id, adapter, batch_tokens=params.batch_tokens, **params.precision)
    shape = [examples, models.identity(given.manifest, adapter), models.computed_in(params.precision["dtype"])]
    shape += [records.code_of(given.code), template.jinja, *params]
    work = records.WorkFile(Path(snakemake.output.losses).parent / ".work", shape)
    losses = pd.DataFrame({"id": [row["id"] for row in examples], "loss": evaluation.losses(examples, engine, template, work)})
    records.write_table(losses, snakemake.output.losses)
    work.clear()
