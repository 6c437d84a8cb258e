import shutil
import tempfile
from pathlib import Path

from backtranslation import logs, models
from backtranslation.templates import Template

with logs.job(snakemake.log[0]):
    base, target = models.folder_of(snakemake.input.manifest), Path(snakemake.output[0]).parent
    jinja = Template(models.load_tokenizer(base), snakemake.params.template).jinja
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        models.export(base, Path(snakemake.input.adapter).parent, jinja, Path(scratch))
        for path in Path(scratch).iterdir():
            # safetensors writes for the owner alone; a model is there to be shared.
            path.chmod(0o644)
            shutil.move(path, target / path.name)
