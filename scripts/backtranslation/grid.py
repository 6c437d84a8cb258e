"""The grid of the proof: its arms, and the cells that they make with sizes, training seeds and settings of a search."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from backtranslation.records import Row

SIZED = ("curated", "single", "random", "augmented", "oracle", "broken")
"""The arms that there are in every size."""

UNAUGMENTED = ("base", "seed", "seed_broken")
"""The arms that need no candidates."""


def cells(arms: list[str], sizes: list[int], seeds: list[int], search: dict[str, list[float | None]] | None) -> list[Row]:
    """The cells of the grid, each with `arm`, `n` and `seed` as texts; `all` where the data say how many.

    With `search` there is a cell for each combination of its settings too, each as JSON; `any` where a setting
    makes no difference to the arm.
    """
    return [
        {"arm": arm, "n": str(n), "seed": str(seed), **setting}
        for arm in arms
        for n in (sizes if arm in SIZED else ["0" if arm in UNAUGMENTED else "all"])
        # Nothing is drawn for the untouched model.
        for seed in (seeds if arm != "base" else [0])
        for setting in _settings(arm, search or {})
    ]


def setting(cell: Mapping[str, str], key: str, otherwise: Any) -> Any:
    """A setting of a cell: its own, where one is searched for and makes a difference to the arm."""
    value = cell.get(key, "any")
    return otherwise if value == "any" else json.loads(value)


def _settings(arm: str, search: dict[str, list[float | None]]) -> list[dict[str, str]]:
    # The untouched model has no settings, and a share of the seed takes both seed pairs and others.
    without = search.keys() if arm == "base" else {"seed_share"} if arm in (*UNAUGMENTED, "augmented") else set()
    values = [["any"] if key in without else [json.dumps(value) for value in found] for key, found in search.items()]
    return [dict(zip(search, found, strict=True)) for found in itertools.product(*values)]
