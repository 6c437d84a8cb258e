"""From M_0 to M_N: when to stop, and the iterations side by side."""

import math
from collections import Counter
from typing import Any

import pandas as pd

from backtranslation import audit
from backtranslation.evaluation import interval
from backtranslation.records import Row, settle

PAPER_SHARES = {"A4": 0.388, "A5": 0.083}
"""Share of the candidates that the paper's judge rates at least 4, and at least 4.5."""

NOTEBOOK_RATINGS = {"5": 7, "4": 26, "3": 86, "2": 21, "1": 8, "none": 2}
"""Ratings of 150 LIMA completions in the notebook: Llama-2-7b-chat, untouched, as the judge."""


def decide(values: list[float], higher_is_better: bool, patience: int) -> Row:
    """Whether to stop after M_t, from one value for each of M_0 to M_t.

    Stops when none of the last `patience` values improves on all before them. `best` is the iteration with the
    best value; M_0 is none, since nothing is curated for it.
    """
    gains = [value if higher_is_better else -value for value in values]
    last_improvement = max(range(len(gains)), key=lambda t: (gains[t], -t))
    best = max(range(1, len(gains)), key=lambda t: (gains[t], -t))
    return {"values": values, "stop": len(gains) - 1 - last_improvement >= patience, "best": best}


def side_by_side(
    rated: list[list[Row]],
    curated: list[list[Row]],
    dropped: list[list[Row]],
    audits: list[Row],
    losses: list[pd.DataFrame],
    signal: str,
    random_seed: int,
) -> pd.DataFrame:
    """One line for each iteration 1 to N: what its judge said of the one pool of candidates, and how M_t did.

    `losses` has one table (id, loss) for each of M_0 to M_N; the others have one entry for each of 1 to N.
    `a4` and `a5` are the shares of candidates rated at least 4 and 4.5; `jaccard` and `rank_correlation` (Spearman, of
    `signal`) compare with the iteration before.
    """
    lines: list[dict[str, Any]] = []
    for t, (pool, kept, drops, figures) in enumerate(zip(rated, curated, dropped, audits, strict=True), start=1):
        settle(f"iteration {t}", pool, kept, drops)
        ratings = pd.Series([row["rating"] for row in pool])
        audited = audit.overall(figures, signal)
        change = (losses[t].set_index("id")["loss"] - losses[0].set_index("id")["loss"]).to_numpy()
        low, high = interval(change, random_seed)
        line = {
            "iteration": t,
            "candidates": len(pool),
            "kept": len(kept),
            "dropped": ", ".join(f"{reason} {count}" for reason, count in Counter(row["reason"] for row in drops).most_common()),
            "a4": (ratings >= 4).mean() if ratings.notna().any() else math.nan,
            "a5": (ratings >= 4.5).mean() if ratings.notna().any() else math.nan,
            "rating_mean": ratings.mean(),
            "rating_sd": ratings.std(),
            "without_value": sum(row[signal] != row[signal] for row in pool),
            "jaccard": math.nan,
            "rank_correlation": math.nan,
            "auroc": audited["auroc"],
            "auroc_low": audited["low"],
            "auroc_high": audited["high"],
            "heldout_loss": losses[t]["loss"].mean(),
            "against_m0": change.mean(),
            "against_m0_low": low,
            "against_m0_high": high,
            "n": len(change),
        }
        if t > 1:
            before, now = ({row["id"] for row in curated[at]} for at in (t - 2, t - 1))
            line["jaccard"] = len(before & now) / len(before | now)
            columns = [pd.Series({row["id"]: row[signal] for row in rated[at]}) for at in (t - 2, t - 1)]
            line["rank_correlation"] = columns[0].rank().corr(columns[1].rank())
        lines.append(line)
    return pd.DataFrame(lines)
