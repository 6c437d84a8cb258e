"""Tables, figures and pages of the report, from made rows."""

import html
import json
import math
import os
import re
import shutil
import subprocess
from collections import Counter

import pandas as pd
import pytest
from conftest import segment

from backtranslation import browse, costs, funnel, iterating, pages, plots, words
from backtranslation.records import CANDIDATES, DROPPED, RATED, SIGNALS, drop, read, write

EVIL = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> <!-- &lt;"


def rated(count: int = 40) -> list[dict]:
    return [{**segment(n), "instruction": "word " * (1 + n % 7), "rating": 1 + 4 * n / count, "combination": math.nan} for n in range(count)]


def test_costs_add_up_over_the_jobs_of_a_rule(tmp_path):
    for path, seconds, memory in (("train.jsonl", 120, 1000), ("rate/1/1-of-2.jsonl", 60, 2000), ("rate/1/2-of-2.jsonl", 30, "-"), ("short.jsonl", 0, "-")):
        measured = tmp_path / "benchmarks" / path
        measured.parent.mkdir(parents=True, exist_ok=True)
        measured.write_text(json.dumps({"s": seconds, "cpu_time": seconds / 2, "max_rss": memory}) + "\n")
    for path, said in (("train.log", "500 tokens read, 0 written"), ("rate/1/1-of-2.log", "70 tokens read, 5 written"), ("rate/1/2-of-2.log", "30 tokens read, 6 written"), ("short.log", "nothing to do")):
        log = tmp_path / "logs" / path
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"loaded\n12:00:00 done in 9.0 s, 7.2 s of it in the model; {said}\n")
    table = costs.costs(tmp_path / "benchmarks", tmp_path / "logs")
    assert table["rule"].tolist() == ["train", "rate", "short"]
    train, rate, short = table.to_dict("records")
    assert (train["minutes"], train["cpu_minutes"], train["jobs"], train["tokens_read"]) == (2, 1, 1, 500)
    assert (rate["minutes"], rate["jobs"], rate["tokens_read"], rate["tokens_written"]) == (1.5, 2, 100, 11) and pd.isna(short["tokens_read"])
    assert rate["memory_gb"] == pytest.approx(2000 * 2**20 / 1e9) and math.isnan(short["memory_gb"])
    plots.costs(table, tmp_path / "costs.svg")
    assert "3.5 of 3.5 minutes, n = 4 of 4 jobs" in (tmp_path / "costs.svg").read_text()


@pytest.mark.parametrize("rating", [None, 3.0])
def test_lengths_are_drawn_for_any_ratings(tmp_path, rating):
    rows = [{**row, "rating": row["rating"] if rating is None else rating} for row in rated()]
    plots.length_by_rating(rows, "combination", tmp_path / "figure.svg")
    figure = (tmp_path / "figure.svg").read_text()
    # The combination has no values, so it has no panel.
    assert figure.count("n = 40 candidates") == 1 and "expected rating" in figure and "combination" not in figure


def test_lengths_of_few_candidates_have_no_empty_fifths(tmp_path):
    plots.length_by_rating(rated(3), "rating", tmp_path / "figure.svg")
    assert "nan" not in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize("kinds", [["all"], ["all", "shuffled", "near_miss", "cut", "echo"]])
def test_words_below_the_audit_are_within_the_figure(tmp_path, monkeypatch, kinds):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    table = pd.DataFrame([(name, kind, 0.7, 0.6, 0.8, 40) for name in ("rating", "length") for kind in kinds], columns=["signal", "kind", "auroc", "low", "high", "n"])
    plots.audit(table, {"signal": "rating"}, tmp_path / "figure.svg")
    figure = drawn[0]
    figure.canvas.draw()
    (below,) = (text for text in figure.texts if "chance" in text.get_text())
    assert figure.bbox.x0 <= below.get_window_extent().x0 and below.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(("rating", "share"), [(math.nan, math.nan), (4.2, 100), (3.9, 0)])
def test_shares_of_high_ratings_are_those_of_judges_that_rate(tmp_path, monkeypatch, rating, share):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    plots.iterations([[{"rating": rating}] * 3], iterating.NOTEBOOK_RATINGS, iterating.PAPER_SHARES, tmp_path / "figure.svg")
    line = next(line for line in drawn[0].axes[1].lines if str(line.get_label()).startswith("A4"))
    assert line.get_ydata() == pytest.approx([share], nan_ok=True)


def test_examples_are_the_best_and_the_worst_of_those_with_a_value(tmp_path):
    values = {"a": 0.2, "b": math.nan, "c": 0.9, "d": 0.5, "e": math.nan, "f": 0.1}
    rows = [{**segment(n), **dict.fromkeys((*SIGNALS, "combination"), math.nan), "instruction": f"Instruction {name}", "rating": value, "id": name} for n, (name, value) in enumerate(values.items())]
    pages.examples(rows, {"a", "c", "d"}, [], [], "rating", 2, tmp_path / "examples.html")
    assert re.findall(r"<h3>Instruction (\w)", (tmp_path / "examples.html").read_text()) == ["c", "d", "f"]


def test_setup_shows_settings_by_their_names_and_runs_nothing(tmp_path):
    lines = pages.flat({"corpus": {"sample": 80, "sources": [{"path": EVIL}]}, "judge": {"model": None}, "empty": {}})
    assert lines == [("corpus.sample", "80"), ("corpus.sources", json.dumps([{"path": EVIL}])), ("judge.model", "null"), ("empty", "{}")]
    pages.setup({"Configuration": lines}, tmp_path / "setup.html")
    page = (tmp_path / "setup.html").read_text()
    assert "corpus.sample" in page and "<script" not in page and "<img" not in page and "default-src 'none'" in page


def test_words_say_what_the_tables_say(tmp_path):
    stages = [
        ("seed", "read pairs", 50, Counter({("seed", "language"): 4}), 46),
        ("documents", "read corpus", 1_234, Counter(), 1_234),
        ("corpus", "cut and filter", 3_000, Counter({("segment", "too_short"): 700, ("segment", "bullets"): 100}), 2_200),
        ("corpus", "deduplicate", 2_200, Counter({("deduplicate", "duplicate"): 11}), 2_189),
        ("corpus", "sample", 2_189, Counter({("sample", "not_drawn"): 2_109}), 80),
        ("candidates", "gate", 80, Counter({("gate", "echo"): 3}), 77),
        ("candidates", "curate", 77, Counter({("curate", "low_combination"): 38}), 39),
        ("backward", "train", 36, Counter(), 36),
        ("forward", "train", 75, Counter(), 75),
    ]
    one = {"auroc": 0.8214, "low": 0.7, "high": 0.9, "n": 70}
    figures = {"rows": 70, "signals": {"rating": {"all": {**one, "auroc": 0.6}}, "backward_gain": {"all": one}, "combination": {"all": {**one, "auroc": 0.73}}}}
    verdict = {"signal": "combination", "measure": "AUROC", "value": 0.73, "floor": 0.75, "length": 0.6, "passed": False}
    heldout = pd.DataFrame(
        [("backward", "base", 10, 3.1, 2.4, -0.7, -0.9, -0.5), ("M_0", "base", 9, 2.0, 1.9, -0.1, -0.2, -0.05), ("M_1", "base", 9, 2.0, 1.8, -0.2, -0.3, -0.1), ("M_1", "M_0", 9, 1.9, 1.8, -0.1, -0.21, 0.012)],
        columns=["model", "against", "n", "other_loss", "loss", "difference", "low", "high"],
    )
    trips = pd.DataFrame(
        [("seed", "base", "chrf", 9, 18.51, 16, 21), ("seed", "backward", "chrf", 9, 19.34, 17.25, 22), ("seed", "backward", "true_loss", 9, 2.5, 2, 3), ("corpus", "base", "chrf", 7, 1.0, 0, 2), ("corpus", "backward", "chrf", 7, 2.0, 1, 3)],
        columns=["set", "model", "measure", "n", "mean", "low", "high"],
    )
    spent = pd.DataFrame({"rule": ["train", "short"], "minutes": [2.0, 0.5], "memory_gb": [1.25, math.nan], "tokens_read": [5_000, math.nan], "tokens_written": [60, math.nan]})
    signals = pd.DataFrame({"signal": ["combination"], "mean": [0.4321], "mean_of_kept": [0.8765]})
    found = words.answers(funnel.funnel(stages), figures, verdict, signals, {"signal": "combination", "rule": "top_fraction", "value": 0.5}, heldout, trips, spent, EVIL, 1)
    words.page(found, tmp_path / "words.html")
    page = (tmp_path / "words.html").read_text()
    assert "<script" not in page and "<img" not in page and "default-src 'none'" in page
    shown = html.unescape(re.sub("<[^>]+>", "", page))
    for said in (
        "Of 50 seed pairs 4 were dropped (language 4), 36 are for training and 10 held out",
        "1,234 documents gave 2,189 segments, of which 80 were drawn",
        "800 were dropped (too_short 700, bullets 100), and 11 as duplicates",
        "the gate dropped 3 (echo 3), and curation 38 of the other 77 (low_combination 38)",
        "AUROC 0.730 and does NOT reach the floor of 0.75; length alone has 0.600. The best single signal is backward_gain: AUROC 0.821",
        "39 of 77 candidates were kept, by combination, top fraction 0.5. Their mean combination is 0.876, that of all 0.432",
        "is 2.400 nats per token, the base model's 3.100; difference -0.700 nats per token, 95 % interval -0.900 to -0.500: better",
        "For 9 responses (seed) whose true instruction is known it writes one that is like it by 19.3 (17.2 to 22.0) of 100 (chrF, 95 % interval), the base model one by 18.5 (16.0 to 21.0). For 7 responses (corpus)",
        "M_1 minus that of M_0 on 9 held-out pairs: -0.100 nats per token, 95 % interval -0.210 to +0.012: they cannot be told apart",
        "2.5 minutes, those of train 2.0. The most memory was 1.2 GB, of train. Models read 5,000 tokens and wrote 60",
    ):
        assert said in shown, said
    assert "M_0 minus" not in shown and "judge of iteration" not in shown
    # The run may end with another iteration than the last one.
    later = pd.concat([heldout, pd.DataFrame([("M_2", "base", 9, 2.0, 2.3, 0.3, 0.2, 0.4)], columns=heldout.columns)])
    ended = words.answers(funnel.funnel(stages), figures, verdict, signals, {"signal": "combination", "rule": "top_fraction", "value": 0.5}, later, trips, spent, EVIL, 1)
    assert ended["Is the model better?"] == found["Is the model better?"]
    second = words.answers(funnel.funnel(stages), figures, verdict, signals, {"signal": "combination", "rule": "top_fraction", "value": 0.5}, later, trips, spent, EVIL, 2)
    assert "M_2 minus that of base" in second["Is the model better?"][0] and "That is the judge of iteration 2" in second["Can the judge be trusted?"][1]
    files = [tmp_path / f"{question}.html" for question in range(1, 8)]
    words.paragraphs(found, files)
    # What the captions take in is the page's own text, and as harmless.
    assert [html.unescape(path.read_text()) for path in files] == [f"<p>{' '.join(sentences)}</p>\n" for sentences in found.values()]
    assert "<script" not in files[0].read_text() and "&lt;script&gt;" in files[0].read_text()


def collected(count: int) -> dict:
    """Every third is dropped, and all but one row of the gate are full of script tags."""
    rows = [
        {**segment(n, f"{EVIL} text {n}"), "segment": f"{n:016x}", "instruction": f"{EVIL} number {n}", **dict.fromkeys(SIGNALS, math.nan), "rating": 1 + 4 * n / count, "combination": n / count}
        for n in range(count)
    ]
    echo = {**segment(count, "a text"), "id": "f" * 16, "segment": "f" * 16, "instruction": "an echo " * 50}
    gated = [drop(echo, "gate", "echo")]
    trips = [{"id": f"{2:016x}", "true": "What is true?", "base": EVIL, "backward": "What is written?"}]
    return browse.collect(rows, [drop(row, "curate", "low_combination") for row in rows[::3]], gated, [*rows, echo], trips, count + 1)


def test_of_many_candidates_the_lowest_ids_are_read_and_shown(tmp_path):
    echoes = [{**segment(n), "segment": f"{n:016x}", "instruction": "an echo"} for n in range(9)]
    tables = [str(tmp_path / name) for name in ("rated", "gate", "written")]
    for rows, schema, path in zip(([], [drop(row, "gate", "echo") for row in echoes], echoes[::-1]), (RATED, DROPPED, CANDIDATES), tables, strict=True):
        write(rows, schema, path)
    ids, total = browse.lowest(tables[:2], limit=4)
    rated, gated, written = (read(path, ids) for path in tables)
    found = browse.collect(rated, [], gated, written, [], total)
    assert [row["id"] for row in found["rows"]] == sorted(row["id"] for row in echoes)[:4] and found["total"] == 9


def test_page_of_candidates_holds_every_row_and_where_it_ended():
    found = collected(9)
    assert found["total"] == len(found["rows"]) == 10 and found["signals"] == ["combination", "rating"]
    assert [row["end"] for row in found["rows"]] == [*(["low_combination", "kept", "kept"] * 3), "echo"]
    # The ledger holds the beginning alone.
    assert (found["rows"][9]["instruction"], found["rows"][9]["text"]) == ("an echo " * 50, "a text")
    assert found["rows"][2]["trip"]["true"] == "What is true?" and found["rows"][3]["trip"] is None


# Runs behind the page's own script, as a reader would: what it sees ends in the title.
READER = """
const seen = {lines: document.querySelectorAll(".line").length, first: part("count").textContent, titles: [document.title]};
const ask = (name, value) => { part(name).value = value; part(name).dispatchEvent(new Event("input")); };
const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
ask("search", "NUMBER 77");
seen.searched = found.map(row => row.instruction.split(" ").at(-1));
ask("search", ""); ask("end", "echo"); seen.echo = part("instruction").textContent;
ask("end", ""); ask("rating-low", "4"); ask("rating-high", "4.1"); seen.rated = found.every(row => row.signals.rating >= 4 && row.signals.rating <= 4.1) && found.length;
ask("rating-low", ""); ask("rating-high", ""); seen.top = found[0].signals.combination > found[1].signals.combination && found.at(-1).end;
press("ArrowDown"); seen.second = at; press("End"); seen.last = at; seen.scrolled = part("list").scrollTop > 1000; press("Home");
ask("search", "0000000000000002"); seen.trip = part("trip").textContent; seen.text = part("text").textContent; seen.judge = part("judge").textContent;
seen.images = document.querySelectorAll("img").length; seen.scripts = document.scripts.length; seen.titles.push(document.title);
document.title = JSON.stringify(seen);
"""


def seen_in_browser(found: dict, reader: str, width: int, tmp_path) -> dict:
    pages.with_data(browse._PAGE, browse._SCRIPT + reader, found, tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "HOME": str(tmp_path)})
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title and title[1].startswith("{"), done.stderr[-2000:]
    return json.loads(html.unescape(title[1]))


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH")
def test_page_of_candidates_in_a_browser(tmp_path):
    seen = seen_in_browser(collected(9_999), READER, 1200, tmp_path)
    # Only the rows in sight are elements, of ten thousand.
    assert 5 < seen["lines"] < 100 and seen["first"] == "10000 of 10000"
    assert {"77", "777", "7777"} <= set(seen["searched"]) and all(number.startswith("77") for number in seen["searched"])
    assert seen["echo"] == "an echo " * 50 and 200 < seen["rated"] < 300 and seen["top"] == "echo"
    assert (seen["second"], seen["last"], seen["scrolled"]) == (1, 9_999, True)
    assert "What is true?" in seen["trip"] and EVIL in seen["trip"] and seen["text"] == f"{EVIL} text 2" and "rating" in seen["judge"]
    # Ours are the only scripts, and nothing of the rows has run.
    assert (seen["images"], seen["scripts"], seen["titles"]) == (0, 2, ["All candidates"] * 2)


# Where the signs of a Hebrew question lie, and how wide the list's column of instructions is.
RULER = """
const sign = (name, at) => { const range = document.createRange(); range.setStart(part(name).firstChild, at); range.setEnd(part(name).firstChild, at + 1); return range.getBoundingClientRect().left; };
document.title = JSON.stringify({column: document.querySelector(".line span:nth-child(5)").offsetWidth, page: document.documentElement.scrollWidth,
  heading: [sign("instruction", 0), sign("instruction", 3)], text: [sign("text", 0), sign("text", 3)], english: [sign("text", 5), sign("text", 6)]});
"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH")
def test_page_of_candidates_is_read_in_a_narrow_window_and_from_right_to_left(tmp_path):
    found = collected(3)
    found["rows"] = [{**row, "instruction": "\u05de\u05d4\u05d5?", "text": "\u05de\u05d4\u05d5?\nIn English?", "source": "long/" * 40} for row in found["rows"]]
    seen = seen_in_browser(found, RULER, 500, tmp_path)
    assert seen["column"] > 150 and seen["page"] <= 500
    # A question's mark stands at its end, which is left of its beginning; each paragraph has its own direction.
    assert seen["heading"][0] > seen["heading"][1] and seen["text"][0] > seen["text"][1] and seen["english"][0] < seen["english"][1]
