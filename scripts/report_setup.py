import platform
import re
from importlib import metadata
from pathlib import Path

from backtranslation import logs, pages, records

PACKAGES = ("snakemake", "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "vllm", "datasets", "pandas", "pyarrow")

with logs.job(snakemake.log[0]):
    given = snakemake.input
    models = []
    # The base model judges too, unless a fixed judge was asked for.
    for path, role in {given.judge: "judge", given.manifest: "base model"}.items():
        manifest = records.read_json(path)
        models += [(role, manifest["name"]), ("revision", manifest["revision"] or "none"), *((f"sha256 of {file}", digest) for file, digest in manifest["files"].items())]
    data = []
    for name in ("train", "heldout", "segments", "sample"):
        path = getattr(given, name)
        ids = sorted(row for batch in records.batches(path, ["id"]) for row in batch.column(0).to_pylist())
        data.append((f"{name}.parquet", f"{len(ids):,} rows, fingerprint {records.fingerprint(ids)}"))
    pinned = {package: f"{version}, pinned in envs/{Path(path).name}" for path in given.environments for package, version in re.findall(r"- ([\w-]+)==(\S+)", Path(path).read_text())}
    versions = [("python", platform.python_version())]
    for package in PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            if package in pinned:
                versions.append((package, pinned[package]))
    tables = {"Models": models, "Data": data, "Versions": versions, "Configuration": pages.flat(snakemake.params.config)}
    pages.setup(tables, snakemake.output.page)
