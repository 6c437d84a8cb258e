from pathlib import Path

from backtranslation import evaluation, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    params, adapter = snakemake.params, Path(snakemake.input.adapter).parent
    base, target = models.folder_of(snakemake.input.manifest), Path(snakemake.output[0]).parent
    template = Template(models.load_tokenizer(base), params.template)
    # Beside the model's folder, in which people look and from which it is pushed.
    with records.scratch(target.parent) as scratch:
        merge = models.export(base, adapter, template, scratch, params.into)
        if merge["trained_quantization"] != "none":
            heldout = records.read(snakemake.input.heldout)
            shape = [merge, heldout, models.identity(snakemake.input.manifest, adapter), models.computed_in(merge["dtype"])]
            work = records.WorkFile(target.parent / ".work", [*shape, records.code_of(snakemake.input.code), template.jinja, params.batch_tokens])
            merge |= evaluation.cost_of_merging(heldout, base, adapter, scratch, template, merge, params.batch_tokens, work)
        records.write_json(merge, scratch / "merge.json")
        for path in scratch.iterdir():
            # safetensors writes for the owner alone; a model is there to be shared.
            path.chmod(0o644)
            path.replace(target / path.name)
    if merge["trained_quantization"] != "none":
        work.clear()
