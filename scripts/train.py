from pathlib import Path

from backtranslation import logs, models, records, training
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    base = models.folder_of(snakemake.input.manifest)
    examples = records.read(snakemake.input.examples)
    kept, dropped = training.train(
        examples,
        records.read(snakemake.input.heldout) if snakemake.input.get("heldout") else [],
        base,
        Template(models.load_tokenizer(base), snakemake.params.template),
        snakemake.params.training,
        snakemake.params.random_seed,
        Path(snakemake.output[0]).parent,
        [models.identity(snakemake.input.manifest), records.code_of(snakemake.input.code)],
        snakemake.config["training"]["checkpoint_steps"],
        snakemake.resources.gpu,
    )
    records.settle("train", examples, kept, dropped)
    records.write(dropped, records.DROPPED, snakemake.output.dropped)
