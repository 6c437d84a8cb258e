"""The run in words: a few sentences on each of the report's questions, with the numbers of its result files."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from backtranslation import pages
from backtranslation.records import Row, write_text

_PAGE = """{% for question, sentences in answers.items() %}<h2>{{ question }}</h2>
<p>{{ sentences|join(" ") }}</p>
{% endfor %}
"""


def _reasons(line: Any) -> str:
    """" (reason 3, other 2)" of a line of the funnel; nothing where nothing was dropped."""
    return f" ({line.reasons})" if line.dropped else ""


def _difference(line: Any) -> str:
    """Difference of two held-out losses with its interval, and what it says."""
    says = "better" if line.high < 0 else "worse" if line.low > 0 else "they cannot be told apart"
    return f"{line.difference:+.3f} nats per token, 95 % interval {line.low:+.3f} to {line.high:+.3f}: {says}"


def answers(funnel: pd.DataFrame, figures: Row, verdict: Row, signals: pd.DataFrame, keep: Row, heldout: pd.DataFrame, round_trip: pd.DataFrame, costs: pd.DataFrame, base: str, best: int) -> dict[str, list[str]]:
    """Sentences for each of the report's seven questions.

    `funnel`, `signals`, `heldout`, `round_trip` and `costs` are the report's tables, `base` is the name of the base model and `keep` curation.keep;
    `best` is the iteration that the run ends with, `figures` and `verdict` are its judge's audit (see `audit.summary`, `audit.verdict`).
    """
    stages = {(line.track, line.stage): line for line in funnel.itertuples()}
    seed, trained, mixed = stages["seed", "read pairs"], stages["backward", "train"], stages["forward", "train"]
    documents, cut, unique, sample = (stages[key] for key in (("documents", "read corpus"), ("corpus", "cut and filter"), ("corpus", "deduplicate"), ("corpus", "sample")))
    gate, curate = stages["candidates", "gate"], stages["candidates", "curate"]
    went_in = [
        f"Of {seed.rows_in:,} seed pairs {seed.dropped:,} were dropped{_reasons(seed)}, {trained.rows_in:,} are for training and {seed.rows_out - trained.rows_in:,} held out from it.",
        f"{documents.rows_out:,} documents gave {sample.rows_in:,} segments, of which {sample.rows_out:,} were drawn.",
        f"The base model is {base}.",
    ]
    thrown = [
        f"Of {cut.rows_in:,} pieces of text {cut.dropped:,} were dropped{_reasons(cut)}, and {unique.dropped:,} as duplicates.",
        f"Of {gate.rows_in:,} written instructions the gate dropped {gate.dropped:,}{_reasons(gate)}, and curation {curate.dropped:,} of the other {curate.rows_in:,}{_reasons(curate)}.",
    ]
    said = "no value" if verdict["value"] is None else f"{verdict['value']:.3f}"
    trusted = [
        f"On {figures['rows']:,} labelled pairs {verdict['signal']}, which decides, has {verdict['measure']} {said} and {'reaches' if verdict['passed'] else 'does NOT reach'} the floor of {verdict['floor']:g}; length alone has {verdict['length']:.3f}."
    ]
    if best > 1:
        trusted.append(f"That is the judge of iteration {best}, which rated what was kept; figures and tables here are the first judge's.")
    single = {name: found["all"] for name, found in figures["signals"].items() if name != "combination" and found["all"]["auroc"] is not None}
    if single:
        name = max(single, key=lambda name: single[name]["auroc"])
        trusted.append(f"The best single signal is {name}: AUROC {single[name]['auroc']:.3f}, 95 % interval {single[name]['low']:.3f} to {single[name]['high']:.3f}.")
    means = signals.set_index("signal").loc[keep["signal"]]
    kept = [
        f"{curate.rows_out:,} of {curate.rows_in:,} candidates were kept, by {keep['signal']}, {keep['rule'].replace('_', ' ')} {keep['value']:g}.",
        f"Their mean {keep['signal']} is {means['mean_of_kept']:.3f}, that of all {means['mean']:.3f}.",
        f"With the seed pairs they make {mixed.rows_in:,} training examples of the forward model{f', of which {mixed.dropped:,} were dropped{_reasons(mixed)}' if mixed.dropped else ''}.",
    ]
    backward, *forward = heldout.itertuples()
    learned = [f"The backward model's loss of the true instruction on {backward.n:,} held-out pairs is {backward.loss:.3f} nats per token, the base model's {backward.other_loss:.3f}; difference {_difference(backward)}."]
    for name, part in round_trip[round_trip["measure"] == "chrf"].groupby("set", sort=False):
        backward_like, base_like = (f"{line['mean']:.1f} ({line['low']:.1f} to {line['high']:.1f})" for _, line in part.set_index("model").loc[["backward", "base"]].iterrows())
        learned.append(f"For {part['n'].max():,} responses ({name}) whose true instruction is known it writes one that is like it by {backward_like} of 100 (chrF, 95 % interval), the base model one by {base_like}.")
    better = [f"Loss of the true response of {line.model} minus that of {line.against} on {line.n:,} held-out pairs: {_difference(line)}." for line in forward if line.model == f"M_{best}"]
    slowest, largest = costs.iloc[0], costs.sort_values("memory_gb", ascending=False).iloc[0]
    took = [
        f"All jobs together took {costs['minutes'].sum():.1f} minutes, those of {slowest['rule']} {slowest['minutes']:.1f}.",
        f"The most memory was {largest['memory_gb']:.1f} GB, of {largest['rule']}.",
        f"Models read {costs['tokens_read'].sum():,.0f} tokens and wrote {costs['tokens_written'].sum():,.0f}.",
    ]
    return {
        "What went in?": went_in,
        "What was thrown away, and why?": thrown,
        "Can the judge be trusted?": trusted,
        "What was kept?": kept,
        "Did training work?": learned,
        "Is the model better?": [*better, "M_0 knows the seed pairs alone."],
        "What did it cost?": took,
    }


def page(answered: dict[str, list[str]], path: str | Path) -> None:
    """Write the page; all text is escaped."""
    pages.write("In short", _PAGE, path, answers=answered)


def paragraphs(answered: dict[str, list[str]], paths: Sequence[str | Path]) -> None:
    """Write each answer as a paragraph of HTML, to a file each, for the captions of its figures and tables; all text is escaped."""
    for path, sentences in zip(paths, answered.values(), strict=True):
        write_text(f"<p>{html.escape(' '.join(sentences))}</p>\n", path)
