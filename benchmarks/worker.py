"""One way of writing and rating in a process of its own; commands come and figures go as lines of JSON.

`python benchmarks/worker.py <way> <dtype> <task file>`, way: pipeline, transformers or vllm.
"""

import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from backtranslation import engines, judge, models  # noqa: E402
from backtranslation.templates import Template  # noqa: E402


class Pipeline:
    """The notebook's way: the transformers pipeline, built once, one prompt at a time, adapter merged."""

    def __init__(self, folder: Path, adapter: Path | None, dtype: str):
        import torch
        from transformers import pipeline

        with TemporaryDirectory() as merged:
            if adapter is not None:
                models.merge(folder, adapter, models.resolve_dtype(dtype), Path(merged))
                folder = Path(merged)
            self.pipe = pipeline("text-generation", model=str(folder), dtype=getattr(torch, dtype))

    def generate(self, prompts: list[str], new: int) -> list[str]:
        options = {"max_new_tokens": new, "max_length": None, "do_sample": False, "return_full_text": False}
        return [self.pipe(prompt, **options)[0]["generated_text"].strip() for prompt in prompts]


def main(way: str, dtype: str, file: str) -> None:
    task = json.loads(Path(file).read_text())
    folder, adapter = Path(task["base"]), task["adapter"] and Path(task["adapter"])
    template = Template(models.load_tokenizer(folder), "auto")
    prompts, new = task["prompts"], task["max_new_tokens"]
    started = time.perf_counter()
    if way == "pipeline":
        engine = Pipeline(folder, adapter, dtype)
        texts = [template.tokenizer.decode(prompt) for prompt in prompts]
    else:
        engine = engines.load(way, folder, template.stop_id, adapter, dtype, batch_tokens=task["batch_tokens"])
    print("RESULT", json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        rows = json.loads(line)
        found: dict[str, object] = {}
        started = time.perf_counter()
        if way == "pipeline":
            found["texts"] = engine.generate([texts[i] for i in rows], new)
        elif task["kind"] == "generate":
            done = dict(engine.generate([prompts[i] for i in rows], engines.Sampling(new, 0.0), [0] * len(rows)))
            found["texts"] = [done[i].text for i in range(len(rows))]
        else:
            logprobs = engine.choice_logprobs([prompts[i] for i in rows], judge.digit_ids(template))
            found["ratings"] = [entry["rating"] for entry in judge.signals(logprobs, logprobs[:, 0])]
        found["seconds"] = time.perf_counter() - started
        if "texts" in found:
            found["tokens"] = sum(len(ids) for ids in template.tokenizer(found["texts"])["input_ids"])
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
