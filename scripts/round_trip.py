from pathlib import Path

import pandas as pd

from backtranslation import evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    given, params = snakemake.input, snakemake.params
    base, adapter = models.folder_of(given.manifest), Path(given.adapter).parent
    template = Template(models.load_tokenizer(base), params.template)
    sample = [row for row in records.read(given.sample) if row["true_instruction"]]
    pairs = {
        "held-out seed": records.read(given.heldout),
        "corpus": [{**row, "instruction": row["true_instruction"], "response": row["text"]} for row in sample],
    }
    chosen = {name: rows[: params.pairs] for name, rows in pairs.items() if rows}
    shape = [chosen, models.identity(given.manifest, adapter), models.computed_in(params.precision["dtype"]), records.code_of(given.code)]
    work = records.WorkFile(Path(snakemake.output.table).parent / ".work", ["round trip", *shape, template.jinja, *params])
    table, written = evaluation.round_trip(
        chosen,
        base,
        adapter,
        template,
        params.prompt["text"],
        params.max_new_tokens,
        params.batch_tokens,
        params.precision,
        params.random_seed,
        params.embedding,
        work,
    )
    records.write_jsonl(written, snakemake.output.written)
    records.write_table(pd.DataFrame(table).round(4), snakemake.output.table)
    work.clear()
