from pathlib import Path

from backtranslation import engines, judge, logs, models, records
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    params = snakemake.params
    shard, shards = map(int, snakemake.wildcards.scatteritem.split("-of-"))
    candidates = records.read(snakemake.input.candidates)[shard - 1 :: shards]
    rubric = Path(snakemake.input.rubric).read_text(encoding="utf-8")
    base = models.folder_of(snakemake.input.manifest)
    template = Template(models.load_tokenizer(base), params.template)
    work = records.WorkFile(
        Path(snakemake.output[0]).parent / ".work",
        [
            "ratings",
            models.identity(snakemake.input.manifest),
            params.engine,
            params.precision,
            params.batch_tokens,
            rubric,
            template.jinja,
            [[row["id"], row["instruction"]] for row in candidates],
        ],
    )
    rated = judge.rate(
        candidates,
        lambda: engines.load(
            params.engine,
            base,
            template.stop_id,
            batch_tokens=params.batch_tokens,
            gpus=snakemake.resources.gpu,
            **params.precision,
        ),
        template,
        rubric,
        params.batch_tokens,
        work,
    )
    records.write(rated, records.RATED, snakemake.output.rated)
    work.clear()
