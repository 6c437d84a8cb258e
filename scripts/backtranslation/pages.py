"""The report's page of examples: one self-contained HTML file in which all corpus text is escaped."""

from pathlib import Path

import jinja2

from backtranslation.records import SIGNALS, Row, write_text

# The policy lets the page load and run nothing, whatever the corpus holds.
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Examples</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; color: #222; }
article { border: 1px solid #ccc; border-radius: 6px; padding: .6rem 1rem; margin: .8rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; background: #f6f6f6; padding: .6rem; max-height: 22rem; overflow: auto; }
h3 { font-size: 1rem; margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
small { color: #555; }
</style></head><body>
<h1>Examples</h1>
{% for section in sections %}
<section><h2>{{ section.title }}</h2><p>{{ section.about }}</p>
{% for item in section["items"] %}
<article><h3>{{ item.heading }}</h3><small>{{ item.note }}</small>
{% for label, text in item.texts %}{% if label %}<p><b>{{ label }}</b></p>{% endif %}<pre>{{ text }}</pre>{% endfor %}
</article>
{% else %}<p>None.</p>
{% endfor %}</section>
{% endfor %}
</body></html>
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
    examples of each kind are shown.
    """
    ranked = sorted(rated, key=lambda row: (-row[signal], row["id"]))
    best = [_candidate(row) for row in ranked if row["id"] in kept][:count]
    worst = [_candidate(row) for row in reversed(ranked) if row["id"] not in kept][:count]
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
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    write_text(environment.from_string(_PAGE).render(sections=sections), path)
