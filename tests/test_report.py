"""Tables, figures and pages of the report, from made rows."""

import json
import math

import pandas as pd
import pytest
from conftest import segment

from backtranslation import costs, pages, plots

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


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
