"""Own data by configuration alone; damage is named with file, row and field, or goes to the ledger."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from test_segments import FILTERS

from backtranslation import corpus, decontamination, records, sources
from backtranslation.sources import CORPUS_ROLES, SEED_ROLES, SourceError

ROWS = [{"q": {"text": "What is it?"}, "a": ["An answer, with a comma."]}, {"q": {"text": "And this?"}, "a": ["Größe: 3 µm"]}]
MAPPED = {"columns": {"instruction": "q.text", "response": "a.0"}}
PLAIN = [{"q": row["q"]["text"], "a": row["a"][0]} for row in ROWS]
FLAT = {"columns": {"instruction": "q", "response": "a"}}


def source(path, **settings) -> dict:
    return {"path": str(path), "layout": "columns", "language": None, "cut": False, "subset": None, **settings}


def read(source: dict) -> tuple[list[dict], list[tuple]]:
    """(usable rows, (row number, reason, detail) of the others) of a corpus source."""
    rows = list(sources.read_corpus(source))
    return [row for row, problem in rows if not problem], [(row["row"], problem.reason, problem.detail) for row, problem in rows if problem]


def cut_part(folder, source: dict) -> dict:
    """What the job of a corpus that is this one source counts; its `pieces` and `dropped` are tables in the folder."""
    whole = {"min_chars": 1, "max_chars": 10_000, **source}
    files = [str(file) for file in sources.files_of(source)]
    paths = [str(folder / name) for name in ("pieces", "dropped", "counts")]
    corpus.cut_part([(0, whole, files)], FILTERS, decontamination.Protected([], 10), *paths)
    return records.read_json(paths[2])


def write(path, rows: list, **settings) -> dict:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return source(path, **settings)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, kind):
    path = tmp_path / f"seed.{kind}"
    settings = MAPPED
    if kind == "jsonl":
        write(path, ROWS)
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        settings = FLAT
        frame = pd.DataFrame(PLAIN)
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    kept, dropped = sources.read_seed([source(path, **settings)])
    assert [(row["instruction"], row["response"], row["row"]) for row in kept] == [
        ("What is it?", "An answer, with a comma.", 1),
        ("And this?", "Größe: 3 µm", 2),
    ]
    assert dropped == []


def test_ids_are_stable_and_distinct(tmp_path):
    first = sources.read_seed([write(tmp_path / "a.jsonl", PLAIN, **FLAT)])[0]
    again = sources.read_seed([write(tmp_path / "a.jsonl", PLAIN, **FLAT)])[0]
    assert [r["id"] for r in first] == [r["id"] for r in again] and first[0]["id"] != first[1]["id"]


def test_folder_of_texts(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_text("Second text.")
    (tmp_path / "a.md").write_text("# First\n\ntext")
    (tmp_path / "deep" / "c.rst").write_text("Größe und Höhe sind schön. " * 5, encoding="cp1252")
    (tmp_path / "d.pdf").write_bytes(b"%PDF")
    (tmp_path / "e.txt").write_bytes(b"\x00\x01\x02\x03" * 50)
    documents, dropped = read(source(tmp_path))
    assert [row["text"] for row in documents] == ["# First\n\ntext", "Second text.", ("Größe und Höhe sind schön. " * 5).strip()]
    assert [Path(row["source"]).name for row in documents] == ["a.md", "b.txt", "c.rst"]
    assert [reason for _, reason, _ in dropped] == ["binary"]


def test_guanaco_layout(tmp_path):
    rows = [
        {"text": "### Human: Why?### Assistant: Not a new turn."},
        {"text": "### Human: What is it?\n### Assistant: An answer\nwith ### marks."},
        {"text": "### Human: One?\n### Assistant: 1.\n### Human: Two?\n### Assistant: 2."},
        {"text": "### Human: Nobody answers"},
    ]
    kept, dropped = sources.read_seed([write(tmp_path / "g.jsonl", rows, layout="guanaco")])
    assert [(row["instruction"], row["response"]) for row in kept] == [
        ("Why?", "Not a new turn."),
        ("What is it?", "An answer\nwith ### marks."),
    ]
    assert [row["reason"] for row in dropped] == ["multi_turn", "no_answer"]


def test_lima_layout_as_corpus_keeps_the_true_instruction(tmp_path):
    rows = [{"conversations": ["Ask.", "Answer."], "source": "x"}, {"conversations": ["a", "b", "c", "d"], "source": "x"}]
    documents, dropped = read(write(tmp_path / "l.jsonl", rows, layout="lima", columns={"stratum": "source"}))
    assert [(row["text"], row["true_instruction"], row["stratum"]) for row in documents] == [("Answer.", "Ask.", "x")]
    assert [reason for _, reason, _ in dropped] == ["multi_turn"]


def test_seed_rows_that_are_merely_unusable_are_dropped(tmp_path):
    rows = [PLAIN[0], PLAIN[0], {"q": " ", "a": "x"}, {"q": "Was ist das Wetter heute in den Bergen?", "a": "Das Wetter ist heute sehr schön und warm."}]
    kept, dropped = sources.read_seed([write(tmp_path / "s.jsonl", rows, language="en", **FLAT)])
    assert len(kept) == 1
    assert [(row["row"], row["reason"]) for row in dropped] == [(2, "duplicate"), (3, "empty_field"), (4, "language")]


def test_a_seed_file_named_twice_is_an_error_and_two_splits_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twice = [write(tmp_path / "a.jsonl", PLAIN, **FLAT), source(tmp_path / "*.jsonl", **FLAT)]
    with pytest.raises(SourceError, match=r"a\.jsonl is read twice; name it in one source"):
        sources.read_seed(twice)
    splits = [{"hub": "a/b", "revision": "1", "subset": None, "split": split, "layout": "columns", "columns": {}, "language": None} for split in ("train", "test")]
    for n, split in enumerate(splits):
        path = sources.data_path(split)
        path.parent.mkdir(parents=True)
        pd.DataFrame({"instruction": [f"What is {n}?", "Why?"], "response": ["It.", ""]}).to_parquet(path)
    kept, dropped = sources.read_seed(splits)
    assert len(kept) == len(dropped) == 2 and len({row["id"] for row in kept + dropped}) == 4


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"q": "a", "a": "b"}\n{"q": "a", \n', r"seed\.jsonl: row 2: not valid JSON"),
        (b'{"q": "a", "a": "b"}\n{"q": "a"}\n', r"seed\.jsonl: row 2: no field 'a'; fields present: q"),
        (b'{"q": "a", "a": "b"}\n{"q": 3, "a": "b"}\n', r"seed\.jsonl: row 2: field 'q': expected text, found int"),
        (b'{"q": "a", "a": "b"}\n["q"]\n', r"seed\.jsonl: row 2: expected an object, found list"),
        (b'{"q": "a", "a": "b\xff"}\n', r"seed\.jsonl: row 1: invalid UTF-8 at byte 19"),
        (b'{"q": "a", "a": "\\ud800"}\n', r"seed\.jsonl: row 1: field 'a': holds half a surrogate pair"),
        (b'{"q": "a", "a": "b"}\n{"q": "' + b"x" * 50_000_000 + b'", "a": "b"}\n', r"seed\.jsonl: row 2: longer than \d+ bytes"),
        (b"", r"seed\.jsonl: holds no rows"),
        (b"\n\n", r"seed\.jsonl: holds no rows"),
    ],
)
def test_damaged_seed_names_file_row_and_field(tmp_path, content, message):
    path = tmp_path / "seed.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        sources.read_seed([source(path, **FLAT)])


def test_dirty_corpus_goes_to_the_ledger(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": \n{"text": "\xff"}\n{"other": 1}\n{"text": ""}\n{"text": "' + b"x" * 50_000_000 + b'"}\n{"text": "fine"}\n')
    documents, dropped = read(source(path))
    assert [row["text"] for row in documents] == ["good", "fine"]
    assert [(row, reason) for row, reason, _ in dropped] == [
        (2, "invalid_json"),
        (3, "invalid_utf8"),
        (4, "missing_field"),
        (5, "empty_field"),
        (6, "row_too_long"),
    ]


def test_half_surrogates_and_names_that_are_no_text_cost_one_row(tmp_path):
    """JSON may hold halves of surrogate pairs, and files of other systems names in other encodings; no table takes either."""
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.jsonl", [{"text": "Good."}])
    (folder / "b.jsonl").write_text('{"\\ud800k": 1}\n{"text": "Fine."}\n')
    (folder / "c.csv").write_bytes(b"text\xff,b\nabc,1\n")
    for name in (b"d\xfe.txt", b"d\xff.txt"):
        Path(os.fsdecode(bytes(folder) + b"/" + name)).write_text("The same in both.")
    counts = cut_part(tmp_path, source(folder))
    kept, dropped = (records.read(tmp_path / name) for name in ("pieces", "dropped"))
    assert [row["text"] for row in kept] == ["Good.", "Fine.", "The same in both.", "The same in both."] and len({row["source"] for row in kept}) == 4
    assert [(Path(row["source"]).name, row["row"], row["reason"], row["detail"]) for row in dropped] == [
        ("b.jsonl", 1, "missing_field", "no field 'text'; fields present: ?k"),
        ("c.csv", 1, "missing_field", "no field 'text'; fields present: text?, b"),
    ]
    assert counts["0"]["rows"] == 6


def test_lima_turns_with_half_a_surrogate_pair(tmp_path):
    (tmp_path / "l.jsonl").write_text('{"conversations": ["Ask.", "Answer."]}\n{"conversations": ["Ask.", "\\ud83d"]}\n{"conversations": ["\\ud83d", "Answer."]}\n')
    lima = source(tmp_path / "l.jsonl", layout="lima")
    documents, dropped = read(lima)
    assert len(documents) == 1 and [(row, reason) for row, reason, _ in dropped] == [(2, "invalid_utf8"), (3, "invalid_utf8")]
    with pytest.raises(SourceError, match=r"l\.jsonl: row 2: field 'conversations': holds half a surrogate pair"):
        sources.read_seed([lima])


def test_csv_with_damage(tmp_path):
    path = tmp_path / "c.csv"
    path.write_bytes(b'text,b\ngood,1\ntoo,many,columns\nbad\xff,2\n"two\nlines",3\n')
    documents, dropped = read(source(path))
    assert [row["text"] for row in documents] == ["good", "two\nlines"]
    assert [(row, reason) for row, reason, _ in dropped] == [(2, "invalid_csv"), (3, "invalid_utf8")]


@pytest.mark.parametrize(
    "content, row",
    [(b'q,a\nOne?,1\nTwo?,"2\nThree?,3\n', 2), (b'q,a\nOne?,1\nTwo?,"2\nThree?,3\nFour?,"4"\n', 2), (b'q,a\nOne?,"so" it is\n', 1), (b'q,"a\nOne?,1\n', 1)],
)
def test_a_stray_quotation_mark_swallows_no_rows_in_silence(tmp_path, content, row):
    path = tmp_path / "c.csv"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"c\.csv: row {row}: not valid CSV"):
        sources.read_seed([source(path, **FLAT)])
    documents, dropped = read(source(path, columns={"text": "a"}))
    assert dropped[0][:2] == (row, "invalid_csv") and not [row for row in documents if "\n" in row["text"]]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: source(folder / "no.jsonl"), r"no\.jsonl: no such file or folder"),
        (lambda folder: source(folder), r"this folder holds no file of a known kind"),
        (lambda folder: write(folder / "a.docx", PLAIN), r"a\.docx: unknown kind of file"),
        (lambda folder: write(folder / "a.jsonl", PLAIN, columns={"instruction": "wrong", "response": "a"}), r"a\.jsonl: row 1: no field 'wrong'; fields present: q, a"),
    ],
)
def test_sources_are_looked_at_before_any_job(tmp_path, make, message):
    with pytest.raises(SourceError, match=message):
        sources.check(make(tmp_path), SEED_ROLES)


def test_a_name_that_snakemake_cannot_take_is_said_before_any_job(tmp_path):
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.txt")).write_text("Text.")
    with pytest.raises(SourceError, match=r"/\\udcff\.txt: the name of this file is no UTF-8.* rename it"):
        sources.check(source(tmp_path), CORPUS_ROLES)


def test_parquet_that_is_none(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: row 1: not readable as parquet"):
        sources.check(source(path), CORPUS_ROLES)


def test_hub_failure_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub = {"hub": "owner/private", "revision": "abc", "split": "train", "subset": None}
    with pytest.raises(SourceError, match=r"hub:owner/private: could not be loaded .*its page is https://huggingface\.co/datasets/owner/private") as caught:
        sources.fetch(hub, tmp_path / "rows.parquet")
    assert "hf_secret" not in str(caught.value)
