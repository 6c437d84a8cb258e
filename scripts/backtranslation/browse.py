"""All candidates on one self-contained page, to search, sort and filter, with what the judge said of each."""

from pathlib import Path

from backtranslation import pages
from backtranslation.records import SIGNALS, Row, batches

LIMIT = 10_000
"""More rows than these would make a page that browsers open slowly; ids are hashes, so the first are a fair draw."""

# Only the rows in sight are elements of the page; texts are put in as text, never as markup.
_SCRIPT = """
const data = JSON.parse(document.getElementById("rows").textContent);
const rows = data.rows, part = name => document.getElementById(name), height = 26;
let found = rows, at = 0, up = false;
for (const row of rows) {
  row.words = row.instruction.split(/\\s+/).filter(Boolean).length;
  row.all = [row.instruction, row.text, row.source, row.id].join(" ").toLowerCase();
}
function choices(name, values) {
  for (const value of values) {
    const option = document.createElement("option");
    option.textContent = option.value = value;
    part(name).append(option);
  }
}
choices("end", new Set(rows.map(row => row.end).sort()));
choices("source", new Set(rows.map(row => row.source).sort()));
choices("signal", data.signals);
choices("sort", [...data.signals, "words", "instruction", "source", "end"]);
const value = (row, name) => name in row.signals ? row.signals[name] : row[name];
function within(number, name) {
  const low = part(name + "-low").value, high = part(name + "-high").value;
  if (low === "" && high === "") return true;
  return number != null && (low === "" || number >= +low) && (high === "" || number <= +high);
}
function pick() {
  const asked = part("search").value.toLowerCase(), end = part("end").value, source = part("source").value;
  const signal = part("signal").value, key = part("sort").value, sign = up ? 1 : -1;
  found = rows.filter(row => (!asked || row.all.includes(asked)) && (!end || row.end === end) && (!source || row.source === source)
    && within(row.signals.rating, "rating") && within(row.signals[signal], "signal") && within(row.words, "words"));
  found.sort((a, b) => {
    const x = value(a, key), y = value(b, key);
    // Rows without a value come last, whichever way.
    if (x == null || y == null) return (x == null) - (y == null);
    return sign * (x < y ? -1 : x > y ? 1 : 0);
  });
  part("list").scrollTop = at = 0;
  part("count").textContent = `${found.length} of ${rows.length}` + (data.total > rows.length ? `, drawn from ${data.total}` : "");
  show();
}
const shown = number => number == null ? "" : Number.isInteger(number) ? number : number.toFixed(3);
function draw() {
  const list = part("list"), first = Math.max(0, Math.floor(list.scrollTop / height) - 5);
  const lines = found.slice(first, first + Math.ceil(list.clientHeight / height) + 10).map((row, n) => {
    const line = document.createElement("div");
    line.className = "line";
    line.style.top = (first + n) * height + "px";
    line.setAttribute("aria-selected", first + n === at);
    for (const text of [row.end, shown(row.signals.rating), shown(row.signals[part("signal").value]), row.words, row.instruction, row.source]) {
      const cell = document.createElement("span");
      cell.textContent = text;
      line.append(cell);
    }
    line.onclick = () => { at = first + n; show(); };
    return line;
  });
  part("lines").style.height = found.length * height + "px";
  part("lines").replaceChildren(...lines);
}
function show() {
  const row = found[at];
  draw();
  part("detail").hidden = !row;
  if (!row) return;
  part("instruction").textContent = row.instruction;
  part("text").textContent = row.text;
  part("about").textContent = `${row.end}${row.detail ? ": " + row.detail : ""} · ${row.words} words · ${row.source} · id ${row.id}`;
  part("judge").replaceChildren(...data.signals.filter(name => row.signals[name] != null).map(name => {
    const line = document.createElement("tr");
    for (const text of [name, shown(row.signals[name])]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      line.append(cell);
    }
    return line;
  }));
  part("trip").textContent = row.trip ? `true: ${row.trip.true}\\nbase model: ${row.trip.base}\\nbackward model: ${row.trip.backward}`
    : "Not measured for this one: its true instruction is not known.";
}
function move(step) {
  at = Math.max(0, Math.min(found.length - 1, at + step));
  const list = part("list"), top = at * height;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
  show();
}
for (const element of document.querySelectorAll("nav input, nav select")) element.oninput = pick;
part("turn").onclick = () => { up = !up; part("turn").textContent = up ? "lowest first" : "highest first"; pick(); };
part("list").onscroll = draw;
window.onresize = draw;
document.onkeydown = event => {
  const typing = /INPUT|SELECT/.test(event.target.tagName);
  if (event.key === "Escape") { event.target.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const keys = {ArrowDown: () => move(1), ArrowUp: () => move(-1), j: () => move(1), k: () => move(-1), PageDown: () => move(15), PageUp: () => move(-15),
    Home: () => move(-rows.length), End: () => move(rows.length), "/": () => part("search").focus()};
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
};
pick();
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{{ digest }}'">
<title>All candidates</title>
<style>{{ style }}
body { max-width: none; }
nav { position: static; display: flex; flex-wrap: wrap; gap: .3rem .8rem; align-items: baseline; }
nav input, nav select { font: inherit; max-width: 13rem; } nav input[type=number] { width: 4.5rem; }
#list { position: relative; height: 38vh; overflow-y: auto; border-bottom: 1px solid #ccc; }
#lines { position: relative; }
.line, #head { display: grid; grid-template-columns: 11rem 4rem 6rem 3.5rem 1fr 12rem; gap: .6rem; height: 26px; line-height: 26px; padding: 0 .3rem; }
.line { position: absolute; left: 0; right: 0; cursor: pointer; }
.line[aria-selected=true] { background: #0072B2; color: white; }
.line span { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
#head { color: #555; }
#detail pre { max-height: 30vh; }
/* A narrow window has room for end, rating and instruction; an opened row says the rest. */
@media (max-width: 45rem) {
  .line, #head { grid-template-columns: 6.5rem 3.2rem 1fr; }
  :is(.line, #head) span:is(:nth-child(3), :nth-child(4), :nth-child(6)) { display: none; }
}
</style></head><body>
<nav>
<label>search (/) <input id="search" type="search"></label>
<label>end <select id="end"><option value="">all</option></select></label>
<label>source <select id="source"><option value="">all</option></select></label>
<span>rating <input id="rating-low" type="number" step="any" aria-label="rating from"> to <input id="rating-high" type="number" step="any" aria-label="rating to"></span>
<span><select id="signal" aria-label="signal"></select> <input id="signal-low" type="number" step="any" aria-label="signal from"> to <input id="signal-high" type="number" step="any" aria-label="signal to"></span>
<span>words <input id="words-low" type="number" aria-label="words from"> to <input id="words-high" type="number" aria-label="words to"></span>
<label>sort by <select id="sort"></select></label> <button id="turn">highest first</button>
<small id="count"></small></nav>
<div id="head"><span>end</span><span>rating</span><span>signal</span><span>words</span><span>instruction (&uarr; &darr;)</span><span>source</span></div>
<div id="list" tabindex="0"><div id="lines"></div></div>
<section id="detail"><h2 id="instruction"></h2><small id="about"></small><pre id="text"></pre>
<h3>The judge</h3><table id="judge"></table><h3>Round trip</h3><pre id="trip"></pre></section>
<script type="application/json" id="rows">{{ rows }}</script>
<script>{{ script }}</script>
</body></html>
"""


def lowest(paths: list[str], limit: int = LIMIT) -> tuple[list[str], int]:
    """(the ids of the candidates that the page shows, the number of all) in tables of candidates."""
    ids = sorted(id_ for path in paths for batch in batches(path, ["id"]) for id_ in batch.column(0).to_pylist())
    return ids[:limit], len(ids)


def collect(rated: list[Row], dropped: list[Row], gated: list[Row], written: list[Row], trips: list[Row], total: int) -> Row:
    """What the page shows of the candidates given: `rows`, `signals` that have values, and `total`, the number of all candidates.

    `end` is `kept` or the reason; rows that the gate dropped (`gated`) have no signals, and their texts are in `written`, what the
    backward model wrote. `trips` are the lines of `evaluation/round_trip.jsonl`, which knows of some rows what their true
    instruction is.
    """
    names = [name for name in ("combination", *SIGNALS) if any(row[name] == row[name] for row in rated)]
    ends = {row["id"]: row for row in dropped}
    known = {row["id"]: {who: row[who] for who in ("true", "base", "backward")} for row in trips}
    rows = [
        {
            **{key: row[key] for key in ("id", "source", "instruction", "text")},
            "end": ends[row["id"]]["reason"] if row["id"] in ends else "kept",
            "detail": ends[row["id"]]["detail"] if row["id"] in ends else "",
            "signals": {name: round(row[name], 4) if row[name] == row[name] else None for name in names},
            "trip": known.get(row["segment"]),
        }
        for row in rated
    ]
    refused = {row["id"]: row for row in gated}
    rows += [
        {**{key: row[key] for key in ("id", "source", "instruction", "text")}, "end": gate["reason"], "detail": gate["detail"], "signals": {}, "trip": known.get(row["segment"])}
        for row in written
        if (gate := refused.get(row["id"]))
    ]
    return {"rows": sorted(rows, key=lambda row: row["id"]), "signals": names, "total": total}


def page(collected: Row, path: str | Path) -> None:
    """Write the page of what `collect` found."""
    pages.with_data(_PAGE, _SCRIPT, collected, path)
