"""One way of writing, rating or training in a process of its own, so that memory and start are its own.

`python benchmarks/worker.py <way> <dtype> <task file>`; then commands come and figures go as lines of JSON.
Ways: pipeline (the notebook's), transformers and vllm (the engines), train, scale (a tiny random model).
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from backtranslation import augment, engines, judge, logs, models, records, training  # noqa: E402
from backtranslation.templates import Template  # noqa: E402


def pipeline(task: dict[str, Any], dtype: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The notebook's way: the transformers pipeline, built once, one prompt at a time, adapter merged."""
    import torch
    import transformers

    folder = Path(task["base"])
    tokenizer = models.load_tokenizer(folder)
    digits = judge.digit_ids(Template(tokenizer, "auto"))
    with TemporaryDirectory() as merged:
        models.merge(folder, Path(task["adapter"]), models.resolve_dtype(dtype), Path(merged))
        writer = transformers.pipeline("text-generation", model=merged, dtype=getattr(torch, dtype))
    rater = transformers.pipeline("text-generation", model=str(folder), dtype=getattr(torch, dtype))

    def run(command: dict[str, Any]) -> dict[str, Any]:
        kind = command["kind"]
        if kind == "generate":
            pipe, prompts, new = writer, task["prompts"], task["max_new_tokens"]
        else:
            pipe, prompts, new = rater, task["rationale_prompts"], 300
        if kind == "plain":  # expected ratings from a forward pass over the whole prompt, nothing cached
            with torch.inference_mode():
                logits = [pipe.model(torch.tensor([task["rating_prompts"][i]])).logits[0, -1] for i in command["rows"]]
            logprobs = torch.stack(logits).log_softmax(-1)[:, digits].numpy()
            return {"ratings": [entry["rating"] for entry in judge.expected(logprobs)]}
        options = {"max_new_tokens": new, "max_length": None, "do_sample": False, "return_full_text": False}
        texts = [pipe(tokenizer.decode(prompts[i]), **options)[0]["generated_text"].strip() for i in command["rows"]]
        return {"texts": texts, "tokens": sum(map(len, tokenizer(texts)["input_ids"]))}

    return run


def engine(task: dict[str, Any], way: str, dtype: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An engine of ours: greedy instructions with the adapter, or expected ratings."""
    folder = Path(task["base"])
    template = Template(models.load_tokenizer(folder), "auto")
    loaded = engines.load(way, folder, template.stop_id, task["adapter"] and Path(task["adapter"]), dtype)
    digits = judge.digit_ids(template)

    def run(command: dict[str, Any]) -> dict[str, Any]:
        if isinstance(loaded, engines.VllmEngine):
            # Else the prompts of the round before are still there.
            loaded.engine.reset_prefix_cache()
        rows = command["rows"]
        if command["kind"] == "generate":
            prompts = [task["prompts"][i] for i in rows]
            done = dict(loaded.generate(prompts, engines.Sampling(task["max_new_tokens"], 0.0), [0] * len(rows)))
            return {"texts": [done[i].text for i in range(len(rows))], "tokens": sum(len(done[i].tokens) for i in done)}
        logprobs = loaded.choice_logprobs([task["rating_prompts"][i] for i in rows], digits)
        return {"ratings": [entry["rating"] for entry in judge.expected(logprobs)]}

    return run


def judging(task: dict[str, Any], dtype: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Ratings by the base model, as the workflow makes them."""
    return engine({**task, "adapter": None}, "transformers", dtype)


def train(task: dict[str, Any], dtype: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One pass over the training examples; `dtype` nf4 is NF4 weights with the usual compute type."""
    template = Template(models.load_tokenizer(Path(task["base"])), "auto")
    precision = {"dtype": "auto", "quantization": "nf4"} if dtype == "nf4" else {"dtype": dtype, "quantization": "none"}
    settings = {**task["training"], **precision, "epochs": 1, "steps": None}

    def run(command: dict[str, Any]) -> dict[str, Any]:
        examples = task["examples"][: command["examples"]]
        with TemporaryDirectory() as folder:
            training.train(examples, [], Path(task["base"]), template, settings, 42, Path(folder))
            tokens = records.read_json(Path(folder) / "training.json")["tokens"]
        return {"tokens": tokens, "train_seconds": logs.model_seconds()}

    return run


def scale(task: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Writing and rating with a tiny random Llama, so that what we add per row shows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = models.load_tokenizer(Path(task["base"]))
    # Large weights, so that few tokens have most of the probability, as in a trained model.
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.5}
    torch.manual_seed(0)
    scratch = TemporaryDirectory()
    folder = Path(scratch.name) / "tiny"
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = Template(tokenizer, "auto")
    loaded = engines.TransformersEngine(folder, template.stop_id, dtype="float32", batch_tokens=8192)

    def run(command: dict[str, Any]) -> dict[str, Any]:
        # No text twice: what is known of one would be taken over for the other. Short ones, so that what we add shows.
        rows = [{**row, "id": f"{n:08d}", "text": f"{n:08d} {row['text'][:300]}"} for n, row in enumerate(task["segments"] * command["times"])]

        def work(name: str) -> records.WorkFile:
            return records.WorkFile(scratch.name, [name, time.perf_counter()])

        sampling = engines.Sampling(8, 0.7)
        written = augment.write_instructions(rows, lambda: loaded, template, task["prompt"], sampling, 42, work("write"))
        asked = judge.Judge(template, task["rubric"], ["rating", "instruction_gain"], lambda: loaded, batch_tokens=8192)
        judge.rate(written, asked, work("rate"))
        return {"rows": len(rows)}

    return run


def main(way: str, dtype: str, file: str) -> None:
    task = json.loads(Path(file).read_text())
    started = time.perf_counter()
    ways = {"pipeline": pipeline, "judge": judging, "train": train}
    if way == "scale":
        run = scale(task)
    elif way in ways:
        run = ways[way](task, dtype)
    else:
        run = engine(task, way, dtype)
    print("RESULT", json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        found = run(json.loads(line))
        found["seconds"] = time.perf_counter() - started
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print("RESULT", json.dumps(found), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
