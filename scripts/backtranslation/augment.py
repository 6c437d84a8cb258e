"""Backtranslation proper: reversed seed pairs, and an instruction for every segment."""

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from backtranslation import engines
from backtranslation.logs import Progress
from backtranslation.records import Row, WorkFile, fingerprint
from backtranslation.templates import Template, fill

if TYPE_CHECKING:
    from backtranslation.engines import TransformersEngine


def reverse(pairs: list[Row], prompt: str) -> list[Row]:
    """Examples for the backward model p(instruction | response); `prompt` contains `{response}`."""
    return [
        {
            "id": pair["id"],
            "origin": "seed",
            "system": None,
            "prompt": fill(prompt, response=pair["response"]),
            "completion": pair["instruction"],
        }
        for pair in pairs
    ]


def write_instructions(
    segments: list[Row],
    engine: Callable[[], "TransformersEngine"],
    template: Template,
    prompt: str,
    sampling: engines.Sampling,
    batch_tokens: int,
    random_seed: int,
    work: WorkFile,
) -> list[Row]:
    """A candidate for each segment, in the order of the segments.

    Batches are planned from all segments, so a job that was stopped goes on with the same batches
    and random numbers; `engine` is called only when something is left to do.
    """
    prompts = [template.prompt(fill(prompt, response=row["text"])) for row in segments]
    lengths = [len(ids) + sampling.max_new_tokens for ids in prompts]
    progress = Progress("instructions", len(segments))
    loaded = None
    found: dict[str, dict[str, Any]] = {}
    for batch in engines.batches(lengths, batch_tokens):
        ids = [segments[i]["id"] for i in batch]
        key = fingerprint(ids)
        if key not in work.done:
            loaded = loaded or engine()
            seed = int(fingerprint([random_seed, key])[:8], 16)
            completions = loaded.generate([prompts[i] for i in batch], sampling, seed)
            work.add(key, [asdict(completion) for completion in completions])
            progress.add(len(batch), sum(len(completion.tokens) for completion in completions))
        else:
            progress.skip(len(batch))
        found |= dict(zip(ids, work.done[key], strict=True))
    return [
        {
            **row,
            "instruction": found[row["id"]]["text"],
            "finish_reason": found[row["id"]]["finish_reason"],
            "tokens": len(found[row["id"]]["tokens"]),
            "logprob": found[row["id"]]["logprob"],
        }
        for row in segments
    ]


def mix(train: list[Row], curated: list[Row], tags: dict[str, str | None]) -> list[Row]:
    """Examples for the forward model: seed pairs with tag S_a, curated pairs with tag S_w (paper, section 2.3)."""
    seed = [_forward(row, "seed", tags["seed"], row["response"]) for row in train]
    return seed + [_forward(row, "augmented", tags["augmented"], row["text"]) for row in curated]


def for_inference(pairs: list[Row], tags: dict[str, str | None]) -> list[Row]:
    """Held-out examples for the forward model, with both tags, as it is used (paper, table 8)."""
    both = " ".join(tag for tag in (tags["seed"], tags["augmented"]) if tag) or None
    return [_forward(row, "seed", both, row["response"]) for row in pairs]


def _forward(row: Row, origin: str, system: str | None, response: str) -> Row:
    return {
        "id": row["id"],
        "origin": origin,
        "system": system,
        "prompt": row["instruction"],
        "completion": response,
    }
