"""The corpus as a whole: duplicates, what is protected, draws, and the same result however it is cut into jobs."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_segments import FILTERS

from backtranslation import corpus, decontamination, dedup, sources
from backtranslation.records import DROPPED, RecordError, read, read_json, settle, write

WORDS = (ROOT / "config" / "seed" / "pairs.jsonl").read_text().lower().split()
NOTHING = decontamination.Protected([], 10)


def made(number: int, length: int = 120) -> str:
    """A text of words as common as in real text, different for every number, in sentences."""
    draw = random.Random(number)
    words = [re.sub(r"\W", "", word) or "a" for word in draw.choices(WORDS, k=length)]
    return " ".join(" ".join(words[at : at + 12]).capitalize() + "." for at in range(0, length, 12))


def edited(text: str, share: float, number: int) -> str:
    """`text` with that share of its words replaced, left out or doubled."""
    draw = random.Random(number)
    words = text.split()
    for at in draw.sample(range(len(words)), round(share * len(words))):
        words[at] = draw.choice(["", f"word{draw.random():.6f}", f"{words[at]} {words[at]}"])
    return " ".join(" ".join(words).split())


def source(path, **settings) -> dict:
    return {"path": str(path), "layout": "columns", "language": None, "cut": False, "subset": None, "min_chars": 1, "max_chars": 10_000, "weight": None, **settings}


def run(folder, given_sources: list[dict], part_mb: float, near: float | None = 0.5, protected=NOTHING, filters=FILTERS) -> dict:
    """Everything up to segments.parquet, in parts of a size; returns the paths."""
    folder.mkdir()
    made_files = []
    for number, part in enumerate(sources.parts(given_sources, part_mb), start=1):
        paths = [str(folder / f"{number}.{kind}") for kind in ("parquet", "dropped.parquet", "json")]
        corpus.cut_part(part, filters, protected, *paths)
        made_files.append(paths)
    paths = {name: str(folder / name) for name in ("segments.parquet", "dropped.parquet", "counts.json")}
    corpus.merge(*map(list, zip(*made_files, strict=True)), [sources.name_of(s) for s in given_sources], near, *paths.values())
    return {"parts": len(made_files), **paths}


@pytest.fixture
def pages(tmp_path) -> list[dict]:
    """Four files: 200 texts, each tenth one twice, with near copies and damage."""
    rows = [made(n) for n in range(200)]
    rows += [rows[n] + " " for n in range(0, 200, 10)] + [edited(rows[n], 0.05, n) for n in range(5, 200, 10)]
    random.Random(1).shuffle(rows)
    (tmp_path / "in").mkdir()
    for number in range(4):
        lines = [json.dumps({"text": text, "topic": f"t{n % 3}"}) for n, text in enumerate(rows[number::4])]
        (tmp_path / "in" / f"{number}.jsonl").write_text("\n".join([*lines, '{"text": broken']))
    return [source(tmp_path / "in" / "*.jsonl", columns={"text": "text", "stratum": "topic"})]


def test_the_number_of_parts_changes_nothing(pages, tmp_path):
    ends = []
    for part_mb in (0.001, 0.05, 100):
        paths = run(tmp_path / str(part_mb), pages, part_mb)
        arguments = (paths["segments.parquet"], 50, 42, [None], True, None, None, None)
        corpus.sample(*arguments, str(tmp_path / "sample"), str(tmp_path / "not"))
        ends.append([paths["parts"], *(read(path) for path in (paths["segments.parquet"], tmp_path / "sample", tmp_path / "not"))])
        dropped = read(paths["dropped.parquet"])
        ends[-1].append(sorted(row["id"] for row in dropped))
        counts = read_json(paths["counts.json"])
        assert (counts["rows"], counts["unread"], counts["pieces"]) == (244, 4, 240)
        assert counts["pieces"] == len(ends[-1][1]) + sum(row["stage"] != "read" for row in dropped)
    assert [end[0] for end in ends] == [4, 3, 1] or ends[0][0] > ends[-1][0] == 1
    assert ends[0][1:] == ends[1][1:] == ends[2][1:]


def test_long_documents_are_worked_on_few_at_a_time_with_the_same_result(tmp_path, monkeypatch):
    lines = [json.dumps({"text": "\n\n".join(made(10 * book + n) for n in range(10))}) for book in range(20)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    books, at_once, ends = [source(tmp_path / "in.jsonl", cut=True, max_chars=1000)], [], []
    cut = corpus.segments.segment
    monkeypatch.setattr(corpus.segments, "segment", lambda documents, filters: at_once.append(len(documents)) or cut(documents, filters))
    for name, documents, chars in (("all", 1000, 5_000_000), ("few", 1000, 2 * len(lines[0])), ("one", 1, 1)):
        monkeypatch.setattr(corpus, "BLOCK", documents)
        monkeypatch.setattr(corpus, "BLOCK_CHARS", chars)
        at_once.clear()
        paths = run(tmp_path / name, books, 100)
        assert {"all": at_once == [20], "few": 1 < max(at_once) <= 4, "one": at_once == [1] * 20}[name]
        ends.append([read(paths[table]) for table in ("segments.parquet", "dropped.parquet")])
    assert ends[0] == ends[1] == ends[2] and len(ends[0][0]) > 100


def test_the_first_copy_stays_and_the_ledger_names_it(pages, tmp_path):
    paths = run(tmp_path / "out", pages, 100)
    kept, dropped = read(paths["segments.parquet"]), read(paths["dropped.parquet"])
    reasons = [row["reason"] for row in dropped]
    assert len(kept) == 200 and (reasons.count("duplicate"), reasons.count("near_duplicate"), reasons.count("invalid_json")) == (20, 20, 4)
    places = {row["id"]: (row["source"], row["row"]) for row in kept}
    for row in dropped:
        if row["reason"] in ("duplicate", "near_duplicate"):
            assert places[row["detail"][-16:]] < (row["source"], row["row"])
    exact_only = run(tmp_path / "exact", pages, 100, near=None)
    assert len(read(exact_only["segments.parquet"])) == 220


def test_near_duplicates_of_a_planted_set():
    """2,000 texts, 300 of them another one with 5 to 15 % of the words edited: recall 0.95, precision 0.99."""
    texts = [made(n, 150) for n in range(1700)]
    planted = {1700 + n: n for n in range(300)}
    texts += [edited(texts[n], random.Random(n).uniform(0.05, 0.15), n) for n in range(300)]
    found = dedup.near_texts(texts, 0.5)
    right = [place for place, (other, _) in found.items() if planted.get(place) == other]
    assert len(right) / 300 >= 0.95 and len(right) / len(found) >= 0.99


def test_near_duplicates_do_not_chain():
    text = made(1, 200)
    chain = [text]
    for number in range(12):
        chain.append(edited(chain[-1], 0.1, number))
    dropped = dedup.near_texts(chain, 0.5)
    assert 0 not in dropped and 1 in dropped and 12 not in [place for place, (other, _) in dropped.items() if other == 0]
    assert all(other not in dropped for other, _ in dropped.values())


def test_texts_without_words_are_no_copies_of_each_other():
    signatures = dedup.signatures([dedup.bigrams(text) for text in ("!!!", "???", "", "one")])
    assert len(set(signatures)) == 4


def test_words_are_whole_in_every_script_that_sets_them_apart():
    said = {
        "भारत एक विशाल देश है।": ["भारत", "एक", "विशाल", "देश", "है"],
        "מְסַפְּרִים כְּבוֹד": ["מְסַפְּרִים", "כְּבוֹד"],
        "The cat's 2nd İstanbul, ❤️ naïve; 1️⃣.": ["the", "cat", "s", "2nd", "i", "stanbul", "naïve", "1"],
        "東京タワーは Tower である": [*"東京タワーは", "tower", *"である"],
    }
    assert {text: dedup.words(text) for text in said} == said


def test_held_out_pairs_and_prompts_are_kept_out_and_shown(tmp_path):
    pair = {"id": "f" * 16, "instruction": "How does the moon raise the tides of the sea on both sides?", "response": made(900, 40)}
    (tmp_path / "prompts.jsonl").write_text('{"instruction": "Name the ten largest rivers of the southern half of Africa."}\n{"instruction": "Say hi"}\n')
    protected = decontamination.protect([source(tmp_path / "prompts.jsonl")], [pair], 8)
    said = made(900, 40).split()
    texts = [
        made(1),
        made(2) + " Name the TEN largest rivers, of the southern half of Africa! " + made(3),
        made(4) + " " + " ".join(said[10:22]) + " " + made(5),
        made(6) + " " + " ".join(said[10:15]) + " " + made(7),
        "Say hi.",
        made(8) + " Say hi. " + made(9),
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    paths = run(tmp_path / "out", [source(tmp_path / "in.jsonl")], 100, protected=protected)
    flagged = {row["row"]: row["detail"] for row in read(paths["dropped.parquet"]) if row["reason"] == "contaminated"}
    assert set(flagged) == {2, 3, 5}
    assert re.search(r"prompts\.jsonl, row 1: name the ten largest rivers of the southern half of africa$", flagged[2])
    assert flagged[3].startswith("held-out pair ffff") and " ".join(dedup.words(" ".join(said[10:22]))) in flagged[3]


def test_evaluation_prompts_leave_the_seed():
    rows = [{"id": str(n), "source": "s", "row": n, "instruction": text, "response": "x"} for n, text in enumerate(["What's  the CAPITAL of France?", "What is the capital of Peru?"])]
    kept, dropped = decontamination.screen(rows, decontamination.Protected([("eval", "what’s the capital of France")], 10))
    settle("ingest", rows, kept, dropped)
    assert [row["row"] for row in kept] == [1] and dropped[0]["detail"] == "eval: what s the capital of france"


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), min_size=1, max_size=6), st.integers(0, 120))
def test_shares_add_up(groups, size):
    shares = corpus.allocate(groups, size)
    assert all(0 <= share <= members for share, (_, members) in zip(shares, groups, strict=True))
    assert sum(shares) == min(size, sum(members for weight, members in groups if weight > 0))


def segments_file(tmp_path, rows: int):
    from backtranslation.records import CORPUS

    found = [
        {"id": hashlib.sha256(str(n).encode()).hexdigest()[:16], "source": "s", "row": n, "part": 1, "text": f"text {n}", "source_number": n % 2, "stratum": "rare" if n % 10 == 0 else None}
        for n in range(rows)
    ]
    write(found, CORPUS, tmp_path / "segments.parquet")
    return found


def draw(tmp_path, size, seed=42, weights=(None, None), stratify=False, lengths=None, tokens=None, quantiles=None) -> list[dict]:
    paths = [str(tmp_path / name) for name in ("sample.parquet", "not.parquet")]
    corpus.sample(str(tmp_path / "segments.parquet"), size, seed, list(weights), stratify, lengths, tokens, quantiles, *paths)
    kept, dropped = map(read, paths)
    settle("sample", read(tmp_path / "segments.parquet"), kept, dropped)
    return kept


def test_draws_are_seeded_weighted_and_stratified(tmp_path):
    segments_file(tmp_path, 1000)
    kept = draw(tmp_path, 100)
    assert len(kept) == 100 and kept == draw(tmp_path, 100) and kept != draw(tmp_path, 100, seed=7)
    # More is the same and more.
    assert {row["id"] for row in kept} < {row["id"] for row in draw(tmp_path, 150)}
    assert len(draw(tmp_path, 0.25)) == 250 and len(draw(tmp_path, 1.0)) == 1000 and len(draw(tmp_path, 5000)) == 1000
    weighted = draw(tmp_path, 100, weights=(3.0, 1.0))
    assert sum(row["row"] % 2 == 0 for row in weighted) == 75
    # As many of each stratum, and the rest from where there is more.
    assert sum(row["row"] % 10 == 0 for row in draw(tmp_path, 100, stratify=True)) == 50
    assert sum(row["row"] % 10 == 0 for row in draw(tmp_path, 400, stratify=True)) == 100
    # Weights are those of sources also where one has a stratum with few rows: all of these lie in the first one.
    both = draw(tmp_path, 600, weights=(1.0, 1.0), stratify=True)
    assert sum(row["row"] % 10 == 0 for row in both) == 100 and sum(row["row"] % 2 for row in both) == 300
    # A segment less leaves the others' lots as they are.
    rows = read(tmp_path / "segments.parquet")
    gone = kept[0]["id"]
    from backtranslation.records import CORPUS

    write([row for row in rows if row["id"] != gone], CORPUS, tmp_path / "segments.parquet")
    assert len({row["id"] for row in draw(tmp_path, 100)} & {row["id"] for row in kept}) == 99


def test_lengths_in_tokens_limit_the_draw(tmp_path):
    segments_file(tmp_path, 101)

    def lengths(texts):
        return [int(text.split()[1]) for text in texts]

    assert {row["row"] for row in draw(tmp_path, 1.0, lengths=lengths, quantiles=[0.25, 0.5])} == set(range(25, 51))
    assert {row["row"] for row in draw(tmp_path, 1.0, lengths=lengths, tokens=[5, 9])} == {5, 6, 7, 8, 9}
    reasons = {row["reason"] for row in read(tmp_path / "not.parquet")}
    assert reasons == {"length_tokens"}
    with pytest.raises(ValueError, match=r"corpus\.sample: no segment is left of 101; widen"):
        draw(tmp_path, 5, lengths=lengths, tokens=[500, 900])
    with pytest.raises(ValueError, match=r"corpus\.sample: 0\.04 of 5 segments is none; raise it"):
        draw(tmp_path, 0.04, lengths=lengths, tokens=[5, 9])


@pytest.mark.parametrize(
    "content, settings, message",
    [
        ('{"text": \n', {}, r"in\.jsonl: no row could be read; .*in\.jsonl: not valid JSON"),
        ("", {}, r"in\.jsonl: holds no rows"),
        ('{"text": "short"}\n', {"min_chars": 100}, r"corpus\.sources: none of 1 segments is left; the reasons are in the ledger: too_short"),
    ],
)
def test_a_source_of_no_use_is_an_error(tmp_path, content, settings, message):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", [source(tmp_path / "in.jsonl", **settings)], 100)
    assert not (tmp_path / "out" / "segments.parquet").exists()


def test_a_file_named_twice_is_an_error(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": made(1)}) + "\n")
    with pytest.raises(sources.SourceError, match=r"in\.jsonl is read twice; name it in one source"):
        run(tmp_path / "out", [source(tmp_path / "in.jsonl"), source(tmp_path / "*.jsonl")], 100)


def test_parts_that_do_not_add_up_stop_the_run(pages, tmp_path):
    paths = run(tmp_path / "out", pages, 100)
    ledger = read(tmp_path / "out" / "1.dropped.parquet")
    write(ledger[1:], DROPPED, tmp_path / "out" / "1.dropped.parquet")
    with pytest.raises(RecordError, match="240 segments were cut"):
        given = [[str(tmp_path / "out" / f"1.{kind}")] for kind in ("parquet", "dropped.parquet", "json")]
        corpus.merge(*given, ["pages"], 0.5, paths["segments.parquet"], paths["dropped.parquet"], paths["counts.json"])


def test_hub_rows_are_fetched_once_and_read_from_the_file(tmp_path, monkeypatch):
    """A folder stands for the hub; what is fetched has the same rows, and nothing after it asks the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"text": made(n), "meta": {"n": n}}) + "\n" for n in range(2500)))
    hub = {"hub": str(tmp_path / "set"), "revision": None, "subset": None, "split": "train", "layout": "columns"}
    assert sources.fetch(hub, sources.data_path(hub)) == 2500
    rows = [row for row, problem in sources.read_corpus(hub) if not problem]
    assert [row["text"] for row in rows] == [made(n) for n in range(2500)] and rows[-1]["row"] == 2500
    assert rows[0]["source"] == f"hub:{tmp_path / 'set'}"


STEPS = {"cut": "parts/1.parquet", "merge": "segments.parquet", "sample": "sample.parquet"}


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(tmp_path, step):
    """kill -9 while the step writes; what it leaves half-done is not taken for its output."""
    lines = [json.dumps({"text": made(n, 60)}) for n in range(6000)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    script = ROOT / "tests" / "corpus_step.py"

    def start(folder, name, **options):
        return subprocess.Popen([sys.executable, str(script), name, str(tmp_path / "in.jsonl"), str(folder)], **options)

    for folder in ("a", "b"):
        (tmp_path / folder / "parts").mkdir(parents=True)
        for name in STEPS:
            if folder == "b" and name == step:
                process = start(tmp_path / folder, name)
                target = tmp_path / folder / STEPS[step]
                deadline = time.monotonic() + 60
                # As soon as the temporary file has some bytes.
                while process.poll() is None and time.monotonic() < deadline:
                    if any(path.stat().st_size > 0 for path in target.parent.glob(f".{target.name}.*")):
                        break
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                assert not target.exists()
            assert start(tmp_path / folder, name).wait() == 0
    for path in (*STEPS.values(), "dropped.parquet", "not_sampled.parquet", "parts/1.dropped.parquet"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes(), path


def test_workflow_runs_a_job_per_part_and_only_the_changed_one_again(snakemake, tmp_path):
    import yaml

    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.jsonl").write_text("".join(json.dumps({"body": made(n)}) + "\n" for n in range(100 * number, 100 * number + 60)))
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.html").write_text(f"<html><body><h1>Rivers</h1><p>{made(999, 60)}</p></body></html>")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"instruction": " ".join(made(101).split()[3:15])}) + "\n")
    config = {
        "name": "parts",
        "corpus": {
            "sources": [{"path": "in/*.jsonl", "columns": {"text": "body"}, "weight": 1}, {"path": "pages", "cut": True, "weight": 1}],
            "part_mb": 0.03,
            "token_quantiles": None,
            "sample": 20,
        },
        "decontamination": {"prompts": [{"path": "eval.jsonl"}]},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    arguments = ["results/parts/corpus/sample.parquet", "--cores", "2", "--configfile", "my.yaml"]
    code, printed = snakemake(*arguments)
    assert code == 0, printed
    folder = tmp_path / "results" / "parts" / "corpus"
    assert len(list((folder / "parts").glob("*.json"))) == 4 and "fetch_model" not in printed
    sample, dropped = read(folder / "sample.parquet"), read(folder / "dropped.parquet")
    assert len(sample) == 20 and [row["text"].split("\n")[0] for row in sample if row["source"].startswith("pages")] == ["# Rivers"]
    assert [(row["source"], row["row"], row["reason"]) for row in dropped] == [("in/1.jsonl", 2, "contaminated")]
    code, printed = snakemake(*arguments)
    assert code == 0 and "Nothing to be done" in printed
    with open(tmp_path / "in" / "1.jsonl", "a") as stream:
        stream.write(json.dumps({"body": made(500)}) + "\n")
    code, printed = snakemake(*arguments, "-n")
    assert code == 0 and printed.count("Cutting part") == 1 and "Cutting part 2 of" in printed, printed


def test_a_damaged_file_in_a_source_is_no_end_but_a_source_of_damage_is(snakemake, tmp_path):
    import yaml

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(made(1))
    (tmp_path / "in" / "b.zip").write_bytes(b"no zip")
    for name in ("c.pdf", "d.pdf", "LICENSE"):
        (tmp_path / "in" / name).write_text("passed over")
    config = {"name": "bad", "corpus": {"sources": [{"path": "in"}], "token_quantiles": None, "sample": 1.0}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    arguments = ["results/bad/corpus/sample.parquet", "--cores", "1", "--configfile", "my.yaml"]
    code, printed = snakemake(*arguments)
    assert code == 0, printed
    dropped = read(tmp_path / "results" / "bad" / "corpus" / "dropped.parquet")
    assert [(row["source"], row["reason"]) for row in dropped] == [("in/b.zip", "unreadable")]
    assert "WARNING: in: 3 files of kinds that are not read were passed over (.pdf 2, no suffix 1)" in printed
    (tmp_path / "in" / "a.txt").write_bytes(b"\0" * 500)
    code, printed = snakemake(*arguments)
    assert code != 0 and re.search(r"^ERROR: in: no row could be read; in/a\.txt: more control characters", printed, re.MULTILINE), printed
