from pathlib import Path

from backtranslation import augment, engines, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    params = snakemake.params
    shard, shards = map(int, snakemake.wildcards.scatteritem.split("-of-"))
    segments = records.read(snakemake.input.sample)[shard - 1 :: shards]
    base, adapter = models.folder_of(snakemake.input.manifest), Path(snakemake.input.adapter).parent
    template = Template(models.load_tokenizer(base), params.template)
    settings = params.generation
    sampling = engines.Sampling(settings["max_new_tokens"], settings["temperature"], settings["top_p"])
    work = records.WorkFile(
        Path(snakemake.output[0]).parent / ".work",
        [
            "instructions",
            records.code_of(snakemake.input.code),
            models.identity(snakemake.input.manifest, adapter),
            params.engine,
            params.precision,
            models.computed_in(params.precision["dtype"]),
            params.prompt["text"],
            settings,
            params.random_seed,
            template.jinja,
            [row["id"] for row in segments],
        ],
    )
    candidates = augment.write_instructions(
        segments,
        lambda: engines.load(
            params.engine,
            base,
            template.stop_id,
            adapter,
            batch_tokens=settings["batch_tokens"],
            gpus=snakemake.resources.gpu,
            **params.precision,
        ),
        template,
        params.prompt["text"],
        sampling,
        params.random_seed,
        work,
        settings["candidates"],
    )
    records.write(candidates, records.CANDIDATES, snakemake.output.candidates)
    work.clear()
