"""The plan's memory against measured peaks: `make bench-memory`, after `make demo`.

Each job runs in a process of its own with SmolLM2-135M on the CPU, whose largest resident memory is taken;
the plan predicts it from the model's sizes and the tokens of the largest batch alone. Training takes two steps
of seed pairs of about the same length, in float32, bfloat16 and NF4, with and without checkpointing; the plan's
constants come from jobs of four rows of up to 320 tokens, those of other sizes test them. Writing and rating take
64 rows of the demo. Needs the demo's base model and results; writes results/bench/memory.json. `python
benchmarks/memory.py training` measures this part alone.
"""

import json
import sys
from pathlib import Path
from typing import Any

from engines import OUTPUT, ROOT, Worker, describe, make_task, show

from backtranslation import augment, models, planning, records, settings, sources
from backtranslation.engines import shared_prefix
from backtranslation.templates import Template

# Type, checkpointing, batch size and most tokens of an example.
TRAININGS = [
    ("float32", False, 4, 320),
    ("bfloat16", False, 4, 320),
    ("nf4", False, 4, 320),
    ("bfloat16", True, 4, 320),
    ("float32", False, 2, 256),
    ("bfloat16", False, 8, 256),
    ("nf4", False, 8, 192),
    ("float32", True, 8, 320),
]


def pairs_of_one_length(task: dict[str, Any], template: Template, count: int, most: int) -> tuple[list[dict[str, Any]], int]:
    """The `count` longest training examples of at most `most` tokens, and the tokens of the longest as it is padded."""
    pairs, _ = sources.read_seed([{"path": "config/seed/pairs.jsonl", "layout": "columns", "columns": None, "language": None}])
    lengths = {}
    for example in augment.reverse(pairs, task["prompt"]):
        encoded = template.example(example["prompt"], example["completion"])
        lengths[example["id"]] = (len(encoded.prompt) + len(encoded.completion), example)
    fitting = sorted((item for item in lengths.values() if item[0] <= most), key=lambda item: -item[0])[:count]
    return [example for _, example in fitting], -(-fitting[0][0] // 64) * 64


def training(task: dict[str, Any], shape: planning.Shape, template: Template) -> list[list[object]]:
    table: list[list[object]] = []
    for dtype, checkpointing, batch, most in TRAININGS:
        examples, longest = pairs_of_one_length(task, template, 2 * batch, most)
        chosen = {**task["training"], "batch_size": batch, "gradient_accumulation": 1, "gradient_checkpointing": checkpointing}
        path = OUTPUT / "memory_task.json"
        path.write_text(json.dumps({**task, "examples": examples, "training": chosen}))
        worker = Worker("train", dtype, path)
        peak = worker.run(examples=len(examples))["peak_mb"] * 2**20
        worker.end()
        width = 4 if dtype == "float32" else models.resolve_dtype("auto" if dtype == "nf4" else dtype).itemsize
        found = planning.training_memory(shape, width, chosen, dtype == "nf4", False, batch * longest)
        table.append([f"train {dtype}{' checkpointed' if checkpointing else ''} {batch} x {longest}", sum(found.values()), peak])
    return table


def inference(task: dict[str, Any], shape: planning.Shape, template: Template) -> list[list[object]]:
    table: list[list[object]] = []
    path = OUTPUT / "memory_task.json"
    path.write_text(json.dumps(task))
    longest = max(map(len, task["prompts"])) + task["max_new_tokens"]
    adapter = planning.adapter_parameters(shape, task["training"]["lora"])
    for dtype in ("float32", "bfloat16"):
        width = 4 if dtype == "float32" else 2
        for way, kind in (("transformers", "generate"), ("judge", "rate")):
            worker = Worker(way, dtype, path)
            peak = worker.run(kind=kind, rows=list(range(len(task["prompts"]))))["peak_mb"] * 2**20
            worker.end()
            # All rows in one batch; of a rating one piece of rows, each with what all prompts begin with.
            tokens = longest * len(task["prompts"])
            if kind == "rate":
                prompts = task["rating_prompts"]
                shared = shared_prefix(prompts)
                tokens = round(2048 * (1 + shared / (sum(map(len, prompts)) / len(prompts) - shared)))
            found = planning.inference_memory(shape, width, tokens, tokens, False, False, adapter if kind == "generate" else 0)
            table.append([f"{kind} {dtype}", sum(found.values()), peak])
    return table


def main(*chosen: str) -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    task = make_task(OUTPUT / "memory_task.json")
    shape, folder = planning.shape_of(settings.load(Path("config"))["model"], ROOT)
    template = Template(models.load_tokenizer(folder))
    saved = OUTPUT / "memory.json"
    figures: dict[str, Any] = json.loads(saved.read_text()) if chosen and saved.exists() else {}
    figures |= describe()
    for part in (training, inference):
        if chosen and part.__name__ not in chosen:
            continue
        rows = []
        for name, predicted, measured in part(task, shape, template):
            key = name.replace(" ", "_")
            figures |= {f"{key}_predicted_mb": predicted / 1e6, f"{key}_measured_mb": measured / 1e6, f"{key}_ratio": predicted / measured}
            rows.append([name, predicted / 1e6, measured / 1e6, predicted / measured])
        show(part.__name__, ["job", "predicted MB", "measured MB", "ratio"], rows)
        records.write_json(figures, saved)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
