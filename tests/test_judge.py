"""Ratings always have a value, good pairs gain, and what is kept is what was asked for."""

import dataclasses
import math

import numpy as np
import pytest
from conftest import segment

from backtranslation import funnel, judge
from backtranslation.engines import Completion, TransformersEngine
from backtranslation.judge import Judge
from backtranslation.records import COLUMNS, SIGNALS, WorkFile, settle

RUBRIC = "Rate.\n{instruction}\n{response}\nScore it."


def candidates(count: int = 6) -> list[dict]:
    return [{**segment(n), "segment": segment(n)["id"], "instruction": f"What about {n}?"} for n in range(count)]


def rated(values: list[float], signal: str = "instruction_gain") -> list[dict]:
    return [{**segment(n), "segment": segment(n)["id"], "instruction": "x?", signal: value} for n, value in enumerate(values)]


WRITTEN = {"samples": 2, "max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}


@pytest.fixture
def engine(tiny, template):
    return lambda: TransformersEngine(tiny, template.stop_id, dtype="float32")


@pytest.fixture
def asked(engine, template):
    return Judge(
        template,
        RUBRIC,
        ["rating", "instruction_gain", "backward_gain"],
        engine,
        load_backward=engine,
        backward_prompt="{response}\nWhat was asked?",
        generated=WRITTEN,
        batch_tokens=64,
    )


def test_expected_rating_of_known_probabilities():
    p = np.array([[0, 0, 0, 0, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1]])
    with np.errstate(divide="ignore"):
        sure, unsure = judge.expected(np.log(p))
    assert (sure["rating"], sure["rating_mass"]) == (5.0, 0.5)
    assert sure["rating_entropy"] == pytest.approx(0, abs=1e-6)
    assert (unsure["rating"], unsure["rating_entropy"]) == (pytest.approx(3), pytest.approx(math.log(5)))


@pytest.mark.parametrize(
    "verdict, score",
    [
        ("It helps.\nScore: 4", 4),
        ("Score: 1\n\n", 1),
        ("**Score: 3**", 3),
        ("Score: <4>", 4),
        ("score: 2.", 2),
        ("Score: 10", None),
        ("Score: 4/5", None),
        ("Score: 4.5", None),
        ("Score: 0", None),
        ("Score: -4", None),
        ("Score: 3 ... Score: 5", None),
        ("Score:", None),
        ("Score: 4\nThat is all.", None),
        ("I give it Score: 4", None),
        ("4", None),
        ("", None),
    ],
)
def test_a_written_score_counts_only_when_it_is_plain(verdict, score):
    assert judge.parse_score(verdict) == score


def test_every_candidate_gets_the_signals_that_were_asked_for(asked, tmp_path):
    rows = judge.rate(candidates(), asked, WorkFile(tmp_path, "x"))
    assert [row["id"] for row in rows] == [row["id"] for row in candidates()]
    given = [name for name in SIGNALS if name not in COLUMNS["rating_generated"]]
    assert all(math.isfinite(row[name]) for row in rows for name in given)
    assert all(1 <= row["rating"] <= 5 for row in rows)
    assert all(math.isnan(row[name]) for row in rows for name in COLUMNS["rating_generated"])


def test_gains_are_what_a_plain_pass_says(asked, engine, template, tmp_path):
    row = judge.rate(candidates(1), asked, WorkFile(tmp_path, "x"))[0]
    answer = template.completion(row["text"])
    given, empty = engine().sequence_logprobs([template.prompt(row["instruction"]), template.prompt("")], [answer] * 2)
    assert row["instruction_gain"] == pytest.approx((given - empty).mean(), abs=1e-4)
    assert row["opening_gain"] == pytest.approx((given - empty)[: judge.OPENING].mean(), abs=1e-4)
    assert row["ending_logprob"] == pytest.approx(given[-1], abs=1e-4) and answer[-1] == template.stop_id


def test_copies_gain_nothing(asked, template, tmp_path):
    """Copying explains itself: the response's first sentence must not be the best instruction of all."""
    text = "The answer explains how the iterator works. It also explains the text of the module."
    echo = {**candidates(1)[0], "instruction": "The answer explains how the iterator works.", "text": text}
    part = {**candidates(2)[1], "instruction": "Write the instruction for the text.", "text": text}
    copies = [judge.copied(template.completion(row["instruction"]), template.completion(row["text"])) for row in (echo, part)]
    # All but the token that ends the turn.
    assert copies[0][:-1].all() and not copies[0][-1] and not copies[1].any()
    rows = judge.rate([echo, part], asked, WorkFile(tmp_path, "x"))
    end = asked.load().sequence_logprobs(
        [template.prompt(f"{said}\nWhat was asked?") for said in (text, "")], [template.completion(echo["instruction"])] * 2
    )
    assert rows[0]["backward_gain"] == pytest.approx((end[0] - end[1])[-1] / len(copies[0]), abs=1e-4)
    assert rows[0]["instruction_logprob"] == pytest.approx(end[1].mean(), abs=1e-4)


def test_a_pair_that_stands_there_twice_is_rated_once(asked, engine, tmp_path):
    calls = []

    def counting():
        loaded = engine()
        original = loaded.choice_logprobs
        loaded.choice_logprobs = lambda prompts, digits: calls.extend(prompts) or original(prompts, digits)
        return loaded

    rows = candidates(2)
    twice = judge.rate([*rows, rows[0]], dataclasses.replace(asked, load=counting, signals=["rating"]), WorkFile(tmp_path, "x"))
    assert len(calls) == 2 and len(twice) == 3 and twice[0]["rating"] == twice[2]["rating"]


def test_another_judges_backward_signals_are_taken_over(asked, engine, tmp_path):
    first = judge.rate(candidates(3), asked, WorkFile(tmp_path / "a", "x"))

    def none():
        raise AssertionError("the backward model was loaded again")

    again = judge.rate(candidates(3), dataclasses.replace(asked, load_backward=none), WorkFile(tmp_path / "b", "x"), first)
    assert [row["backward_gain"] for row in again] == [row["backward_gain"] for row in first]


def test_verdicts_without_a_score_are_counted_and_have_no_value(engine, template, tmp_path):
    texts = iter(["Good.\nScore: 4", "Score: 2", "Score: 4/5", "Well", "Score: 5", "no"])

    def scripted():
        loaded = engine()
        loaded.generate = lambda prompts, sampling, seeds, done: (
            (i, Completion(next(texts), [1], "stop", -1.0)) for i in range(len(prompts))
        )
        return loaded

    asked = Judge(template, RUBRIC, ["rating_generated"], scripted, generated=WRITTEN)
    rows = judge.rate(candidates(3), asked, WorkFile(tmp_path, "x"))
    assert [row["rating_parsed"] for row in rows] == [1, 0, 0.5]
    assert rows[0]["rating_generated"] == 3 and math.isnan(rows[1]["rating_generated"]) and rows[2]["rating_generated"] == 5
    kept, dropped = judge.keep(rows, "rating_generated", "threshold", 1)
    assert [row["row"] for row in kept] == [0, 2] and [row["reason"] for row in dropped] == ["no_value"]


def test_written_verdicts_of_a_model_are_seeded(engine, template, tmp_path):
    asked = Judge(template, RUBRIC, ["rating_generated"], engine, generated=WRITTEN)
    found = [judge.rate(candidates(2), asked, WorkFile(tmp_path / name, "x")) for name in "ab"]
    assert repr(found[0]) == repr(found[1]) and all(row["rating_parsed"] == 0 for row in found[0])


def test_a_stopped_rating_goes_on_and_gives_the_same(asked, engine, tmp_path):
    whole = judge.rate(candidates(), asked, WorkFile(tmp_path / "a", "x"))
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
        judge.rate(candidates(), dataclasses.replace(asked, load=failing), WorkFile(tmp_path / "b", "x"))
    again = WorkFile(tmp_path / "b", "x")
    assert 0 < len(again.done) < 6
    resumed = judge.rate(candidates(), asked, again)
    assert repr(resumed) == repr(whole)


def test_row_over_the_context_is_dropped_and_never_cut(asked, tmp_path):
    rows = [*candidates(2), {**candidates(3)[2], "text": "long " * 3000}]
    rated_rows = judge.rate(rows, asked, WorkFile(tmp_path, "x"))
    kept, dropped = judge.keep(rated_rows, "rating", "top_fraction", 1)
    assert [row["row"] for row in kept] == [0, 1] and dropped[0]["reason"] == "no_value"


def test_rubric_without_a_place_for_the_pair_is_refused(engine, template):
    with pytest.raises(judge.JudgeError, match=r"does not contain \{response\}"):
        Judge(template, "Rate {instruction}", ["rating"], engine)


def test_digits_are_tokens_of_their_own(template):
    assert len(judge.digit_ids(template)) == len(set(judge.digit_ids(template))) == 5


def test_any_pairs_are_scored_without_a_workflow(tiny, tmp_path):
    (tmp_path / "rubric.txt").write_text(RUBRIC)
    pairs = [{"instruction": "What is it?", "response": "A list."}, {"instruction": "What is it?", "response": "A list."}]
    table = judge.score(pairs, tiny, tmp_path / "rubric.txt", dtype="float32")
    assert table["rating"].between(1, 5).all() and table["instruction_gain"].notna().all() and len(table) == 2
    with pytest.raises(judge.JudgeError, match="pair 2: the field response is missing"):
        judge.score([pairs[0], {"instruction": "x"}], tiny, tmp_path / "rubric.txt")


def test_best_of_several_candidates():
    rows = [{**row, "segment": "ab"[n > 2]} for n, row in enumerate(rated([0.1, 0.3, math.nan, 0.2, math.nan]))]
    best, others = judge.best_of(rows, "instruction_gain")
    settle("best_of", rows, best, others)
    assert [row["row"] for row in best] == [1, 3] and {row["reason"] for row in others} == {"not_best"}


def test_report_says_what_the_choice_among_several_bought():
    # Segment a: the second is better; segment b: its first candidate did not pass the gate.
    rows = [{**row, "segment": segment} for row, segment in zip(rated([0.1, 0.3, 0.2]), ("a", "a", "b"), strict=True)]
    rows[0]["segment"] = rows[1]["segment"] = rows[0]["id"]
    best, _ = judge.best_of(rows, "instruction_gain")
    line = funnel.signal_statistics(rows, set(), ("instruction_gain",), "instruction_gain").iloc[0]
    assert (line["segments_of_first"], line["segments_of_best"]) == (1, 2) and line["mean_of_first"] == 0.1
    assert line["mean_of_best"] == pytest.approx(sum(row["instruction_gain"] for row in best) / 2) == 0.25
    # With one candidate each there was nothing to choose.
    assert "mean_of_best" not in funnel.signal_statistics(rows[1:], set(), ("instruction_gain",), "instruction_gain")


def test_combination_weighs_standardised_signals():
    weights = {"signals": ["rating", "instruction_gain"], "mean": [3, 0], "scale": [1, 0.5], "weight": [1, 2], "intercept": -1}
    rows = [{"rating": 4.0, "instruction_gain": 0.0}, {"rating": 3.0, "instruction_gain": math.nan}]
    found = judge.combine(rows, weights)
    assert found[0] == pytest.approx(0.5) and math.isnan(found[1])


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
