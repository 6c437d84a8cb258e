"""Cutting loses no text, filters name their reason, and draws depend on content and seed alone."""

import re

import pytest
from conftest import pair
from hypothesis import given
from hypothesis import strategies as st

from backtranslation import segments
from backtranslation.records import settle

MANUAL = "Title\n=====\n\nIntro.\n\nFirst\n-----\n\n" + "Words of the first. " * 30 + "\n\nSecond\n------\n\n" + "Words of the second. " * 30


FILTERS = {"headers": True, "capitals": 0.3, "symbols": 0.25, "bullets": 0.9, "repetition": 0.3, "unfinished": True, "licences": None, "mask_personal_data": False}


def document(text: str, licence: str | None = None, **settings) -> dict:
    given_settings = {"cut": True, "min_chars": 1, "max_chars": 700, "language": None, **settings}
    row = {"source": "a.txt", "row": 1, "text": text, "true_instruction": None, "licence": licence, "stratum": None, "source_number": 0}
    return {**row, "settings": given_settings}


def test_cuts_at_headers():
    pieces = segments.cut(MANUAL, 700)
    assert [piece.split("\n")[0] for piece in pieces] == ["Title", "First", "Second"]


@given(st.lists(st.sampled_from(["# A\n", "## B\n", "Head\n====\n", "Sub\n---\n", "text text ", "\n\n", "x" * 50])).map("".join), st.integers(1, 200))
def test_cut_loses_no_text(text, max_chars):
    assert re.sub(r"\s", "", "".join(segments.cut(text, max_chars))) == re.sub(r"\s", "", text)


def test_reasons_of_dropped_segments():
    english = "This is a plain English sentence about the weather in the mountains. " * 3
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter in den Bergen. " * 3
    rows = [document(text, cut=False, min_chars=20, max_chars=400, language="en") for text in ("short", english, german, "y" * 500)]
    for number, row in enumerate(rows, start=1):
        row["row"] = number
    pieces, kept, dropped = segments.segment(rows, {**FILTERS, "repetition": None})
    settle("segment", pieces, kept, dropped)
    assert [row["row"] for row in kept] == [2]
    assert {row["row"]: row["reason"] for row in dropped} == {1: "too_short", 3: "language", 4: "too_long"}


def test_split_is_by_id_and_never_empty():
    pairs = [pair(n) for n in range(1, 21)]
    train, heldout = segments.split(pairs, 0.2, 42)
    assert len(heldout) == 4 and not {r["id"] for r in train} & {r["id"] for r in heldout}
    assert {r["id"] for r in segments.split(pairs[::-1], 0.2, 42)[1]} == {r["id"] for r in heldout}
    for share in (0.01, 0.99):
        with pytest.raises(ValueError, match=r"seed\.heldout: .* of 20 pairs leaves"):
            segments.split(pairs, share, 42)


def test_python_manual_is_there():
    topics = dict(segments.python_topics())
    assert "with" in topics and len(topics) > 50
    names = [name for name, text in segments.python_docstrings() if len(text) >= 400]
    assert len(names) > 500 and not any(name.startswith("test.") for name in names)
