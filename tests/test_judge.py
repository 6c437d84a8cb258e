"""Ratings always have a value, good pairs gain, and what is kept is what was asked for."""

import math

import numpy as np
import pytest
from conftest import segment

from backtranslation import judge
from backtranslation.engines import TransformersEngine
from backtranslation.records import SIGNALS, WorkFile, settle

RUBRIC = "Rate.\n{instruction}\n{response}\nScore it."


def candidates(count: int = 6) -> list[dict]:
    return [{**segment(n), "instruction": f"What about {n}?", "finish_reason": "stop", "tokens": 5, "logprob": -1.0} for n in range(count)]


def rated(values: list[float], signal: str = "instruction_gain") -> list[dict]:
    return [{**segment(n), "instruction": "x?", signal: value} for n, value in enumerate(values)]


@pytest.fixture
def engine(tiny, template):
    return lambda: TransformersEngine(tiny, template.stop_id, dtype="float32")


def test_signals_of_known_probabilities():
    p = np.array([[0, 0, 0, 0, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1]])
    with np.errstate(divide="ignore"):
        sure, unsure = judge.signals(np.log(p), np.array([0.2, 0.3]))
    assert (sure["rating"], sure["rating_mass"], sure["instruction_gain"]) == (5.0, 0.5, 0.2)
    assert sure["rating_entropy"] == pytest.approx(0, abs=1e-6)
    assert (unsure["rating"], unsure["rating_entropy"]) == (pytest.approx(3), pytest.approx(math.log(5)))


def test_every_candidate_gets_every_signal(engine, template, tmp_path):
    rows = judge.rate(candidates(), engine, template, RUBRIC, 64, WorkFile(tmp_path, "x"))
    assert [row["id"] for row in rows] == [row["id"] for row in candidates()]
    assert all(math.isfinite(row[name]) for row in rows for name in SIGNALS)
    assert all(1 <= row["rating"] <= 5 for row in rows)


def test_a_stopped_rating_goes_on_and_gives_the_same(engine, template, tmp_path):
    whole = judge.rate(candidates(), engine, template, RUBRIC, 64, WorkFile(tmp_path / "a", "x"))
    calls = []

    def failing():
        loaded = engine()
        original = loaded.choice_logprobs

        def once(*arguments):
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return original(*arguments)

        loaded.choice_logprobs = once
        return loaded

    with pytest.raises(KeyboardInterrupt):
        judge.rate(candidates(), failing, template, RUBRIC, 64, WorkFile(tmp_path / "b", "x"))
    again = WorkFile(tmp_path / "b", "x")
    done = len(again.done)
    assert 0 < done < 6
    resumed = judge.rate(candidates(), engine, template, RUBRIC, 64, again)
    assert all(row[name] == pytest.approx(other[name], abs=1e-4) for row, other in zip(resumed, whole, strict=True) for name in SIGNALS)


def test_row_over_the_context_is_dropped_and_never_cut(engine, template, tmp_path):
    rows = [*candidates(2), {**candidates(3)[2], "text": "long " * 3000}]
    rated_rows = judge.rate(rows, engine, template, RUBRIC, 64, WorkFile(tmp_path, "x"))
    kept, dropped = judge.keep(rated_rows, "rating", "top_fraction", 1)
    assert [row["row"] for row in kept] == [0, 1] and dropped[0]["reason"] == "no_value"


def test_rubric_without_a_place_for_the_pair_is_refused(engine, template, tmp_path):
    with pytest.raises(judge.JudgeError, match=r"does not contain \{response\}"):
        judge.rate(candidates(), engine, template, "Rate {instruction}", 64, WorkFile(tmp_path, "x"))


def test_text_that_holds_a_placeholder_is_not_filled(template):
    assert len(judge.digit_ids(template)) == len(set(judge.digit_ids(template))) == 5


@pytest.mark.parametrize(
    "rule, value, expected",
    [("threshold", 0.3, {1, 3}), ("threshold", 0.9, {3}), ("top_fraction", 0.5, {1, 3}), ("top_fraction", 1, {0, 1, 2, 3})],
)
def test_keep(rule, value, expected):
    rows = rated([0.1, 0.3, 0.2, 0.9])
    kept, dropped = judge.keep(rows, "instruction_gain", rule, value)
    settle("curate", rows, kept, dropped)
    assert {row["row"] for row in kept} == expected
    assert all(row["reason"] == "low_instruction_gain" for row in dropped)


def test_row_without_a_value_is_dropped_as_such():
    kept, dropped = judge.keep(rated([math.nan, 0.5]), "instruction_gain", "top_fraction", 1)
    assert [row["row"] for row in kept] == [1] and dropped[0]["reason"] == "no_value"


def test_none_above_the_threshold_says_what_the_best_is():
    with pytest.raises(judge.JudgeError, match=r"none of 2 candidates is kept by rating with threshold 4\.5; the best is 3\.200"):
        judge.keep(rated([3.2, 3.1], "rating"), "rating", "threshold", 4.5)
