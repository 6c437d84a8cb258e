import shutil
import tempfile
from pathlib import Path

from backtranslation import evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    params, adapter = snakemake.params, Path(snakemake.input.adapter).parent
    base, target = models.folder_of(snakemake.input.manifest), Path(snakemake.output[0]).parent
    template = Template(models.load_tokenizer(base), params.template)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        merge = models.export(base, adapter, template.jinja, Path(scratch), params.into)
        if merge["trained_quantization"] != "none":
            heldout = records.read(snakemake.input.heldout)
            merge |= evaluation.cost_of_merging(heldout, base, adapter, Path(scratch), template, merge, params.batch_tokens)
        records.write_json(merge, Path(scratch) / "merge.json")
        for path in Path(scratch).iterdir():
            # safetensors writes for the owner alone; a model is there to be shared.
            path.chmod(0o644)
            shutil.move(path, target / path.name)
