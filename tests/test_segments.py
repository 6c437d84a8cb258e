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


@pytest.mark.parametrize(
    "text, reason",
    [
        ("# 1.2.3\n\nA text of some kind, which is whole.", "empty_header"),
        ("## ALL IN CAPITALS\n\nA text of some kind, which is whole.", "uppercase_header"),
        ("# LDAP\n\nA text of some kind, which is whole.", None),
        ("See also\n========\n\nA text of some kind, which is whole.", "navigation_header"),
        ("# 4.2. Links\n\nA text of some kind, which is whole.", None),
        ("THIS IS SHOUTED and the rest is NOT SO MUCH.", "capitals"),
        ("ЭТО КРИК и больше НИЧЕГО НЕТ.", "capitals"),
        ("{a} = [b] | <c> / {d} == [e] && <f> ## @@ $$ %%.", "symbols"),
        ("- one of them\n- two of them\n- three of them", "bullets"),
        ("The cat sat on the mat today. " * 4, "repetitive"),
        ("One line is here with words of its own. Another line is there, with other words in it.", None),
        ("It ends in the middle of the", "unfinished"),
        ("It ends with what is to follow:", "unfinished"),
        ("of the sentence before it, as one sees.", "unfinished"),
        ("It ends with code:\n\n```\nprint(1)\n```", None),
        ("It ends with a list:\n\n- one thing\n- another", None),
        ("これは文です。もう一つの文です。", None),
        # Vowels that are signs of their own are no symbols, and each script ends its sentences.
        ("भारत एक विशाल देश है जिसकी संस्कृति बहुत पुरानी और विविध है।", None),
        ("தமிழ்நாடு இந்தியாவின் தென்பகுதியில் அமைந்துள்ள ஒரு மாநிலம் ஆகும்.", None),
        ("הַשָּׁמַיִם מְסַפְּרִים כְּבוֹד אֵל וּמַעֲשֵׂה יָדָיו מַגִּיד הָרָקִיעַ.", None),
        ("اردو ایک خوبصورت زبان ہے۔", None),
        ("ما هي عاصمة فرنسا؟", None),
        ("Ποια είναι η πρωτεύουσα της Γαλλίας;", None),
        ("It ends in the middle of the list;", "unfinished"),
        ("❤️ 1️⃣ ❤️ 2️⃣ ❤️ 3️⃣ and so on.", "symbols"),
    ],
)
def test_reasons_of_filters_and_their_switches(text, reason):
    found = segments.problem(text.strip(), FILTERS)
    assert (found and found.reason) == reason
    off = {name: False if isinstance(value, bool) else None for name, value in FILTERS.items()}
    assert segments.problem(text.strip(), off) is None


def test_licences_are_asked_for_only_where_wanted():
    text = "A text of some kind, which is whole."
    rows = [document(text, licence) for licence in (None, "mit", "all rights reserved")]
    for number, row in enumerate(rows):
        row["row"] = number
    for allowed, reasons in ((None, []), ([], ["no_licence"]), (["mit"], ["no_licence", "licence"])):
        assert [row["reason"] for row in segments.segment(rows, {**FILTERS, "licences": allowed})[2]] == reasons


def test_personal_data_is_masked_everywhere():
    text = "Write to jane.doe+x@mail.example.org, or call +49 (0)30 1234-5678 or 030 123 45 67. Version 3.11.7 of 2024-01-15, 10 000 items, 1990-2000."
    masked = "Write to <email>, or call <phone> or <phone>. Version 3.11.7 of 2024-01-15, 10 000 items, 1990-2000."
    assert segments.mask(text) == masked
    pieces, kept, dropped = segments.segment([document(text + " and", licence=None)], {**FILTERS, "mask_personal_data": True})
    assert [row["text"] for row in dropped] == [masked + " and"] and not kept and pieces[0]["text"] == masked + " and"


CODE = "Intro of it.\n\n```\n# not a header\n\nprint(1)\n```\n\n# Header\n\n" + "Words of the section. " * 20


def test_comments_in_code_are_no_headers_and_code_is_never_divided():
    assert [piece.split("\n")[0] for piece in segments.cut(CODE, 100)][:2] == ["Intro of it.", "# Header"]
    assert all(piece.count("```") % 2 == 0 for piece in segments.cut(CODE, 30))


def test_long_prose_is_cut_between_sentences():
    pieces = segments.cut("A sentence of some length is here. " * 50, 200)
    assert all(len(piece) <= 200 and piece.endswith(".") for piece in pieces)


@pytest.mark.parametrize("sentence", ["भारत एक विशाल देश है। ", "اردو ایک خوبصورت زبان ہے۔ ", "ما هي عاصمة فرنسا؟ "])
def test_prose_of_other_scripts_is_cut_between_sentences_too(sentence):
    pieces = segments.cut(sentence * 50, 200)
    assert all(len(piece) <= 200 and piece.endswith(sentence[-2]) for piece in pieces)


PARTS = ["# A\n", "## B\n", "Head\n====\n", "```\n", "````\n", "| a | b |\n", "  code\n", "text text. ", "\n\n", "x" * 50, "\u202eשלום\u200f ", "。", "- item\n", "\t", "\u2028"]


@given(st.one_of(st.lists(st.sampled_from(PARTS), max_size=40).map("".join), st.text(max_size=300)), st.integers(1, 120))
def test_any_text_is_cut_without_loss_and_with_stable_ids(text, max_chars):
    def squeezed(said: str) -> str:
        return re.sub(r"\s", "", said)

    assert squeezed("".join(segments.cut(text, max_chars))) == squeezed(text)
    row = document(text.encode("utf-8", "replace").decode(), max_chars=max_chars)
    pieces, kept, dropped = segments.segment([row], FILTERS)
    settle("segment", pieces, kept, dropped)
    assert [piece["id"] for piece in pieces] == [piece["id"] for piece in segments.segment([row], FILTERS)[0]]
    assert squeezed("".join(piece["text"] for piece in pieces)) == squeezed(row["text"])


def test_split_is_by_id_and_never_empty():
    pairs = [pair(n) for n in range(1, 21)]
    train, heldout = segments.split(pairs, 0.2, 42)
    assert len(heldout) == 4 and not {r["id"] for r in train} & {r["id"] for r in heldout}
    assert {r["id"] for r in segments.split(pairs[::-1], 0.2, 42)[1]} == {r["id"] for r in heldout}
    # What is asked of the held-out pairs is asked of no other.
    twice = [{**row, "instruction": pairs[n // 2]["instruction"]} for n, row in enumerate(pairs)]
    train, heldout = segments.split(twice, 0.2, 42)
    assert len(train) + len(heldout) == len(pairs) and not {r["instruction"] for r in train} & {r["instruction"] for r in heldout}
    for share in (0.01, 0.99):
        with pytest.raises(ValueError, match=r"seed\.heldout: .* of 20 pairs leaves"):
            segments.split(pairs, share, 42)


def test_python_manual_is_there():
    topics = dict(segments.python_topics())
    assert "with" in topics and len(topics) > 50
    names = [name for name, text in segments.python_docstrings() if len(text) >= 400]
    assert len(names) > 500 and not any(name.startswith("test.") for name in names)
