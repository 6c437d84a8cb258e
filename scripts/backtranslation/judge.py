"""The judge: expected rating from a rubric, and the likelihood gain; the choice of what to keep."""

import math
from collections.abc import Callable

import numpy as np

from backtranslation import engines
from backtranslation.logs import Progress, logger
from backtranslation.records import SIGNALS, Row, WorkFile, blocks, drop
from backtranslation.templates import Template, fill

FORCED = "Score: "
"""What the judge's answer is made to begin with; the next token is then a digit."""


class JudgeError(ValueError):
    """The judge cannot rate; the message says why."""


def digit_ids(template: Template) -> list[int]:
    """The token ids of the ratings 1 to 5, as they follow the forced beginning.

    Raises JudgeError when a digit is not one token of its own there.
    """
    start = template.prompt("x", forced=FORCED)
    ids = []
    for digit in "12345":
        whole = template.prompt("x", forced=FORCED + digit)
        if whole[:-1] != start:
            raise JudgeError(f"the judge's tokenizer does not write {FORCED + digit!r} with the digit as one token")
        ids.append(whole[-1])
    return ids


def rate(
    candidates: list[Row],
    engine: Callable[[], "engines.Engine"],
    template: Template,
    rubric: str,
    batch_tokens: int,
    work: WorkFile,
) -> list[Row]:
    """Candidates with the judge's signals, in their order.

    `rating`: mean of 1..5 under the judge's next-token probabilities after "Score: " (one forward
    pass, so there is always a value); `rating_entropy` in nats over the five digits; `rating_mass`:
    their share of all probability. `instruction_gain`: mean log p(y|x) - mean log p(y) per token of
    the response y, in nats: how much the instruction x explains it; p(y) is taken under an empty
    instruction. A row that does not fit the judge's context is never cut: all its signals are NaN.

    Raises JudgeError when the rubric lacks `{instruction}` or `{response}`.
    """
    for name in ("{instruction}", "{response}"):
        if name not in rubric:
            raise JudgeError(f"judge.rubric: the rubric does not contain {name}")
    digits = digit_ids(template)
    progress = Progress("ratings", len(candidates))
    left = [row for row in candidates if row["id"] not in work.done]
    progress.skip(len(candidates) - len(left))
    loaded: engines.Engine | None = None
    for block in blocks(left):
        loaded = loaded or engine()
        asked = [
            template.prompt(fill(rubric, instruction=row["instruction"], response=row["text"]), forced=FORCED)
            for row in block
        ]
        given = [template.prompt(row["instruction"]) for row in block]
        answers = [template.completion(row["text"]) for row in block]
        empty = template.prompt("")
        longest = [max(len(a), len(g) + len(y)) for a, g, y in zip(asked, given, answers, strict=True)]
        for row, length in zip(block, longest, strict=True):
            if length > loaded.context:
                work.add(row["id"], dict.fromkeys(SIGNALS, math.nan))
                progress.add(1)
        fitting = [i for i, length in enumerate(longest) if length <= loaded.context]
        # In chunks, so that the rubric is computed once for many rows and yet little is lost by a stop.
        for chunk in engines.batches([len(asked[i]) for i in fitting], batch_tokens):
            at = [fitting[i] for i in chunk]
            logprobs = loaded.choice_logprobs([asked[i] for i in at], digits)
            counts = np.array([len(answers[i]) for i in at])
            completions = [answers[i] for i in at]
            conditional = loaded.sequence_logprobs([given[i] for i in at], completions) / counts
            marginal = loaded.sequence_logprobs([empty] * len(at), completions) / counts
            for i, found in zip(at, signals(logprobs, conditional - marginal), strict=True):
                work.add(block[i]["id"], found)
            progress.add(len(at), int(counts.sum()))
    return [{**row, **work.done[row["id"]]} for row in candidates]


def signals(logprobs: np.ndarray, gain: np.ndarray) -> list[dict[str, float]]:
    """Signals of each row from log p("1".."5"), shape [n, 5], and the gain, shape [n]."""
    mass = np.exp(logprobs).sum(1)
    p = np.exp(logprobs) / mass[:, None]
    rating = p @ np.arange(1, 6)
    entropy = -(p * np.log(np.clip(p, 1e-12, None))).sum(1)
    return [dict(zip(SIGNALS, map(float, row), strict=True)) for row in zip(rating, entropy, mass, gain, strict=True)]


def keep(rated: list[Row], signal: str, rule: str, value: float) -> tuple[list[Row], list[Row]]:
    """Split rated candidates by `curation.keep`: `threshold` (signal >= value) or `top_fraction`.

    A row whose signal has no value is dropped as `no_value`. Ties at a fraction's edge go by id.

    Raises JudgeError when nothing is kept.
    """
    ranked = sorted(
        (row for row in rated if np.isfinite(row[signal])), key=lambda row: (-row[signal], row["id"])
    )
    if rule == "threshold":
        chosen = {row["id"] for row in ranked if row[signal] >= value}
        why = f"{signal} below {value:g}"
    else:
        chosen = {row["id"] for row in ranked[: round(value * len(ranked))]}
        why = f"{signal} not in the top {value:.0%}"
    if not chosen:
        best = f"the best is {ranked[0][signal]:.3f}" if ranked else "no candidate has a value"
        raise JudgeError(
            f"curation.keep: none of {len(rated)} candidates is kept by {signal} with {rule} {value:g}; {best}"
        )
    dropped = [
        drop(row, "curate", "low_" + signal, f"{why}: {row[signal]:.3f}")
        if np.isfinite(row[signal])
        else drop(row, "curate", "no_value", "does not fit the judge's context")
        for row in rated
        if row["id"] not in chosen
    ]
    logger.info("kept %d of %d by %s", len(chosen), len(rated), signal)
    return [row for row in rated if row["id"] in chosen], dropped
