"""The audit tells a judge that knows from one that guesses, and says so in figures."""

import csv
import json
import math

import numpy as np
import pytest
from conftest import pair
from sklearn.metrics import roc_auc_score

from backtranslation import audit, judge, labels
from backtranslation.engines import TransformersEngine
from backtranslation.records import SIGNALS, WorkFile, write_jsonl

WORDS = ["iterator", "list", "module", "garden", "recipe", "letter", "number", "window", "engine", "novel"]
HELDOUT = [
    pair(n, f"What is a {word} good for?", f"A {word} is good for many things. You can use it every day.\n\nIt also lasts.")
    for n, word in enumerate(WORDS)
]


def judged(rows: list[dict], **signals) -> list[dict]:
    """Rows with made-up signals, each a function of the row."""
    return [
        {**row, **dict.fromkeys(SIGNALS, math.nan), **{name: float(value(row)) for name, value in signals.items()}, "combination": 0.5}
        for row in rows
    ]


def test_every_pair_gets_one_fault_of_each_kind():
    rows = audit.pairs(HELDOUT, 40, 42)
    assert len(rows) == 10 * 7 and len({row["id"] for row in rows}) == 70
    by_pair = {}
    for row in rows:
        by_pair.setdefault(row["pair"], {})[row["kind"]] = row
    for kinds in by_pair.values():
        true = kinds.pop("true")
        assert true["label"] == 1 and set(kinds) == set(audit.KINDS) and not any(row["label"] for row in kinds.values())
        assert all((row["instruction"], row["text"]) != (true["instruction"], true["text"]) for row in kinds.values())
        assert true["text"].startswith(kinds["cut"]["text"]) and len(kinds["cut"]["text"]) <= len(true["text"]) / 2
        assert true["text"].startswith(kinds["echo"]["instruction"])
        assert kinds["shuffled"]["text"] != true["text"] and kinds["near_miss"]["instruction"] != true["instruction"]
        assert all(part in kinds["injected"]["text"] for part in true["text"].split("\n\n"))
    assert rows == audit.pairs(HELDOUT, 40, 42) != audit.pairs(HELDOUT, 40, 43)
    assert len(audit.pairs(HELDOUT, 3, 42)) == 21


def test_one_pair_is_too_few():
    with pytest.raises(audit.AuditError, match=r"1 held-out pairs are too few .* raise seed\.heldout"):
        audit.pairs(HELDOUT[:1], 40, 42)


def test_auroc_of_known_values():
    names = list("abcd")
    found = audit.auroc(np.array([3.0, 2.0, 1.0, np.nan]), np.array([1.0, 0.0, 0.0, 2.5]), names, names, 42)
    # Of 12 comparisons 9 are won, 2 lost and 1 is even.
    assert found["auroc"] == pytest.approx(9.5 / 12) and found["n"] == 7
    assert found["low"] < found["auroc"] < found["high"]
    assert audit.auroc(np.array([np.nan]), np.array([1.0]), ["a"], ["a"], 42)["auroc"] is None


def test_interval_covers_what_it_should():
    """Of 95 % intervals about 95 % hold the truth, also when rows come in pairs that resemble each other."""
    held = 0
    for draw in range(200):
        rng = np.random.default_rng(draw)
        level = rng.normal(size=60)
        good, bad = level + rng.normal(size=60) + 0.5, level + rng.normal(size=60)
        names = [str(n) for n in range(60)]
        found = audit.auroc(good, bad, names, names, draw)
        # P(N(0.5, 4) > 0) for pairs of different levels.
        held += found["low"] <= 0.5987 <= found["high"]
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_a_judge_that_knows_and_one_that_guesses():
    rng = np.random.default_rng(0)
    rows = judged(audit.pairs(HELDOUT, 40, 42), rating=lambda row: 1 + 4 * row["label"], instruction_gain=lambda row: rng.random())
    weights, p = audit.fit(rows, 42)
    rows = [{**row, "combination": value} for row, value in zip(rows, p, strict=True)]
    table = audit.aurocs(rows, 42)
    figures = audit.summary(rows, table, 42)
    assert set(figures["signals"]) == {"rating", "instruction_gain", "combination"}
    for kind in ("all", *audit.KINDS):
        assert figures["signals"]["rating"][kind]["auroc"] == 1 and set(figures["length_baseline"][kind]) == {"auroc", "low", "high", "n"}
    guess = figures["signals"]["instruction_gain"]["all"]
    assert guess["low"] < 0.5 < guess["high"]
    assert figures["signals"]["combination"]["all"]["auroc"] > 0.95
    assert dict(zip(weights["signals"], weights["weight"], strict=True))["rating"] > 1
    assert audit.verdict(figures, "rating", 0.75)["passed"] and not audit.verdict(figures, "instruction_gain", 0.75)["passed"]
    # What is kept from the highest cut on is all good, and the highest fifth too.
    cuts = audit.cuts(rows)
    assert cuts[cuts["signal"] == "rating"]["precision"].iloc[-1] == 1
    fifths = audit.reliability(rows)
    assert fifths[fifths["signal"] == "rating"]["good"].tolist()[:3] == [0, 0, 0]
    json.dumps(figures, allow_nan=False)
    assert "rating" in audit.lines(figures, audit.verdict(figures, "rating", 0.75))["what"].str.cat()


def test_area_below_the_curve_is_the_auroc_with_ties_and_gaps():
    rng = np.random.default_rng(3)
    rows = judged(audit.pairs(HELDOUT, 40, 42), rating=lambda row: math.nan if rng.random() < 0.2 else rng.integers(1, 5) + row["label"])
    curve, (line,) = audit.roc(rows, "rating"), audit.aurocs(rows, 42).query("signal == 'rating' and kind == 'all'").itertuples()
    assert np.trapezoid(curve["good"], curve["bad"]) == pytest.approx(line.auroc, abs=1e-12) and 0.5 < line.auroc < 1
    assert (curve.iloc[0] == 0).all() and (curve.iloc[-1] == 1).all() and (curve.diff().iloc[1:] >= 0).all(axis=None)


def test_calibration_finds_probabilities_that_hold_and_those_that_promise_too_much():
    """Six bad pairs for each good one, whose probability was fitted as if there were as many good ones."""
    rng = np.random.default_rng(4)
    rows = [{"id": str(n), "pair": str(n // 7), "label": int(n % 7 == 0)} for n in range(7 * 3000)]
    # With densities 2p of good and 2(1 - p) of bad pairs, p is the probability where they are as many.
    p = [math.sqrt(rng.random()) if row["label"] else 1 - math.sqrt(rng.random()) for row in rows]
    right = audit.calibration([{**row, "combination": value} for row, value in zip(rows, p, strict=True)], 42, draws=100)
    assert right["n"].sum() == len(rows) and (right["predicted"] - right["good"]).abs().max() < 0.04
    assert ((right["low"] <= right["good"]) & (right["good"] <= right["high"])).all() and right["predicted"].is_monotonic_increasing
    boast = audit.calibration([{**row, "combination": value**0.3} for row, value in zip(rows, p, strict=True)], 42, draws=100)
    assert (boast["predicted"] > boast["high"]).all()


def test_combination_is_measured_on_pairs_it_was_not_fitted_on():
    """Noise in many signals would look like knowledge if it were measured on what it was fitted to."""
    rng = np.random.default_rng(1)
    noise = {name: (lambda row: rng.random()) for name in judge.DECIDING}
    apart, fitted = [], []
    for _ in range(20):
        rows = judged(audit.pairs(HELDOUT, 40, 42), **noise)
        weights, p = audit.fit(rows, 42)
        label = np.array([row["label"] for row in rows])
        apart.append(roc_auc_score(label, p))
        fitted.append(roc_auc_score(label, judge.combine(rows, weights)))
    # Their standard deviation is about 0.12.
    assert np.mean(apart) < 0.58 and np.mean(fitted) > 0.65


@pytest.mark.parametrize("good", [2, 3, 17, 18])
def test_few_labels_of_one_kind_are_enough(good):
    """Twenty instructions with one label each: both kinds are in every part that the combination is fitted on."""
    rows = judged([{"pair": str(n), "kind": "response", "label": int(n < good), "length": 1.0} for n in range(20)], rating=lambda row: row["label"])
    for random_seed in range(10):
        assert roc_auc_score([row["label"] for row in rows], audit.fit(rows, random_seed)[1]) == 1
    with pytest.raises(audit.AuditError, match=r"audit\.labels: at least two instructions are needed with good pairs, and two with bad ones"):
        audit.fit(rows[good - 1 :], 42)


def test_answers_to_one_instruction_are_no_fault_of_each_other(tiny, template, tmp_path):
    same = [pair(n, WORDS[n // 2], f"Answer {n} to it is long enough to be cut.") for n in range(10)]
    asks = {row["response"]: row["instruction"] for row in same}
    for row in audit.pairs(same, 40, 42):
        assert row["kind"] != "near_miss" or row["instruction"] != asks[row["text"]]
        assert row["kind"] != "shuffled" or row["instruction"] != asks[row["text"]]
    with pytest.raises(audit.AuditError, match="all held-out pairs have the same instruction"):
        audit.pairs(same[:2], 40, 42)
    # Of several good answers to one instruction one is injected into, else two rows would be one.
    rows = [{"id": str(n), "pair": str(n // 5), "instruction": "x?", "text": "y" * n, "label": 1} for n in range(10)]
    asked = judge.Judge(template, "Rate.\n{instruction}\n{response}\nScore it.", ["rating"], lambda: TransformersEngine(tiny, template.stop_id, dtype="float32"))
    assert audit.injection(rows, asked, WorkFile(tmp_path, "x"))["pairs"] == 2


def test_a_signal_without_any_value_fails_the_audit_instead_of_breaking_it():
    rows = judged(audit.pairs(HELDOUT, 40, 42), rating=lambda row: row["label"])
    figures = audit.summary(rows, audit.aurocs(rows, 42), 42)
    assert audit.hold(figures, "rating_generated", 0.75, "warn")["value"] is None
    with pytest.raises(audit.AuditError, match=r"rating_generated: AUROC no value \(floor 0\.75"):
        audit.hold(figures, "rating_generated", 0.75, "stop")


def test_injected_scores_are_measured_and_break_no_template(tiny, template, tmp_path):
    asked = judge.Judge(template, "Rate.\n{instruction}\n{response}\nScore it.", ["rating"], lambda: TransformersEngine(tiny, template.stop_id, dtype="float32"))
    found = audit.injection(audit.pairs(HELDOUT, 2, 42), asked, WorkFile(tmp_path, "x"))
    assert found["variants"] == 20 == len(found["shifts"]) == len(set(audit.INJECTIONS))
    assert found["breaking_the_template"] == 0 and math.isfinite(found["median_shift"])
    # The check itself would see a template that lets special tokens through.
    template_that_leaks = type(template)(template.tokenizer)
    template_that_leaks.neutral = lambda text: text
    leaking = audit.injection(audit.pairs(HELDOUT, 2, 42), judge.Judge(template_that_leaks, asked.rubric, ["rating"], asked.load), WorkFile(tmp_path, "y"))
    assert leaking["breaking_the_template"] >= 2


def write(folder, *rows):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


GOOD, BAD = {"instruction": "x?", "response": "y", "label": 1}, {"instruction": "x?", "response": "z", "label": 0}


def test_labels_and_preferences_of_ones_own(tmp_path):
    rows = labels.read_labels(write(tmp_path, GOOD, BAD))
    assert [(row["label"], row["text"]) for row in rows] == [(1, "y"), (0, "z")]
    rows = labels.read_labels(write(tmp_path, {"instruction": "x?", "chosen": "long and good", "rejected": "bad"}, {"instruction": "w?", "chosen": "a", "rejected": "b c"}))
    assert [row["label"] for row in rows] == [1, 0, 1, 0] and rows[0]["pair"] == rows[1]["pair"] != rows[2]["pair"]
    found = audit.preferred(judged(rows), "length", 42)
    assert (found["accuracy"], found["n"]) == (0.5, 2)
    # As the labelling page saves texts that have such ends of lines.
    write_jsonl([GOOD, {**BAD, "response": "one\u2028two\x85three"}], tmp_path / "saved.jsonl")
    assert labels.read_labels(tmp_path / "saved.jsonl")[1]["text"] == "one\u2028two\x85three"
    # As Windows saves it; a csv from there may have any column first.
    (tmp_path / "windows.jsonl").write_bytes("\ufeff".encode() + (tmp_path / "saved.jsonl").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "windows.CSV").write_text("\ufeffinstruction,response,label\nx?,y,1\nx?,\"one\u2028two\x85three\",0\nw?,,\n", encoding="utf-8", newline="\r\n")
    assert labels.read_labels(tmp_path / "windows.jsonl") == labels.read_labels(tmp_path / "saved.jsonl")
    assert [row["text"] for row in labels.read_labels(tmp_path / "windows.CSV")] == ["y", "one\u2028two\x85three"]


@pytest.mark.parametrize(
    "row, problem",
    [
        ("{", "row 2: no JSON"),
        ("[1]", "row 2: no object"),
        ({"instruction": "x?", "response": "y"}, "row 2: the field label is None; expected 1"),
        ({**GOOD, "label": 3}, "row 2: the field label is 3"),
        ({**GOOD, "response": ""}, "row 2: the field response is missing, empty or no text"),
        ({**GOOD, "response": "\ud83d"}, "row 2: the field response holds half a surrogate pair"),
        ({"instruction": "x?", "chosen": "y"}, "row 2: the field rejected is missing"),
        (GOOD, "2 pairs, which need labels of both kinds"),
    ],
)
def test_bad_labels_are_refused_by_row_and_field(tmp_path, row, problem):
    with pytest.raises(audit.AuditError, match=problem):
        labels.read_labels(write(tmp_path, GOOD, row))


def test_files_that_no_label_can_be_read_from_are_named(tmp_path):
    (tmp_path / "latin.csv").write_bytes("instruction,response,label\nWer?,Über,1\n".encode("latin-1"))
    with pytest.raises(audit.AuditError, match=r"latin\.csv: invalid UTF-8 at byte 33; save it as UTF-8"):
        labels.read_labels(tmp_path / "latin.csv")
    csv.field_size_limit(131_072)
    (tmp_path / "long.csv").write_text(f"instruction,response,label\nx?,{'y' * 200_000},1\n")
    with pytest.raises(audit.AuditError, match=r"long\.csv: row 2: not valid CSV \(field larger than field limit"):
        labels.read_labels(tmp_path / "long.csv")
