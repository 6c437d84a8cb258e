"""What training costs beside its steps, on the demo's base model: `make bench-training`, after `make demo`.

Memory of the loss with trl's head, which never holds the logits of a whole batch, against the model's own;
the share of the time that checkpoints take; and what merging a QLoRA adapter does to the held-out loss.
Writes results/bench/training.json. Takes about fifteen minutes on two cores.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
os.chdir(ROOT)

import yaml  # noqa: E402
from about import about  # noqa: E402

from backtranslation import augment, evaluation, models, records, training  # noqa: E402
from backtranslation.templates import Template  # noqa: E402

OUTPUT = Path("results/bench")
CONFIG = yaml.safe_load(Path("config/config.yaml").read_text())
BASE = models.folder_of(next(Path("resources/models").glob("*/manifest.json")))


def examples() -> list[records.Row]:
    pairs = [json.loads(line) for line in Path(CONFIG["seed"]["sources"][0]["path"]).read_text().splitlines()]
    rows = [{"id": f"{n:016x}", **pair} for n, pair in enumerate(pairs)]
    return augment.reverse(rows, CONFIG["backward"]["prompt"])


def settings(quantization: str, steps: int) -> dict[str, Any]:
    return {**CONFIG["training"], **CONFIG["precision"], "quantization": quantization, "epochs": 1, "steps": steps}


def loss(way: str) -> dict[str, float]:
    """Two rows of 1,024 tokens, a quarter of them completion, forward and backward."""
    import torch
    from peft import LoraConfig, get_peft_model
    from trl.trainer import utils

    base = models.load(BASE, "bfloat16", train=True)
    if way != "own":
        utils.add_fused_lm_head(base)
    if way == "compact":
        utils._use_triton = lambda device: True
    model = get_peft_model(base, LoraConfig(r=32, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    ids = torch.randint(0, 40000, (2, 1024), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :768] = -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.monotonic()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=ids, labels=labels, **({"fused_lm_head": True} if way != "own" else {})).loss
    found.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"loss": float(found), "seconds": time.monotonic() - started, "peak_mb": peak, "above_model_mb": peak - before}


def checkpoints(_: str) -> dict[str, float]:
    """Time of writing a checkpoint of the default adapter against that of a step."""
    import transformers

    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            started = time.monotonic()
            try:
                return function(*arguments)
            finally:
                spent.append(time.monotonic() - started)

        return wrapped

    transformers.Trainer._save_checkpoint = timed(transformers.Trainer._save_checkpoint)
    training._sums = timed(training._sums)
    steps, every = 9, 2
    with TemporaryDirectory() as folder:
        started = time.monotonic()
        base = Template(models.load_tokenizer(BASE), "auto")
        training.train(examples(), [], BASE, base, settings("none", steps), 42, Path(folder), checkpoint_steps=every)
        seconds = time.monotonic() - started
    each = sum(spent) / (steps // every)
    step = (seconds - sum(spent)) / steps
    share = each / (each + CONFIG["training"]["checkpoint_steps"] * step)
    return {"checkpoint_seconds": each, "step_seconds": step, "share_of_time": share}


def merging(quantization: str) -> dict[str, float]:
    """Held-out loss of a QLoRA adapter, unmerged, merged into the dequantised and into the original weights."""
    template = Template(models.load_tokenizer(BASE), "auto")
    rows = examples()
    figures: dict[str, float] = {}
    with TemporaryDirectory() as scratch:
        adapter = Path(scratch) / "adapter"
        training.train(rows[32:], [], BASE, template, settings(quantization, 20), 42, adapter)
        for into in ("dequantized", "original"):
            merge = models.export(BASE, adapter, template, Path(scratch) / into, into)
            found = evaluation.cost_of_merging(rows[:32], BASE, adapter, Path(scratch) / into, template, merge, 8192)
            figures |= {f"{into}_{key}": value for key, value in found.items()}
    return figures


PARTS = {"loss": (loss, ["compact", "fused", "own"]), "checkpoints": (checkpoints, ["default"]), "merging": (merging, ["nf4", "nf4_double"])}


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = about("torch", "transformers", "peft", "trl", "bitsandbytes")
    for part, (_, ways) in PARTS.items():
        for way in ways:
            # A process each, for its peak of memory.
            run = subprocess.run([sys.executable, __file__, part, way], stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            print(f"{part:>12} {way:>12}", *(f"{key} {value:.4g}" for key, value in found.items()), sep="  ", flush=True)
            figures |= {f"{part}_{way}_{key}": value for key, value in found.items()}
    records.write_json(figures, OUTPUT / "training.json")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(PARTS[sys.argv[1]][0](sys.argv[2])))
    else:
        main()
