import gc
import os
from pathlib import Path

import pandas as pd

from backtranslation import harness, logs, models, records
from backtranslation.templates import Template, both_tags

# A sign of progress every five seconds and not ten in each; read when tqdm is imported.
os.environ["TQDM_MININTERVAL"] = "5"

with logs.job(snakemake.log[0]):
    given, params, output = snakemake.input, snakemake.params, snakemake.output
    base = models.folder_of(given.manifest)
    template = Template(models.load_tokenizer(base), params.template)
    shape = [[records.sha256_of(Path(path)) for path in given.tasks], models.computed_in(params.precision["dtype"]), records.code_of(given.code)]
    options = [both_tags(params.tags), params.batch_tokens, params.precision, params.limit, params.random_seed]
    results, works = {}, []
    with records.scratch(Path(output.table).parent) as cache:
        tasks = harness.load(params.folder and Path(params.folder), params.names, cache)
        for name, adapter in (("base", None), ("forward", Path(given.adapter).parent)):
            identity = models.identity(given.manifest, adapter)
            works.append(records.WorkFile(Path(output.table).parent / ".work", ["harness", *shape, identity, template.jinja, *options]))
            results[name] = harness.measure(tasks, base, adapter, template, *options, works[-1])
            # Let go before the next one is loaded, so that they are not in memory together.
            gc.collect()
    rows = harness.table(results)
    for row in rows:
        logs.logger.info("%s", row)
    records.write_json(results, output.json)
    records.write_table(pd.DataFrame(rows), output.table)
    for work in works:
        work.clear()
