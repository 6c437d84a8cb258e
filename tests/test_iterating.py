"""Steps as the paper has them, an end when nothing gets better, and iterations that can be compared."""

import math

import pandas as pd
import pytest
from conftest import pair, segment

from backtranslation import augment, iterating, training
from backtranslation.records import SIGNALS, RecordError, drop

TAGS = {"seed": "as an assistant", "augmented": "from the web"}


@pytest.mark.parametrize("pairs, steps", [(100, 30), (3_200, 500), (51_200, 1_600), (1, 1), (565, 122)])
def test_steps_are_those_of_the_papers_table(pairs, steps):
    assert training.paper_steps(pairs) == steps


def test_steps_grow_with_the_pairs():
    found = [training.paper_steps(n) for n in (50, 100, 1_000, 3_200, 20_000, 51_200, 500_000)]
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    "values, higher, patience, stop, best",
    [
        ([2.0, 1.9], False, 1, False, 1),
        ([2.0, 2.1], False, 1, True, 1),
        ([2.0, 2.1], False, 2, False, 1),
        ([2.0, 2.1, 2.05], False, 2, True, 2),
        ([2.0, 1.9, 1.9], False, 1, True, 1),
        ([0.6, 0.7, 0.65], True, 1, True, 1),
        ([0.6, 0.7, 0.8], True, 1, False, 2),
    ],
)
def test_iterations_end_when_patience_does(values, higher, patience, stop, best):
    decision = iterating.decide(values, higher, patience)
    assert (decision["stop"], decision["best"]) == (stop, best)


def test_iterations_side_by_side():
    rated = [
        [{**segment(n), **dict.fromkeys(SIGNALS, math.nan), "rating": rating} for n, rating in enumerate(ratings)]
        for ratings in ([4.6, 4.2, 3.0, 1.0], [4.4, 4.7, 2.0, math.nan])
    ]
    curated = [rated[0][:2], rated[1][1:3]]
    dropped = [[drop(row, "curate", "low_rating") for row in pool if row not in kept] for pool, kept in zip(rated, curated, strict=True)]
    audits = [{"signals": {"rating": {"all": {"auroc": value, "low": 0.5, "high": 0.9}}}} for value in (0.7, 0.8)]
    losses = [pd.DataFrame({"id": list("abc"), "loss": [2.0 - t / 10, 3.0 - t / 10, 1.0]}) for t in range(3)]
    first, second = iterating.side_by_side(rated, curated, dropped, audits, losses, "rating", 42).to_dict("records")
    assert (first["a4"], first["a5"], second["a5"], second["without_value"]) == (0.5, 0.25, 0.25, 1)
    assert second["jaccard"] == pytest.approx(1 / 3) and second["rank_correlation"] == pytest.approx(0.5)
    assert first["dropped"] == "low_rating 2" and (first["candidates"], first["kept"]) == (4, 2)
    with pytest.raises(RecordError, match="iteration 1: 4 rows came in"):
        iterating.side_by_side(rated, curated, [[], []], audits, losses, "rating", 42)
    assert math.isnan(first["jaccard"]) and second["auroc"] == 0.8
    assert second["against_m0"] == pytest.approx(-0.4 / 3) and second["against_m0_low"] <= second["against_m0"] <= 0


def test_both_tags_at_inference_and_one_each_in_training():
    train, curated = [pair(n) for n in range(4)], [{**segment(n + 10), "instruction": "x?"} for n in range(6)]
    mixed = augment.mix(train, curated, TAGS)
    assert {(row["origin"], row["system"]) for row in mixed} == {("seed", TAGS["seed"]), ("augmented", TAGS["augmented"])}
    assert augment.for_inference(train, TAGS)[0]["system"] == "as an assistant from the web"
    assert augment.for_inference(train, {"seed": None, "augmented": None})[0]["system"] is None


@pytest.mark.parametrize("share, seeds", [(None, 4), (0.5, 6), (0.25, 2), (0.9, 54)])
def test_seed_pairs_are_repeated_to_their_share(share, seeds):
    train, curated = [pair(n) for n in range(4)], [{**segment(n + 10), "instruction": "x?"} for n in range(6)]
    mixed = augment.mix(train, curated, TAGS, share)
    assert sum(row["origin"] == "seed" for row in mixed) == seeds
    assert len({row["id"] for row in mixed}) == len(mixed) == seeds + 6
    # M_0 has nothing to be mixed with.
    assert len(augment.mix(train, [], TAGS, share)) == 4
