"""A few faults of benchmarks/drill.py on one rule that asks a model and one that makes the data; prints what became of each as JSON.

In a process of its own, since it forks, and without Snakemake, which takes longer than all it does here.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "scripts")]

import drill  # noqa: E402
from conftest import make_chatml_tokenizer, pair, tiny_llama  # noqa: E402

from backtranslation import models, records  # noqa: E402

PREAMBLE = """
from types import SimpleNamespace
from snakemake.iocontainers import Namedlist
given, made, params = (Namedlist(fromdict=part) for part in {parts!r})
snakemake = SimpleNamespace(input=given, output=made, params=params, log=[{log!r}])
"""
TRIES = {
    "measure_arm": ["SIGKILL", "out of memory", "corrupted partial work", "two copies at once", "disk full"],
    "ingest_seed": ["SIGKILL", "disk full", "read-only folder"],
}


def job(rule: str, given: dict[str, Any], made: dict[str, str], params: dict[str, Any]) -> drill.Job:
    """The job of a rule's own script, with the bytes that it makes undisturbed."""
    script = Path(f"{rule}.py")
    text = (ROOT / "scripts" / script).read_text()
    script.write_text(PREAMBLE.format(parts=[given, made, params], log=f"{rule}.log") + text)
    assert drill.finish(drill.start(drill.Job(rule, script, {}, Path()), Path(f"{rule}.notes"))) == 0, Path(f"{rule}.log").read_text()
    outputs = {path: path.read_bytes() for path in map(Path, made.values())}
    return drill.Job(rule, script, outputs, Path(f"{rule}.log"))


def jobs() -> list[drill.Job]:
    records.write_jsonl([pair(n) for n in range(1, 400)], "seed.jsonl")
    pairs = [{**pair(n), "set": "seed", "other": "What is it?", "near": f"Which is number {n}?"} for n in range(1, 13)]
    records.write(pairs, records.MEASURED, "heldout.parquet")
    records.write([], records.EXAMPLES, "examples.parquet")
    model = tiny_llama(Path("model"), make_chatml_tokenizer())
    models.fetch({"kind": "path", "name": str(model), "revision": None}, Path("manifest.json"))
    measured = job(
        "measure_arm",
        {"heldout": "heldout.parquet", "examples": "examples.parquet", "adapter": [], "manifest": "manifest.json", "code": []},
        {"values": "proof/values.tsv", "answers": "proof/answers.jsonl"},
        {
            "precision": {"dtype": "float32", "quantization": "none"},
            "template": "auto",
            "tags": {"seed": "Be brief.", "augmented": None},
            "batch_tokens": 600,
            "cell": {"arm": "base", "n": "0", "seed": "0"},
            "answers": 4,
            "answer_tokens": 32,
        },
    )
    ingested = job(
        "ingest_seed",
        {},
        {"train": "seed/train.parquet", "heldout": "seed/heldout.parquet", "dropped": "seed/dropped.parquet"},
        {
            "seed": {"sources": [{"path": "seed.jsonl", "layout": "columns", "language": None}], "heldout": 0.1},
            "decontamination": {"prompts": [], "heldout": True, "words": 12},
            "random_seed": 42,
        },
    )
    return [measured, ingested]


def main(folder: Path, notes: Path) -> list[dict[str, Any]]:
    os.chdir(folder)
    dice, rows = random.Random(5), []
    for tried in jobs():
        drill.measure(tried, notes / tried.rule)
        for fault in TRIES[tried.rule]:
            if os.path.ismount(folder) or fault not in drill.MOUNTED:
                rows += drill.drawn(drill.strike, fault, tried, notes / f"{tried.rule} {fault}", dice)[0]
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "run").mkdir()
        (Path(made) / "notes").mkdir()
        with drill.small_disk(Path(made) / "run") as disk:
            print(json.dumps(main(disk, Path(made) / "notes")))
