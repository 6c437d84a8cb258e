"""The sample for labelling holds every kind of candidate, runs nothing from the corpus, and flows back as labels."""

import csv
import json
import math
import re

from conftest import segment

from backtranslation import labelling, labels
from backtranslation.records import drop

EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)> <!-- "quoted"'


def rated(count: int = 40) -> list[dict]:
    return [{**segment(n), "instruction": f"={n}+1 {EVIL}", "rating": math.nan if n == 5 else 1 + 4 * n / count} for n in range(count)]


def drops(rows: list[dict]) -> list[dict]:
    return [drop(row, "curate", "low_rating") for row in rows[:30]]


def test_every_stratum_is_drawn_from_and_the_draw_is_seeded():
    rows = rated()
    strata = set(labelling.strata(rows, drops(rows)).values())
    assert "rated nothing, low_rating" in strata and "rated 5, kept" in strata
    drawn = labelling.draw(rows, drops(rows), 12, 42)
    assert len(drawn) == 12 and {row["stratum"] for row in drawn} == strata
    assert drawn == labelling.draw(rows[::-1], drops(rows), 12, 42) != labelling.draw(rows, drops(rows), 12, 43)
    assert len(labelling.draw(rows, drops(rows), 1000, 42)) == 40


def test_page_holds_the_texts_as_data_alone(tmp_path):
    rows = rated()
    labelling.page(labelling.draw(rows, [], 12, 42), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    # Ours are the only elements that the corpus' markup could have added to.
    assert page.count("<script") == page.count("</script>") == 2 and "<img" not in page
    shown = json.loads(re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)[1])
    assert len(shown) == 12 and all(EVIL in row["instruction"] for row in shown)
    assert not any("rating" in row or "stratum" in row for row in shown)
    assert "default-src 'none'" in page and "script-src 'sha256-" in page


def test_labels_made_in_the_csv_are_an_audit_set(tmp_path):
    rows = labelling.draw(rated(), [], 12, 42)
    labelling.table(rows, tmp_path / "labelling.csv")
    with open(tmp_path / "labelling.csv", newline="") as stream:
        lines = list(csv.DictReader(stream))
    # A spreadsheet must not compute what the corpus says.
    assert all(line["instruction"].startswith("'=") for line in lines)
    for n, line in enumerate(lines[:6]):
        line["label"] = str(n % 2)
    with open(tmp_path / "labelled.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, labelling.COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    found = labels.read_labels(tmp_path / "labelled.csv")
    assert [row["label"] for row in found] == [0, 1] * 3
    assert [row["instruction"] for row in found] == [row["instruction"] for row in rows[:6]]
