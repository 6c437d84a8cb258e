"""Tables, figures and pages of the report, from made rows."""

import html
import json
import math
import os
import re
import shutil
import subprocess

import pandas as pd
import pytest
from conftest import segment

from backtranslation import browse, costs, pages, plots
from backtranslation.records import SIGNALS, drop

EVIL = "</script><script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\"> <!-- &lt;"


def rated(count: int = 40) -> list[dict]:
    return [{**segment(n), "instruction": "word " * (1 + n % 7), "rating": 1 + 4 * n / count, "combination": math.nan} for n in range(count)]


def test_costs_add_up_over_the_jobs_of_a_rule(tmp_path):
    for path, seconds, memory in (("train.jsonl", 120, 1000), ("rate/1/1-of-2.jsonl", 60, 2000), ("rate/1/2-of-2.jsonl", 30, "-"), ("short.jsonl", 0, "-")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"s": seconds, "cpu_time": seconds / 2, "max_rss": memory}) + "\n")
    table = costs.costs(tmp_path, {"train": 500, "elsewhere": 1})
    assert table["rule"].tolist() == ["train", "rate", "short"]
    train, rate, short = table.to_dict("records")
    assert (train["minutes"], train["cpu_minutes"], train["jobs"], train["tokens"]) == (2, 1, 1, 500)
    assert (rate["minutes"], rate["jobs"]) == (1.5, 2) and pd.isna(rate["tokens"])
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


def test_setup_shows_settings_by_their_names_and_runs_nothing(tmp_path):
    lines = pages.flat({"corpus": {"sample": 80, "sources": [{"path": EVIL}]}, "judge": {"model": None}, "empty": {}})
    assert lines == [("corpus.sample", "80"), ("corpus.sources", json.dumps([{"path": EVIL}])), ("judge.model", "null"), ("empty", "{}")]
    pages.setup({"Configuration": lines}, tmp_path / "setup.html")
    page = (tmp_path / "setup.html").read_text()
    assert "corpus.sample" in page and "<script" not in page and "<img" not in page and "default-src 'none'" in page


def collected(count: int) -> dict:
    """Every third is dropped, and all but one row of the gate are full of script tags."""
    rows = [
        {**segment(n, f"{EVIL} text {n}"), "segment": f"{n:016x}", "instruction": f"{EVIL} number {n}", **dict.fromkeys(SIGNALS, math.nan), "rating": 1 + 4 * n / count, "combination": n / count}
        for n in range(count)
    ]
    gated = [{**drop(segment(count), "gate", "echo", "", "an echo"), "id": "f" * 16}]
    trips = [{"id": f"{2:016x}", "true": "What is true?", "base": EVIL, "backward": "What is written?"}]
    return browse.collect(rows, [drop(row, "curate", "low_combination") for row in rows[::3]], gated, trips)


def test_page_of_candidates_holds_every_row_and_where_it_ended():
    found = collected(9)
    assert found["total"] == len(found["rows"]) == 10 and found["signals"] == ["combination", "rating"]
    assert [row["end"] for row in found["rows"]] == [*(["low_combination", "kept", "kept"] * 3), "echo"]
    assert found["rows"][2]["trip"]["true"] == "What is true?" and found["rows"][3]["trip"] is None
    assert len(browse.collect([], [], [drop(segment(n), "gate", "echo") for n in range(9)], [], limit=4)["rows"]) == 4


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


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on the PATH")
def test_page_of_candidates_in_a_browser(tmp_path):
    pages.with_data(browse._PAGE, browse._SCRIPT + READER, collected(9_999), tmp_path / "page.html")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, "HOME": str(tmp_path)})
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert title and title[1].startswith("{"), done.stderr[-2000:]
    seen = json.loads(html.unescape(title[1]))
    # Only the rows in sight are elements, of ten thousand.
    assert 5 < seen["lines"] < 100 and seen["first"] == "10000 of 10000"
    assert {"77", "777", "7777"} <= set(seen["searched"]) and all(number.startswith("77") for number in seen["searched"])
    assert seen["echo"] == "an echo" and 200 < seen["rated"] < 300 and seen["top"] == "echo"
    assert (seen["second"], seen["last"], seen["scrolled"]) == (1, 9_999, True)
    assert "What is true?" in seen["trip"] and EVIL in seen["trip"] and seen["text"] == f"{EVIL} text 2" and "rating" in seen["judge"]
    # Ours are the only scripts, and nothing of the rows has run.
    assert (seen["images"], seen["scripts"], seen["titles"]) == (0, 2, ["All candidates"] * 2)
