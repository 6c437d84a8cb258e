"""The judge on its own: both rubrics, written verdicts, and people's preferences: `make bench-judge`, after `make demo`.

Rates the demo's held-out pairs and their faults with each rubric of config/rubrics and prints AUROC per
kind; writes verdicts for some of them; and, with a file of Open-Assistant message trees (`make bench-judge
TREES=trees.jsonl`), prints how often each signal agrees with people on which of two answers is
better, beside length. Needs results/demo; writes results/bench/judge.json. Takes about half an hour on two cores.
"""

import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.chdir(ROOT)

import numpy as np  # noqa: E402
import yaml  # noqa: E402

from backtranslation import audit, judge, logs, pairwise, records  # noqa: E402
from backtranslation.labels import read_labels  # noqa: E402

DEMO, OUTPUT = Path("results/demo"), Path("results/bench")
VERDICTS = 28


def measure(name: str, pairs: list[records.Row], rubric: Path, signals: list[str], config: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "signals": signals,
        "generated": config["judge"]["generated"],
        "prompt": config["backward"]["prompt"],
        "template": config["model"]["template"],
        "backward_template": config["model"]["template"],
        "tags": None,
        "engine": config["engine"],
        "precision": config["precision"],
        "batch_tokens": config["generation"]["batch_tokens"],
        "random_seed": config["random_seed"],
    }
    manifest = next(Path("resources/models").glob("*/manifest.json"))
    adapter = DEMO / "backward/adapter/adapter_model.safetensors"
    given = SimpleNamespace(judge=manifest, judge_adapter=None, manifest=manifest, adapter=adapter, rubric=rubric)
    asked, shape = judge.configured(given, settings, 1)
    rated = judge.rate(pairs, asked, records.WorkFile(OUTPUT / ".work", [shape, [row["id"] for row in pairs]]))
    _, held_out = audit.fit(rated, config["random_seed"])
    rated = [{**row, "combination": float(p)} for row, p in zip(rated, held_out, strict=True)]
    table = audit.aurocs(rated, config["random_seed"])
    print(f"\n{name}, {rubric.name}, {len(pairs)} rows", flush=True)
    print(table.pivot(index="signal", columns="kind", values="auroc").round(2).to_string())
    figures = audit.summary(rated, table, config["random_seed"])
    for signal, found in figures.get("preferences", {}).items():
        print(f"pairwise accuracy, {signal}: {found['accuracy']:.3f} ({found['low']:.3f} to {found['high']:.3f}, n {found['n']})")
    if signals == ["rating_generated"]:
        finite = np.isfinite([row["rating_generated"] for row in rated])
        print(f"verdicts with a score: {figures['parse_rate']:.2f}; rows with a value: {finite.sum()} of {len(rated)}")
    return figures


def main(trees: str = "") -> None:
    if not (DEMO / "backward/adapter").exists():
        raise SystemExit("ERROR: results/demo is missing; run `make demo` first")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    pairs = audit.pairs(records.read(DEMO / "seed/heldout.parquet"), config["audit"]["pairs"], config["random_seed"])
    five, additive = Path("config/rubrics/five_levels.txt"), Path("config/rubrics/additive.txt")
    everything = ["rating", "instruction_gain", "backward_gain"]
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logs.logger.setLevel(logging.INFO)
    figures = {"five_levels": measure("held-out pairs", pairs, five, everything, config)}
    figures["additive"] = measure("held-out pairs", pairs, additive, ["rating"], config)
    figures["written"] = measure("written verdicts", pairs[:VERDICTS], five, ["rating_generated"], config)
    if trees:
        records.write_jsonl(pairwise.preferences(trees), OUTPUT / "preferences.jsonl")
        labels = read_labels(OUTPUT / "preferences.jsonl")
        figures["preferences"] = measure("preferences", labels, five, everything, config)
    records.write_json(figures, OUTPUT / "judge.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
