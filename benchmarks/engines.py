"""Both engines against the notebook's way, on one machine in one run: `make bench-engines`, after `make demo`.

The notebook's way is the transformers pipeline in float32, built once, one prompt at a time; it rates by
writing a rationale of up to 300 tokens. The ways take turns, a quarter of the rows of the slow one against
all rows of the fast ones, so that drift of the machine cancels. Needs results/demo; writes
results/bench/engines.json. Takes about three quarters of an hour on two cores, most of it the whole demo
once more under another name. `python benchmarks/engines.py scaling overhead` measures these parts again and
leaves the other figures.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.chdir(ROOT)

import yaml  # noqa: E402
from about import about  # noqa: E402

from backtranslation import judge, models, records  # noqa: E402
from backtranslation.templates import Template, fill  # noqa: E402

DEMO, OUTPUT = Path("results/demo"), Path("results/bench")
ROWS, ROUNDS, RATIONALES = 64, 4, 8
RATIONALE = "Explain your verdict briefly, then end with a last line that reads Score: and a number from 1 to 5."
PYTHON = {"vllm": ".venv-vllm/bin/python"}


class Worker:
    """benchmarks/worker.py in a process of its own, which waits for commands."""

    def __init__(self, way: str, dtype: str, task: Path):
        print(f"starting {way} {dtype}", flush=True)
        command = [PYTHON.get(way, sys.executable), "benchmarks/worker.py", way, dtype, str(task)]
        self.log = OUTPUT / f"{way}-{dtype}.log"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"), text=True
        )
        self.load_seconds = self._answer()["load_seconds"]
        self.rounds: list[dict[str, Any]] = []

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise SystemExit(f"ERROR: the worker ended; see {self.log}")

    def run(self, **command: Any) -> dict[str, Any]:
        print(json.dumps(command), file=self.process.stdin, flush=True)
        self.rounds.append(self._answer())
        return self.rounds[-1]

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def make_task(path: Path) -> dict[str, Any]:
    """64 segments of the demo with the prompts for writing and rating, and its training examples."""
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    base = models.folder_of(next(Path("resources/models").glob("*/manifest.json")))
    template = Template(models.load_tokenizer(base), config["model"]["template"])
    rubric = Path(config["judge"]["rubric"]).read_text()
    rated = records.read(DEMO / "curation/rated.parquet")[:ROWS]
    asked = [fill(rubric, instruction=row["instruction"], response=row["text"]) for row in rated]
    task = {
        "base": str(base),
        "adapter": str(DEMO / "backward/adapter"),
        "max_new_tokens": config["generation"]["max_new_tokens"],
        "prompts": [template.prompt(fill(config["backward"]["prompt"], response=row["text"])) for row in rated],
        "rating_prompts": [template.prompt(text, forced=judge.FORCED) for text in asked],
        "rationale_prompts": [template.prompt(f"{text}\n\n{RATIONALE}") for text in asked],
        "segments": [{key: row[key] for key in records.SEGMENTS.names} for row in rated[:50]],
        "prompt": config["backward"]["prompt"],
        "rubric": rubric,
        "training": config["training"],
        "examples": records.read(DEMO / "backward/train_examples.parquet"),
    }
    path.write_text(json.dumps(task))
    return task


def per_row(worker: Worker, rows: int) -> float:
    """Median seconds per row over the rounds."""
    return statistics.median(found["seconds"] for found in worker.rounds) / rows


def generation(task: Path) -> tuple[dict[str, float], list[list[object]]]:
    everything = list(range(ROWS))
    slow = Worker("pipeline", "float32", task)
    fast = [Worker(way, dtype, task) for way in ("transformers", "vllm") for dtype in ("bfloat16", "float32")]
    for worker in fast:
        # Once for warmth: the first pass compiles kernels for each shape.
        worker.run(kind="generate", rows=everything)
        worker.rounds.clear()
    reference: list[str] = []
    for n in range(ROUNDS):
        part = everything[n * ROWS // ROUNDS : (n + 1) * ROWS // ROUNDS]
        reference += slow.run(kind="generate", rows=part)["texts"]
        for worker in fast:
            worker.run(kind="generate", rows=everything)
        print(f"round {n + 1} of {ROUNDS}", flush=True)
    slow_row = sum(found["seconds"] for found in slow.rounds) / ROWS
    tokens = sum(found["tokens"] for found in slow.rounds) / ROWS
    table: list[list[object]] = [["one at a time", "float32", 1 / slow_row, tokens / slow_row, 1.0, slow.rounds[-1]["peak_mb"], 1.0, slow.load_seconds]]
    figures = {}
    for worker, (way, dtype) in zip(fast, [(w, d) for w in ("transformers", "vllm") for d in ("bfloat16", "float32")], strict=True):
        row, last = per_row(worker, ROWS), worker.rounds[-1]
        equal = sum(map(str.__eq__, reference, last["texts"])) / ROWS
        table.append([way, dtype, 1 / row, last["tokens"] / ROWS / row, slow_row / row, last["peak_mb"], equal, worker.load_seconds])
        figures[f"generate_ratio_{way}" + ("" if dtype == "bfloat16" else "_fp32")] = slow_row / row
        if dtype == "float32":
            figures[f"greedy_equal_{way}"] = equal
        figures[f"load_seconds_{way}_{dtype}"] = worker.load_seconds
        worker.end()
    slow.end()
    return figures, table


def rating(task: Path) -> tuple[dict[str, float], list[list[object]]]:
    everything = list(range(ROWS))
    slow = Worker("pipeline", "float32", task)
    fast = {dtype: Worker("judge", dtype, task) for dtype in ("bfloat16", "float32")}
    for n in range(ROUNDS):
        slow.run(kind="rationale", rows=everything[n * RATIONALES // ROUNDS : (n + 1) * RATIONALES // ROUNDS])
        for worker in fast.values():
            worker.run(kind="rate", rows=everything)
        print(f"round {n + 1} of {ROUNDS}", flush=True)
    slow_row = sum(found["seconds"] for found in slow.rounds) / RATIONALES
    parsed = [re.search(r"Score: ([1-5])$", text.strip()) for found in slow.rounds for text in found["texts"]]
    peak = slow.rounds[-1]["peak_mb"]
    plain = slow.run(kind="plain", rows=everything)["ratings"]
    cached = fast["float32"].rounds[-1]["ratings"]
    figures = {
        "rate_ratio": slow_row / per_row(fast["bfloat16"], ROWS),
        "rate_ratio_fp32": slow_row / per_row(fast["float32"], ROWS),
        "rating_cache_max_diff": max(abs(a - b) for a, b in zip(plain, cached, strict=True)),
        "rationales_parsed": sum(map(bool, parsed)) / RATIONALES,
    }
    table: list[list[object]] = [["rationale, one at a time", "float32", 1 / slow_row, 1.0, peak]]
    for dtype, worker in fast.items():
        row = per_row(worker, ROWS)
        table.append(["expected rating", dtype, 1 / row, slow_row / row, worker.rounds[-1]["peak_mb"]])
        worker.end()
    slow.end()
    return figures, table


def training(task: Path) -> tuple[dict[str, float], list[list[object]]]:
    figures, table = {}, []
    for name, dtype in {"fp32": "float32", "bf16": "bfloat16", "nf4": "nf4"}.items():
        worker = Worker("train", dtype, task)
        found = worker.run(examples=32)
        worker.end()
        rate = found["tokens"] / found["train_seconds"]
        figures |= {f"train_tokens_per_s_{name}": rate, f"train_peak_mb_{name}": found["peak_mb"]}
        table.append([name, rate, 1000 / rate, found["peak_mb"]])
    return figures, table


def scaling(task: Path) -> tuple[dict[str, float], list[list[object]]]:
    """Short runs before and after the long one, so that drift of the machine cancels; many, for their noise."""
    figures, table, cost = {}, [], {}
    workers = {rows: Worker("scale", "float32", task) for rows in (100, 10_000)}
    for worker in workers.values():
        worker.run(times=1)
    found: dict[int, list[dict[str, Any]]] = {100: [], 10_000: []}
    for rows, runs in ((100, 10), (10_000, 1), (100, 10)):
        found[rows] += [workers[rows].run(times=rows // 50) for _ in range(runs)]
    for rows, worker in workers.items():
        worker.end()
        cost[rows] = statistics.fmean(one["seconds"] for one in found[rows]) / found[rows][0]["rows"]
        table.append([found[rows][0]["rows"], 1000 * cost[rows], found[rows][-1]["peak_mb"]])
        figures[f"scale_peak_mb_{rows}"] = found[rows][-1]["peak_mb"]
    figures["row_cost_ratio_10000_to_100"] = cost[10_000] / cost[100]
    return figures, table


def overhead(_: Path) -> tuple[dict[str, float], list[list[object]]]:
    """The whole demo under another name; its time against what its logs say was spent in the model."""
    print("running the whole workflow", flush=True)
    started = time.perf_counter()
    command = [".venv/bin/snakemake", "--cores", "2", "--resources", "gpu=1", "--config", "name=bench-run", "--forceall"]
    with (OUTPUT / "workflow.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    wall = time.perf_counter() - started
    found = {}
    for path in sorted(Path("results/bench-run/logs").rglob("*.log")):
        if match := re.search(r"done in ([\d.]+) s(?:, ([\d.]+) s of it in the model)?", path.read_text()):
            found[str(path.relative_to("results/bench-run/logs").with_suffix(""))] = [float(x or 0) for x in match.groups()]
    inside = sum(model for _, model in found.values())
    figures = {"workflow_wall_seconds": wall, "workflow_model_seconds": inside, "workflow_overhead_ratio": wall / inside}
    return figures, [[name, *values] for name, values in found.items()]


def show(title: str, header: list[str], table: list[list[object]]) -> None:
    print(f"\n{title}")
    for line in [header, *[[f"{x:.2f}" if isinstance(x, float) else str(x) for x in row] for row in table]]:
        print("  ".join(f"{cell:>{26 if not n else 12}}" for n, cell in enumerate(line)), flush=True)


def main(*chosen: str) -> None:
    if not (DEMO / "curation/rated.parquet").exists():
        raise SystemExit("ERROR: results/demo is missing; run `make demo` first")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    task = OUTPUT / "task.json"
    make_task(task)
    saved = OUTPUT / "engines.json"
    figures: dict[str, Any] = json.loads(saved.read_text()) if chosen and saved.exists() else {}
    figures |= about("torch", "transformers", "peft", "trl", "bitsandbytes")
    parts = {
        generation: ("Generation", ["way", "dtype", "rows/s", "tokens/s", "ratio", "peak MB", "equal text", "load s"]),
        rating: ("Rating", ["way", "dtype", "rows/s", "ratio", "peak MB"]),
        training: ("Training", ["precision", "tokens/s", "s per 1,000", "peak MB"]),
        scaling: ("Cost per row, tiny model", ["rows", "ms per row", "peak MB"]),
        overhead: ("Whole workflow", ["job", "seconds", "in the model"]),
    }
    for part, (title, header) in parts.items():
        if chosen and part.__name__ not in chosen:
            continue
        found, table = part(task)
        figures |= found
        show(title, header, table)
        # After each part, so that a stop loses no more than one.
        records.write_json(figures, saved)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
