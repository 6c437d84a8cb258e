"""Does curation make a better model? What the arms of the proof are measured by, and what can be said of it."""

import math
from typing import Any

import numpy as np
import pandas as pd

from backtranslation.engines import TransformersEngine
from backtranslation.evaluation import mean_logprobs
from backtranslation.logs import warn
from backtranslation.records import Row, WorkFile
from backtranslation.templates import Template

SIGN = {"loss": 1, "contrast": -1, "contrast_near": -1, "win_rate": -1, "win_rate_lc": -1}
"""The measures, and the sign that makes lower better."""

COMPARED = {
    "oracle_vs_broken": ("oracle", "broken"),
    "curated_vs_random": ("curated", "random"),
    "curated_vs_seed": ("curated", "seed"),
    "curated_vs_base": ("curated", "base"),
    "curated_vs_all": ("curated", "all"),
    "curated_vs_augmented": ("curated", "augmented"),
    "curated_vs_single": ("curated", "single"),
    "curated_vs_a4": ("curated", "a4"),
    "curated_vs_a5": ("curated", "a5"),
    "seed_vs_base": ("seed", "base"),
    "oracle_vs_curated": ("oracle", "curated"),
}

PUBLISHED = {
    "Humpback": 6.95,
    "WizardLLM": 5.69,
    "Alpaca-GPT4": 5.40,
    "Vicuna": 4.53,
    "LIMA": 2.86,
    "Alpaca": 1.99,
    "FLAN v2": 0.22,
}
"""The paper's alpha in w = alpha log N + C for other instruction sets; its w is a win rate in per cent."""


INSTRUCTIONS = ("instruction", "other", "near")
"""What the response of a held-out pair is measured given."""


def fitting(pairs: list[Row], engine: TransformersEngine, template: Template, system: str | None, answer_tokens: int) -> list[Row]:
    """The pairs that the model reads given each of their instructions, with room for an answer of `answer_tokens`; a warning says how many others there are.

    Alike for all arms, which have the same tokenizer and context. Raises ValueError when none is left.
    """

    def tokens(row: Row) -> int:
        return max(len(template.prompt(row[name], system)) for name in INSTRUCTIONS) + max(answer_tokens, len(template.completion(row["response"])))

    kept = [row for row in pairs if tokens(row) <= engine.context]
    if not kept:
        raise ValueError(f"proof: none of {len(pairs)} held-out pairs fits the model's context of {engine.context} tokens")
    if len(kept) < len(pairs):
        warn(f"{len(pairs) - len(kept)} of {len(pairs)} held-out pairs exceed the model's context of {engine.context} tokens and are not measured")
    return kept


def measure(
    pairs: list[Row], engine: TransformersEngine, template: Template, system: str | None, work: WorkFile | None = None
) -> pd.DataFrame:
    """Columns id, measure and value: loss and contrasts of every pair, nats per token (see `arms.heldout`).

    The measures' names begin with the pair's set. `loss` is -log p(y|x); `contrast` is log p(y|x) - log p(y|other), `contrast_near` the same with the
    most similar instruction: how much the model heeds what it is asked. With `work`, what is
    done is kept there. Raises ValueError when a pair exceeds the context.
    """
    answers = [template.completion(row["response"]) for row in pairs]
    found = {}
    for name in INSTRUCTIONS:
        prompts = [template.prompt(row[name], system) for row in pairs]
        keys = [f"{name} {row['id']}" for row in pairs]
        # In the type in which the model computes them, after a stop too.
        found[name] = mean_logprobs(keys, prompts, answers, engine, work).astype(np.float32)
    measured = {
        "loss": -found["instruction"],
        "contrast": found["instruction"] - found["other"],
        "contrast_near": found["instruction"] - found["near"],
    }
    lines = [(row["id"], f"{row['set']}_{name}", values[at]) for name, values in measured.items() for at, row in enumerate(pairs)]
    return pd.DataFrame(lines, columns=["id", "measure", "value"])


def _sign(measure: str) -> int:
    """Of a measure with its set in front."""
    return SIGN[measure.partition("_")[2]]


def _matrix(values: pd.DataFrame, arm: str, measure: str, size: str | None = None) -> np.ndarray | None:
    """Values of an arm by seed and pair, shape [seeds, pairs], over its sizes averaged; None where there are none.

    Win rates are those against the untouched model, which nobody judges against itself: it has one half, of shape [1, 1].
    """
    if arm == "base" and "win_rate" in measure:
        return np.full((1, 1), 0.5)
    found = values[(values["arm"] == arm) & (values["measure"] == measure)]
    if size is not None:
        found = found[found["size"] == size]
    return None if found.empty else found.pivot_table(index="seed", columns="id", values="value").to_numpy()


def _weights(seeds: int, pairs: int, random_seed: int, draws: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each pair is drawn in a bootstrap over both, as shares; shapes [draws, seeds], [draws, pairs]."""
    rng = np.random.default_rng(random_seed)
    return tuple(rng.multinomial(n, np.full(n, 1 / n), draws) / n for n in (seeds, pairs))  # type: ignore[return-value]


def interval(values: np.ndarray, random_seed: int, draws: int = 4000) -> tuple[float, float, float]:
    """(mean, low, high) of values by seed and pair, shape [seeds, pairs]: 95 % bootstrap over both (percentile method)."""
    by_seed, by_pair = _weights(values.shape[0], values.shape[1], random_seed, draws)
    low, high = np.quantile(((by_seed @ values) * by_pair).sum(1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def table(values: pd.DataFrame, random_seed: int) -> pd.DataFrame:
    """Columns arm, n, seed, measure, value, low, high: every cell over its pairs, and `all` seeds together.

    `values` has arm, size (as configured), n (augmented pairs), seed, measure, id and value.
    """
    lines: list[Row] = []
    for (arm, size, name), part in values.groupby(["arm", "size", "measure"], sort=False):
        matrix = _matrix(values, arm, name, size)
        assert matrix is not None
        seeds = sorted(part["seed"].unique())
        parts = [(str(seed), matrix[at : at + 1]) for at, seed in enumerate(seeds)]
        for seed, found in [*parts, *([("all", matrix)] if len(seeds) > 1 else [])]:
            value, low, high = interval(found, random_seed)
            lines.append({"arm": arm, "n": part["n"].iloc[0], "seed": seed, "measure": name, "value": value, "low": low, "high": high})
    return pd.DataFrame(lines)


def controls(values: pd.DataFrame) -> tuple[str, str]:
    """The arms with right and with wrong instructions: those of the corpus, else those of the seed pairs."""
    return ("oracle", "broken") if {"oracle", "broken"} <= set(values["arm"]) else ("seed", "seed_broken")


def comparisons(values: pd.DataFrame, random_seed: int) -> pd.DataFrame:
    """Columns comparison, measure, difference, low, high, seeds, pairs, says; below 0 the first arm is better.

    Paired over pairs and seeds; arms of several sizes are averaged over them. The untouched model has one
    seed, and stands against all.
    """
    lines: list[Row] = []
    for measure in values["measure"].unique():
        for name, both in COMPARED.items():
            if name == "oracle_vs_broken":
                both = controls(values)
            own, other = (_matrix(values, arm, measure) for arm in both)
            if own is None or other is None:
                continue
            value, low, high = interval(_sign(measure) * (own - other), random_seed)
            says = "better" if high < 0 else "worse" if low > 0 else "no difference shown"
            lines.append({"comparison": name, "measure": measure, "difference": value, "low": low, "high": high, "seeds": len(own), "pairs": own.shape[1], "says": says})
    return pd.DataFrame(lines, columns=["comparison", "measure", "difference", "low", "high", "seeds", "pairs", "says"])


def _controlled(compared: pd.DataFrame) -> pd.DataFrame:
    """The lines of the control, the measure first that tells right instructions from wrong ones most clearly, whatever its unit."""
    found = compared[compared["comparison"] == "oracle_vs_broken"]
    clear = found["difference"] / (found["high"] - found["low"])
    return found.loc[clear.sort_values().index]


def _worthless(judge: Row | None) -> bool:
    """Whether a pairwise judge is not shown to agree with people better than chance, so that its win rates count for nothing."""
    return judge is not None and judge["low"] <= 0.5


def clearest(values: pd.DataFrame, compared: pd.DataFrame, judge: Row | None = None) -> tuple[str, list[str]]:
    """(the clearest measure, all that are admitted); where the controls admit none, the one that comes nearest.

    `judge` is what `pairwise.audited` says of the pairwise judge, if there is one.
    """
    if _worthless(judge):
        values, compared = (frame[~frame["measure"].str.contains("win_rate")] for frame in (values, compared))
    control = _controlled(compared)
    good = list(control.loc[control["high"] < 0, "measure"])
    return [*good, *control["measure"], *values["measure"].unique()][0], good


def tuned(values: pd.DataFrame, search: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(values with the settings that are best for each arm and size, the settings that were tried); `search` names their columns.

    For each measure by itself, since the settings that are best for one need not be for another: chosen on one half of its pairs and
    reported on the other, both ways round, so that every pair is measured with settings that were chosen without it. The
    second table has measure, `chosen_on`, arm, size, the settings, the mean `value` over pairs and training seeds, and `chosen`.
    """
    kept, tried = [], []
    for measure, part in values.groupby("measure", sort=False):
        second = part["id"].isin(sorted(part["id"].unique())[1::2])
        for name, on in (("first half", ~second), ("second half", second)):
            means = part[on].groupby(["arm", "size", *search], sort=False)["value"].mean().reset_index()
            best = (_sign(str(measure)) * means["value"]).groupby([means["arm"], means["size"]]).idxmin()
            kept.append(part[~on].merge(means.loc[best, ["arm", "size", *search]]).drop(columns=search))
            chosen = means.index.isin(best)
            tried.append(pd.DataFrame({"measure": measure, "chosen_on": name, **means, "chosen": chosen}))
    return pd.concat(kept, ignore_index=True), pd.concat(tried, ignore_index=True)


def scaling(values: pd.DataFrame, measure: str, random_seed: int) -> Row:
    """`alpha` in w = alpha log N + C over the sizes N of `curated`, with its 95 % interval, and `constant`.

    w is the measure with the sign that makes higher better, win rates in per cent; log is natural. All are None with one size.
    """
    own = values[(values["arm"] == "curated") & (values["measure"] == measure)]
    sizes = sorted(own["size"].unique(), key=int)
    if len(sizes) < 2:
        return {"alpha": None, "alpha_low": None, "alpha_high": None, "constant": None}
    unit = 100 if "win_rate" in measure else 1
    found = [_matrix(own, "curated", measure, size) for size in sizes]
    matrices = np.stack([matrix for matrix in found if matrix is not None]) * -_sign(measure) * unit
    by_seed, by_pair = _weights(matrices.shape[1], matrices.shape[2], random_seed)
    drawn = np.einsum("ds,nsp,dp->nd", by_seed, matrices, by_pair, optimize=True)
    logs = np.log([int(size) for size in sizes])
    slopes = np.polyfit(logs, drawn, 1)[0]
    alpha, constant = np.polyfit(logs, matrices.mean((1, 2)), 1)
    low, high = np.quantile(slopes, [0.025, 0.975])
    return {"alpha": float(alpha), "alpha_low": float(low), "alpha_high": float(high), "constant": float(constant)}


def summary(values: pd.DataFrame, compared: pd.DataFrame, random_seed: int, judge: Row | None = None) -> dict[str, Any]:
    """The proof in figures and `words`: differences on the clearest admitted measure, and the scaling fit.

    Where the controls admit none, the measure that comes nearest stands there, and `admitted` is empty.
    `judge` is what `pairwise.audited` says of the pairwise judge, if there is one.
    """
    measure, good = clearest(values, compared, judge)
    on = compared[compared["measure"] == measure].set_index("comparison")
    figures: dict[str, Any] = {"measure": measure, "admitted": good, "controls": list(controls(values))}
    for name in COMPARED:
        found = on.loc[name] if name in on.index else None
        for key, column in (("diff", "difference"), ("low", "low"), ("high", "high")):
            figures[f"{name}_{key}"] = None if found is None else float(found[column])
    # The paper's fit is one of win rates; without a judge that is worth something it is made on the measure.
    rates = [] if _worthless(judge) else ["seed_win_rate_lc", "seed_win_rate"]
    fitted = next((name for name in rates if name in set(values["measure"])), measure)
    own = values[values["measure"] == measure]
    figures |= {"fitted": fitted, **scaling(values, fitted, random_seed), "published_alpha": PUBLISHED}
    figures |= {"seeds": int(own.loc[own["arm"] != "base", "seed"].nunique()), "n_heldout": int(own["id"].nunique())}
    figures["judge"] = judge
    return {**figures, "words": sentences(figures, on)}


def sentences(figures: dict[str, Any], on: pd.DataFrame) -> list[str]:
    """What is significant and what is not; `on` has the comparisons of the measure."""
    right, wrong = figures["controls"]
    told = []
    if "oracle_vs_broken" not in on.index:
        told.append("No arms with right and with wrong instructions were trained, so no measure is admitted.")
    elif figures["admitted"]:
        told.append(f"{figures['measure']} tells right instructions ({right}) from wrong ones ({wrong}), so it can judge curation; admitted: {', '.join(figures['admitted'])}.")
    else:
        told.append(f"No measure tells right instructions ({right}) from wrong ones ({wrong}) at this size, so nothing below can judge curation; {figures['measure']} comes nearest.")
    verdicts = {"better": "is better than", "worse": "is worse than", "no difference shown": "cannot be told from"}
    for name, line in on.iterrows():
        if name != "oracle_vs_broken":
            own, other = COMPARED[str(name)]
            told.append(f"{own} {verdicts[line['says']]} {other}: {line['difference']:+.4f} ({line['low']:+.4f} to {line['high']:+.4f}; negative is better).")
    if figures["alpha"] is not None and math.isfinite(figures["alpha"]):
        grows = "grows" if figures["alpha_low"] > 0 else "falls" if figures["alpha_high"] < 0 else "neither grows nor falls beyond chance"
        told.append(f"With the number of curated pairs {figures['fitted']} {grows}: alpha {figures['alpha']:.4f} ({figures['alpha_low']:.4f} to {figures['alpha_high']:.4f}).")
    if judge := figures["judge"]:
        told.append(
            f"The pairwise judge agrees with {judge['on']} in {judge['agreement']:.0%} of {judge['n']} ({judge['low']:.0%} to {judge['high']:.0%}; taking the "
            f"longer answer: {judge['always_longer']:.0%}), names the same answer in both orders in {judge['consistent']:.0%}, and gives the first one "
            f"{judge['first']:.2f} on average. {'Its win rates count for nothing.' if _worthless(judge) else ''}".strip()
        )
    if figures["seeds"] < 3:
        told.append(f"Fewer than three training seeds ({figures['seeds']}) are too few for an interval over seeds.")
    return told
