"""A sample of candidates for people to label: one self-contained page, and the same rows as csv."""

import csv
import random
from pathlib import Path

from backtranslation import pages
from backtranslation.records import Row, atomic, cell

COLUMNS = ("id", "source", "stratum", "instruction", "response", "label")
"""Columns of the csv; `label` is empty, for 1 (good) or 0 (bad)."""

# Rows come as JSON and are shown as text, never as markup; the policy lets this one script run and nothing else.
_SCRIPT = """
const rows = JSON.parse(document.getElementById("rows").textContent);
const key = "labels " + rows.map(row => row.id).join(" ");
let labels = {};
try { labels = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* pages without storage still work */ }
let at = Math.max(0, rows.findIndex(row => !(row.id in labels)));
const part = name => document.getElementById(name);
function show() {
  const row = rows[at], label = labels[row.id];
  part("instruction").textContent = row.instruction;
  part("response").textContent = row.response;
  part("source").textContent = row.source;
  part("place").textContent = `${at + 1} of ${rows.length}, ${Object.keys(labels).length} labelled`;
  part("good").setAttribute("aria-pressed", label === 1);
  part("bad").setAttribute("aria-pressed", label === 0);
}
function move(step) { at = Math.min(rows.length - 1, Math.max(0, at + step)); show(); }
function set(label) {
  labels[rows[at].id] = label;
  try { localStorage.setItem(key, JSON.stringify(labels)); } catch { /* as above */ }
  move(1);
}
function save() {
  const lines = rows.filter(row => row.id in labels).map(({id, instruction, response}) =>
    JSON.stringify({id, instruction, response, label: labels[id]}) + "\\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, {type: "application/x-ndjson"}));
  link.download = "labels.jsonl";
  link.click();
}
part("good").onclick = () => set(1);
part("bad").onclick = () => set(0);
part("back").onclick = () => move(-1);
part("next").onclick = () => move(1);
part("save").onclick = save;
document.onkeydown = event => {
  const keys = {g: () => set(1), b: () => set(0), ArrowLeft: () => move(-1), ArrowRight: () => move(1), s: save};
  if (keys[event.key] && !event.ctrlKey && !event.metaKey) { event.preventDefault(); keys[event.key](); }
};
show();
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{{ digest }}'">
<title>Labelling</title>
<style>{{ style }}</style></head><body>
<nav><button id="good">good (g)</button> <button id="bad">bad (b)</button> <button id="back">back (&larr;)</button>
<button id="next">next (&rarr;)</button> <button id="save">save labels (s)</button> <small id="place"></small></nav>
<p>Is the text a good answer to the instruction: about it, whole, and free of what does not belong? Save writes
<code>labels.jsonl</code>; name it as <code>audit.labels</code>.</p>
<h2 id="instruction"></h2><pre id="response"></pre><small id="source"></small>
<script type="application/json" id="rows">{{ rows }}</script>
<script>{{ script }}</script>
</body></html>
"""


def strata(rated: list[Row], dropped: list[Row]) -> dict[str, str]:
    """The stratum of each rated candidate by id: its rating, rounded, and where it ended (`kept` or the reason)."""
    ends = {row["id"]: row["reason"] for row in dropped}
    return {
        row["id"]: f"rated {'nothing' if row['rating'] != row['rating'] else round(row['rating'])}, {ends.get(row['id'], 'kept')}"
        for row in rated
    }


def draw(rated: list[Row], dropped: list[Row], count: int, random_seed: int) -> list[Row]:
    """At most `count` rows (COLUMNS) from all strata in turn, in random order; the draw depends on ids and seed alone."""
    by_id, chance = {row["id"]: row for row in rated}, random.Random(random_seed)
    groups: dict[str, list[str]] = {}
    for name, stratum in sorted(strata(rated, dropped).items()):
        groups.setdefault(stratum, []).append(name)
    for group in groups.values():
        chance.shuffle(group)
    # One of each stratum in turn, so that rare ones are there too.
    turns = sorted((n, stratum, name) for stratum, group in groups.items() for n, name in enumerate(group))
    chosen = turns[:count]
    chance.shuffle(chosen)
    return [
        {"id": name, "source": by_id[name]["source"], "stratum": stratum, "instruction": by_id[name]["instruction"], "response": by_id[name]["text"], "label": ""}
        for _, stratum, name in chosen
    ]


def page(rows: list[Row], path: str | Path) -> None:
    """Write the page; neither rating nor reason is in it, so that nobody is led by them."""
    shown = [{name: row[name] for name in ("id", "source", "instruction", "response")} for row in rows]
    pages.with_data(_PAGE, _SCRIPT, shown, path)


def table(rows: list[Row], path: str | Path) -> None:
    """Write the csv; no cell is one that a spreadsheet would compute."""
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows([cell(row[name]) for name in COLUMNS] for row in rows)
