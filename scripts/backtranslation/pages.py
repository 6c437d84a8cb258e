"""The report's pages of examples and of what went in: self-contained HTML files in which all text is escaped."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2

from backtranslation.judge import ranked
from backtranslation.records import SIGNALS, Row, write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; color: #222; }
article { border: 1px solid #ccc; border-radius: 6px; padding: .6rem 1rem; margin: .8rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; background: #f6f6f6; padding: .6rem; max-height: 22rem; overflow: auto; }
h3 { font-size: 1rem; margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
small { color: #555; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; white-space: pre-wrap; overflow-wrap: anywhere; }
nav { position: sticky; top: 0; background: white; padding: .5rem 0; border-bottom: 1px solid #ccc; }
button { font: inherit; padding: .3rem .9rem; border: 1px solid #777; border-radius: 6px; background: #f6f6f6; cursor: pointer; }
button[aria-pressed=true] { background: #0072B2; color: white; }
table { border-collapse: collapse; } td { border-top: 1px solid #ddd; padding: .15rem .8rem .15rem 0; vertical-align: top; overflow-wrap: anywhere; }
/* Names stay whole where there is room; each paragraph runs the way of its own script. */
td:first-child { overflow-wrap: break-word; }
h2, h3, pre, td, .line span { unicode-bidi: plaintext; }
"""
"""How all pages look."""

# The policy lets the page load and run nothing, whatever the corpus holds.
_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title><style>{{ style|safe }}</style></head><body>
%s</body></html>
"""


def write(title: str, body: str, path: str | Path, **values: Any) -> None:
    """Write a page with a Jinja template as its body; all of `values` is escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_text(environment.from_string(_FRAME % body).render(title=title, style=STYLE, **values), path)


_EXAMPLES = """<h1>Examples</h1>
{% for section in sections %}
<section><h2>{{ section.title }}</h2><p>{{ section.about }}</p>
{% for item in section["items"] %}
<article><h3>{{ item.heading }}</h3><small>{{ item.note }}</small>
{% for label, text in item.texts %}{% if label %}<p><b>{{ label }}</b></p>{% endif %}<pre>{{ text }}</pre>{% endfor %}
</article>
{% else %}<p>None.</p>
{% endfor %}</section>
{% endfor %}
"""


def _candidate(row: Row) -> Row:
    signals = ", ".join(f"{name} {row[name]:.3f}" for name in ("combination", *SIGNALS) if row[name] == row[name])
    note = f"{signals}, {row['source']}, id {row['id']}"
    return {"heading": row["instruction"], "note": note, "texts": [("", row["text"])]}


def examples(
    rated: list[Row], kept: set[str], gated: list[Row], answers: list[Row], signal: str, count: int, path: str | Path
) -> None:
    """Write the page: the best kept, the worst dropped, what the gate refused, and held-out answers.

    `answers` has `prompt`, `base`, `forward` and `human` (see the rule evaluate); at most `count`
    examples of each kind are shown. Candidates without a value of `signal` are neither best nor worst.
    """
    valued = [row for row in ranked(rated, signal) if row[signal] == row[signal]]
    best = [_candidate(row) for row in valued if row["id"] in kept][:count]
    worst = [_candidate(row) for row in reversed(valued) if row["id"] not in kept][:count]
    refused: list[Row] = [
        {"heading": row["text"] or "(nothing)", "note": f"{row['reason']}: {row['detail']}", "texts": []}
        for row in gated[:count]
    ]
    answered = [
        {
            "heading": row["prompt"],
            "note": f"id {row['id']}",
            "texts": [(who, row[key]) for who, key in (("base model", "base"), ("forward model", "forward"), ("human", "human"))],
        }
        for row in answers[:count]
    ]
    sections = [
        {"title": "Kept", "about": f"Candidates with the highest {signal}.", "items": best},
        {"title": "Dropped by curation", "about": f"Candidates with the lowest {signal}.", "items": worst},
        {"title": "Dropped by the gate", "about": "Instructions with a plain fault.", "items": refused},
        {"title": "Held-out answers", "about": "Greedy answers to prompts no model was trained on.", "items": answered},
    ]
    write("Examples", _EXAMPLES, path, sections=sections)


_SETUP = """{% for title, lines in tables.items() %}<h2>{{ title }}</h2>
<table>{% for name, value in lines %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
{% endfor %}
"""


def flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every setting with its value as JSON, by its name with dots, such as `corpus.sample`."""
    lines = []
    for name, value in config.items():
        if isinstance(value, dict) and value:
            lines += flat(value, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, json.dumps(value, ensure_ascii=False)))
    return lines


def setup(tables: dict[str, list[tuple[str, str]]], path: str | Path) -> None:
    """Write the page of what went in: tables of names and values, each under its title."""
    write("What went in", _SETUP, path, tables=tables)


def with_data(page: str, script: str, data: Any, path: str | Path) -> None:
    """Write `page`, a template, with `script`, and `data` as JSON that the script reads and shows as text.

    The page names the script's digest in its policy, so that this one script runs and nothing of the data does.
    """
    # Within a script element "<" alone could end it; as an escape it is the same JSON.
    packed = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    write_text(jinja2.Template(page, autoescape=False).render(rows=packed, script=script, digest=digest, style=STYLE), path)
