"""Held-out loss of the backward and forward model against the base model."""

from typing import TYPE_CHECKING

import numpy as np

from backtranslation.logs import logger
from backtranslation.records import Row
from backtranslation.templates import Template

if TYPE_CHECKING:
    from backtranslation.engines import Engine


def losses(examples: list[Row], engine: "Engine", template: Template) -> np.ndarray:
    """Negative log-likelihood of each completion given its prompt, nats per token, shape [n].

    The token that ends the turn counts. Raises ValueError when an example exceeds the context.
    """
    encoded = [template.example(row["prompt"], row["completion"], row["system"]) for row in examples]
    total = engine.sequence_logprobs([e.prompt for e in encoded], [e.completion for e in encoded])
    return -total / np.array([len(e.completion) for e in encoded])


def interval(values: np.ndarray, random_seed: int, draws: int = 10_000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean (percentile method)."""
    chosen = np.random.default_rng(random_seed).integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [0.025, 0.975])
    return float(low), float(high)


def compare(model: str, measure: str, base: np.ndarray, tuned: np.ndarray, random_seed: int) -> Row:
    """One line of the held-out table: mean losses, their difference (negative is better) with interval."""
    low, high = interval(tuned - base, random_seed)
    line = {
        "model": model,
        "measure": measure,
        "n": len(base),
        "base_loss": float(base.mean()),
        "tuned_loss": float(tuned.mean()),
        "difference": float((tuned - base).mean()),
        "low": low,
        "high": high,
        "pairs_improved": float((tuned < base).mean()),
    }
    logger.info("%s", line)
    return line


def answers(examples: list[Row], engine: "Engine", template: Template) -> list[str]:
    """Greedy answers of at most 128 tokens to the prompts of held-out examples, for people to read."""
    from backtranslation.engines import Sampling

    prompts = [template.prompt(row["prompt"], row["system"]) for row in examples]
    found = dict(engine.generate(prompts, Sampling(max_new_tokens=128, temperature=0), [0] * len(prompts)))
    return [found[i].text for i in range(len(prompts))]
