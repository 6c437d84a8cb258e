"""Cards of the curated set and of the forward model: every number from the run's files, every licence by name.

Text from corpus, model and configuration is untrusted: in Markdown it is escaped (`plain`), and the front matter is
written by huggingface_hub's card classes, which quote it.
"""

import re
import string
from typing import TYPE_CHECKING, Any

import pandas as pd

from backtranslation import exports
from backtranslation.records import Row
from backtranslation.templates import both_tags

if TYPE_CHECKING:
    from huggingface_hub import DatasetCard, ModelCard

PAPER = "[Li et al. 2023](https://arxiv.org/abs/2308.06259)"

HUB_LICENCES = frozenset(
    ["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "odc-by", "odbl", "gfdl", "gpl-3.0", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma"]
)
"""Licences that the hub knows by these names (those in use for text and models); it calls any other `other`."""

PERMISSIVE = frozenset(["apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0"])
"""Licences that add no condition beside another one but to be named."""


EXAMPLES = 5


def plain(text: Any) -> str:
    """`text` on one line, so that Markdown shows it and reads nothing in it: no markup, table cell, link or mention."""
    line = " ".join(str(text).split())
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", line)


def shown(text: str, limit: int = 160) -> str:
    """The beginning of a text, escaped."""
    line = " ".join(text.split())
    return plain(line[:limit]) + (" …" if len(line) > limit else "")


def table(frame: pd.DataFrame) -> str:
    """A Markdown table of a report's table."""
    head = [f"| {' | '.join(plain(name) for name in frame.columns)} |", "|---" * len(frame.columns) + "|"]
    lines = frame.astype(object).where(frame.notna(), "").to_numpy().tolist()
    return "\n".join([*head, *(f"| {' | '.join(plain(cell) for cell in line)} |" for line in lines)])


def non_commercial(licence: str | None) -> bool:
    return bool(re.search(r"(^|[-_ ])(nc|non-?commercial)([-_ ]|$)", licence or "", re.IGNORECASE))


def inherited(licences: list[Row]) -> dict[str, str]:
    """The card's licence fields from those of all parts (`licence`, null where unknown).

    One that is not permissive decides where all others are; several are `other` by their names together, and
    with one that is not known the whole is `unknown`.
    """
    names = {part["licence"] for part in licences}
    if None in names:
        return {"license": "unknown"}
    strict = names - PERMISSIVE
    decisive = strict or names
    if len(decisive) == 1 and (only := next(iter(decisive))) in HUB_LICENCES:
        return {"license": only}
    joined = "-and-".join(re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-") for name in sorted(names))
    return {"license": "other", "license_name": joined}


def _licences(licences: list[Row]) -> str:
    frame = pd.DataFrame(
        [
            {"part": part["part"], "name": exports.public(part["name"]), "licence": part["licence"] or "NOT KNOWN"}
            for part in licences
        ]
    )
    lines = [table(frame)]
    bound = sorted({exports.public(part["name"]) for part in licences if non_commercial(part["licence"])})
    if bound:
        lines.append(f"**Not for commercial use**: inherited from {', '.join(map(plain, bound))}.")
    if any(part["licence"] is None for part in licences):
        lines.append("The licence of a part is not known: do not pass this on before it is.")
    return "\n\n".join(lines)


def _audit(verdict: Row, figures: Row) -> str:
    passed = "reaches" if verdict["passed"] else "does **not** reach"
    value = "no value" if verdict["value"] is None else f"{verdict['value']:.3f}"
    return (
        f"Before it rated, the judge was tried on {figures['rows']} pairs of which it is known whether they are good: {plain(verdict['signal'])}, "
        f"the signal that decided, has {plain(verdict['measure'])} {value}, which {passed} the floor of {verdict['floor']:g}; "
        f"length alone has {verdict['length']:.3f}."
    )


def _keep(keep: Row) -> str:
    value = keep["value"]
    rule = f"the best {value:.0%} of all candidates" if keep["rule"] == "top_fraction" else f"those of at least {value:g}"
    return f"by {plain(keep['signal'])}, {rule}"


def _limits(config: Row) -> str:
    return "\n".join(
        [
            "- Instructions are written by a model and filtered by a model: some ask for something else than the text gives.",
            "- Responses are texts as people wrote them, with their errors, opinions and age; nobody checked them for this use.",
            "- Personal data were "
            + ("masked by pattern, which misses some." if config["corpus"]["filters"]["mask_personal_data"] else "not removed."),
            "- Measured is likelihood on held-out pairs, not helpfulness, truth or safety.",
        ]
    )


def _base(manifest: Row) -> str:
    """The base model by name and revision."""
    revision = f" at revision {plain(manifest['revision'])}" if manifest["revision"] else ""
    return plain(exports.public(manifest["name"])) + revision


def _front(licences: list[Row]) -> dict[str, Any]:
    return {**inherited(licences), "tags": ["instruction-backtranslation"]}


def dataset(
    config: Row, manifest: Row, licences: list[Row], funnel: pd.DataFrame, audit: Row, verdict: Row, rows: list[Row]
) -> "DatasetCard":
    """The card of the curated set `rows`.

    `licences` lists part, name and licence of everything it was made from, `funnel` is the report's table, `audit` and
    `verdict` are what the audit says of the judge that rated them.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    system = config["forward"]["tags"]["augmented"]
    data = DatasetCardData(
        **_front(licences),
        pretty_name=config["name"],
        task_categories=["text-generation"],
        size_categories=_size(len(rows)),
        # The folder's other files are the same rows in other formats, which `datasets` does not mix in one data set.
        configs=[{"config_name": "default", "data_files": exports.FILES["parquet"]}],
    )
    lines = [f"| {shown(row['instruction'])} | {shown(row['text'])} | {shown(exports.public(row['source']), 60)} |" for row in rows[:EXAMPLES]]
    body = f"""
# {plain(config["name"])}

{len(rows)} pairs of an instruction and a text that people wrote, made by instruction backtranslation ({PAPER}): a model
trained on reversed seed pairs wrote an instruction for each text, and a judge kept, {_keep(config["curation"]["keep"])}.

## Use

For instruction tuning and for research on it. `load_dataset` of this folder gives the first of these; the others are the
same rows for other tools, and load with `load_dataset("json", data_files=...)`:

| file | a row |
|---|---|
| `{exports.FILES["parquet"]}` | id, source, system, instruction, response and all signals of the judge |
| `{exports.FILES["messages"]}` | chat turns with role and content |
| `{exports.FILES["alpaca"]}` | instruction, input, output, system |
| `{exports.FILES["sharegpt"]}` | conversations with from and value |

System text of every row: {f'"{plain(system)}"' if system else "none"}.

## From what, and what became of it

{table(funnel)}

{_audit(verdict, audit)}

Instructions were written by the backward model, trained from {_base(manifest)}.

## Licences

{_licences(licences)}

## Known limits

{_limits(config)}

## Examples

| instruction | the text begins with | source |
|---|---|---|
{chr(10).join(lines)}
"""
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{body}")


def model(
    config: Row, manifest: Row, licences: list[Row], heldout: pd.DataFrame, training: Row, merge: Row, audit: Row, verdict: Row, best: int
) -> "ModelCard":
    """The card of the forward model, M_`best`.

    `heldout` is the table of held-out losses, `training` and `merge` say how it was trained and merged; the rest as for
    `dataset`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    named = {"base_model": manifest["name"]} if manifest["kind"] == "hub" else {}
    data = ModelCardData(
        **_front(licences), **named, library_name="transformers", pipeline_tag="text-generation"
    )
    system = both_tags(config["forward"]["tags"])
    asked = f"It was trained with system texts and is to be asked with: {plain(system)}" if system else "It was trained without a system text."
    iterations = heldout[heldout["model"] != "backward"]
    body = f"""
# {plain(config["name"])}

A model that follows instructions, trained from {_base(manifest)} on seed pairs and on pairs made by instruction
backtranslation ({PAPER}). Prompts have the form of the chat template that comes with the tokenizer. {asked}

## Use

For research on instruction tuning, and as far as the licences below and your own tests allow. Not for decisions about
people, and not as a source of facts.

## Training

{training["examples"]} examples with {training["tokens"]} tokens, {training["steps"]} steps, learning rate {training["learning_rate"]:g}, computed in
{plain(training["dtype"])}, quantisation {plain(training["quantization"])}; merged into weights with quantisation {plain(merge["merged_quantization"])}, stored in {plain(merge["dtype"])}.
Random seed {training["random_seed"]}.

## Held-out loss

Mean negative log-likelihood of the true response per token on pairs that no model was trained on, with the difference
and its 95 % interval; this is M\\_{best}:

{table(iterations)}

{_audit(verdict, audit)}

## Licences

{_licences(licences)}

## Known limits

{_limits(config)}
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{body}")


def _size(rows: int) -> str:
    """The hub's class of size."""
    steps = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")]
    return next((name for limit, name in steps if rows < limit), "1M<n<10M")
