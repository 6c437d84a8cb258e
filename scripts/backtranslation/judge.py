"""The judge: what a model says of a pair, as signals, and the choice of what to keep."""

import gc
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backtranslation import engines, models
from backtranslation.logs import Progress, logger
from backtranslation.records import COLUMNS, SIGNALS, Row, WorkFile, blocks, drop, first_of, row_id, seed_of
from backtranslation.templates import Template, both_tags, fill

if TYPE_CHECKING:
    import pandas as pd

FORCED = "Score: "
"""What the judge's answer is made to begin with; the next token is then a digit."""

RATIONALE = 'First explain your verdict in a few sentences. Then end with one last line: "Score: " and one number from 1 to 5.'
"""Follows the rubric when the judge is to write a rationale."""

OPENING = 32
"""Tokens of the response that `opening_gain` looks at."""

COPIED = 5
"""Tokens in a row that instruction and response share make these tokens copied ones, which no gain counts."""

DECIDING = ("rating", "rating_generated", "instruction_gain", "opening_gain", "ending_logprob", "backward_gain", "instruction_logprob")
"""Signals by which pairs can be told apart, and which the combination weighs."""


class JudgeError(ValueError):
    """The judge cannot rate; the message says why."""


@dataclass(frozen=True)
class Judge:
    """Models, prompts and signals; `load` and `load_backward` load an engine when it is needed.

    `system` is the system text with which the judge is asked; the backward model has a template of
    its own. `generated` has `samples`, `max_new_tokens`, `temperature` and `top_p` of written ratings.

    Raises JudgeError when the rubric lacks `{instruction}` or `{response}`.
    """

    template: Template
    rubric: str
    signals: Sequence[str]
    load: Callable[[], engines.Engine]
    system: str | None = None
    load_backward: Callable[[], engines.Engine] | None = None
    backward_template: Template | None = None
    backward_prompt: str = ""
    generated: dict[str, Any] = field(default_factory=dict)
    batch_tokens: int = 32768
    random_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("{instruction}", "{response}"):
            if name not in self.rubric:
                raise JudgeError(f"judge.rubric: the rubric does not contain {name}")

    def question(self, row: Row) -> str:
        return fill(self.rubric, instruction=row["instruction"], response=row["text"])


def configured(given: Any, settings: Row, gpus: int) -> tuple[Judge, list[Any]]:
    """The judge of a configuration, and all that shapes what it says, for the name of a work file.

    `given` names files: `judge`, the manifest of the judging model; `judge_adapter`, the adapter of
    M_(t-1) on it, or nothing; `manifest` and `adapter` of the backward model; and `rubric`. `settings`
    has engine, precision, template (of the judge) and backward_template, prompt (of the backward
    model), tags, batch_tokens, random_seed, and signals and generated of the configuration's `judge`.
    """
    models_of = {
        "judge": (models.folder_of(given.judge), Path(given.judge_adapter).parent if given.judge_adapter else None),
        "backward": (models.folder_of(given.manifest), Path(given.adapter).parent),
    }
    template = Template(models.load_tokenizer(models_of["judge"][0]), settings["template"])
    backward = Template(models.load_tokenizer(models_of["backward"][0]), settings["backward_template"])
    text = Path(given.rubric).read_text(encoding="utf-8")

    def load(who: str) -> engines.Engine:
        base, adapter = models_of[who]
        name, batch_tokens = settings["engine"], settings["batch_tokens"]
        stop_id = (template if who == "judge" else backward).stop_id
        return engines.load(name, base, stop_id, adapter, batch_tokens=batch_tokens, gpus=gpus, **settings["precision"])

    judge = Judge(
        template,
        text,
        settings["signals"],
        lambda: load("judge"),
        both_tags(settings["tags"]) if settings["tags"] else None,
        lambda: load("backward"),
        backward,
        settings["prompt"],
        settings["generated"],
        settings["batch_tokens"],
        settings["random_seed"],
    )
    identities = [models.identity(given.judge, models_of["judge"][1]), models.identity(given.manifest, models_of["backward"][1])]
    return judge, [identities, text, template.jinja, backward.jinja, settings, models.computed_in(settings["precision"]["dtype"])]


def digit_ids(template: Template) -> list[int]:
    """The token ids of the ratings 1 to 5, as they follow the forced beginning.

    Raises JudgeError when a digit is not one token of its own there.
    """
    start = template.prompt("x", forced=FORCED)
    ids = []
    for digit in "12345":
        whole = template.prompt("x", forced=FORCED + digit)
        if whole[:-1] != start:
            raise JudgeError(f"the judge's tokenizer does not write {FORCED + digit!r} with the digit as one token")
        ids.append(whole[-1])
    return ids


def parse_score(text: str) -> int | None:
    """The rating that a written verdict ends with; None unless its last line is "Score: " and one number from 1 to 5.

    Brackets, quotes, asterisks and a full stop around the number are let pass; "10", "4/5", "4.5",
    two scores, or a score that is followed by more are not, since what was meant is anyone's guess.
    """
    lines = text.strip().splitlines() or [""]
    found = re.fullmatch(r"""[\s*"']*score:[\s*"'<(\[]*([1-5])[\s*"'>)\].!]*""", lines[-1], re.IGNORECASE)
    return int(found[1]) if found else None


def rate(rows: list[Row], judge: Judge, work: WorkFile, earlier: list[Row] | None = None) -> list[Row]:
    """`rows` (id, instruction, text) with the columns of SIGNALS, in their order; NaN for what is not asked.

    `earlier` are the same rows as another judge rated them: the backward model's signal is taken from
    there, since it does not depend on the judge.

    - `rating`: mean of 1..5 under the next-token probabilities after "Score: " (one forward pass, so
      there is always a value); `rating_entropy` in nats over the five digits; `rating_mass`: their
      share of all probability.
    - `rating_generated`: mean of the scores read off written verdicts (paper, section 2.3);
      `rating_parsed`: share of the verdicts that had one.
    - `instruction_gain`: mean over the tokens of response y of log p(y|x) - log p(y), in nats: how much
      the instruction x explains it; p(y) is taken under an empty instruction. `opening_gain`: the same
      over the first tokens. `ending_logprob`: log p of ending the turn where y ends.
    - `backward_gain`: mean over the tokens of x of log p(x|y) - log p(x) under the backward model;
      `instruction_logprob`: mean log p(x), whether x is like an instruction at all.
    - Tokens of one that are copied from the other (COPIED in a row) gain 0: copies explain each other
      perfectly, and the response's first sentence would else be the best instruction of all.

    A row that does not fit a model's context is never cut: what it does not fit is NaN.
    """
    parts = {
        "rating": _ratings,
        "rating_generated": _generated,
        "instruction_gain": _gains,
        "backward_gain": _backward_gains,
    }
    for row in earlier or ():
        work.done[f"backward_gain {row['id']}"] = {name: row[name] for name in COLUMNS["backward_gain"]}
    asked = [name for name in parts if name in judge.signals]
    # The same pair may stand there several times, as in preferences among several answers.
    unique = list({row["id"]: row for row in rows}.values())
    progress = Progress("signals", len(unique) * len(asked))
    progress.skip(sum(f"{name} {row['id']}" in work.done for name in asked for row in unique))
    engine: engines.Engine | None = None
    for name in asked:
        if name == "backward_gain":
            # The two models need not be in memory together.
            engine = None
            gc.collect()
        # Of all rows, so that a row has the same company after a stop.
        for block in blocks(unique):
            if all(f"{name} {row['id']}" in work.done for row in block):
                continue
            if engine is None:
                engine = judge.load_backward() if name == "backward_gain" and judge.load_backward else judge.load()
            parts[name](block, judge, engine, work, progress)
    found = [{key: value for name in asked for key, value in work.done[f"{name} {row['id']}"].items()} for row in rows]
    return [{**row, **dict.fromkeys(SIGNALS, math.nan), **values} for row, values in zip(rows, found, strict=True)]


def _note(name: str, row: Row, values: dict[str, float], work: WorkFile, progress: Progress, tokens: int = 0) -> None:
    if f"{name} {row['id']}" not in work.done:
        progress.add(1, tokens)
    work.add(f"{name} {row['id']}", values)


def _settle(name: str, rows: list[Row], lengths: list[int], context: int, work: WorkFile, progress: Progress) -> list[int]:
    """Indices of the rows that fit; the others are noted as without a value."""
    for row, length in zip(rows, lengths, strict=True):
        if length > context and f"{name} {row['id']}" not in work.done:
            _note(name, row, dict.fromkeys(COLUMNS[name], math.nan), work, progress)
    return [i for i, length in enumerate(lengths) if length <= context]


def _chunks(fitting: list[int], lengths: list[int], judge: Judge) -> list[list[int]]:
    """The rows that fit, in the batches in which they are rated and, after a stop, left out."""
    return [[fitting[i] for i in chunk] for chunk in engines.batches([lengths[i] for i in fitting], judge.batch_tokens)]


def _ratings(rows: list[Row], judge: Judge, engine: engines.Engine, work: WorkFile, progress: Progress) -> None:
    digits = digit_ids(judge.template)
    prompts = [judge.template.prompt(judge.question(row), judge.system, FORCED) for row in rows]
    lengths = [len(prompt) for prompt in prompts]
    fitting = _settle("rating", rows, lengths, engine.context, work, progress)
    # In chunks, so that the rubric is computed once for many rows and yet little is lost by a stop.
    for chunk in _chunks(fitting, lengths, judge):
        if all(f"rating {rows[i]['id']}" in work.done for i in chunk):
            continue
        for i, found in zip(chunk, expected(engine.choice_logprobs([prompts[i] for i in chunk], digits)), strict=True):
            _note("rating", rows[i], found, work, progress)


def expected(logprobs: np.ndarray) -> list[dict[str, float]]:
    """`rating`, `rating_entropy` and `rating_mass` of each row, from log p("1".."5"), shape [n, 5]."""
    mass = np.exp(logprobs).sum(1)
    p = np.exp(logprobs) / mass[:, None]
    entropy = -(p * np.log(np.clip(p, 1e-12, None))).sum(1)
    values = zip(p @ np.arange(1, 6), entropy, mass, strict=True)
    return [dict(zip(COLUMNS["rating"], map(float, row), strict=True)) for row in values]


def _generated(rows: list[Row], judge: Judge, engine: engines.Engine, work: WorkFile, progress: Progress) -> None:
    settings = judge.generated
    sampling = engines.Sampling(settings["max_new_tokens"], settings["temperature"], settings["top_p"])
    prompts = [judge.template.prompt(f"{judge.question(row)}\n\n{RATIONALE}", judge.system) for row in rows]
    lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
    fitting = _settle("rating_generated", rows, lengths, engine.context, work, progress)
    samples = settings["samples"]
    asked = [(i, k) for i in fitting for k in range(samples)]
    keys = [f"verdict {k} {rows[i]['id']}" for i, k in asked]
    seeds = [seed_of(judge.random_seed, rows[i]["id"], k) for i, k in asked]
    done = {at for at, key in enumerate(keys) if key in work.done}

    def conclude(row: Row, tokens: int = 0) -> None:
        verdicts = [f"verdict {k} {row['id']}" for k in range(samples)]
        if all(key in work.done for key in verdicts):
            scores = [score for key in verdicts if (score := work.done[key]) is not None]
            values = {"rating_generated": float(np.mean(scores)) if scores else math.nan, "rating_parsed": len(scores) / samples}
            _note("rating_generated", row, values, work, progress, tokens)

    for at, completion in engine.generate([prompts[i] for i, _ in asked], sampling, seeds, done) if asked else ():
        work.add(keys[at], parse_score(completion.text) if completion.finish_reason == "stop" else None)
        conclude(rows[asked[at][0]], len(completion.tokens))
    for i in fitting:
        # Stopped between its last verdict and the conclusion.
        if f"rating_generated {rows[i]['id']}" not in work.done:
            conclude(rows[i])


def _gains(rows: list[Row], judge: Judge, engine: engines.Engine, work: WorkFile, progress: Progress) -> None:
    given = [judge.template.prompt(row["instruction"], judge.system) for row in rows]
    empty = judge.template.prompt("", judge.system)
    answers = [judge.template.completion(row["text"]) for row in rows]
    for i, conditional, marginal in _pairs("instruction_gain", rows, given, empty, answers, judge, engine, work, progress):
        gain = np.where(copied(answers[i], judge.template.completion(rows[i]["instruction"])), 0, conditional - marginal)
        values = {
            "instruction_gain": float(gain.mean()),
            "opening_gain": float(gain[:OPENING].mean()),
            "ending_logprob": float(conditional[-1]),
        }
        _note("instruction_gain", rows[i], values, work, progress, len(answers[i]))


def _backward_gains(rows: list[Row], judge: Judge, engine: engines.Engine, work: WorkFile, progress: Progress) -> None:
    template = judge.backward_template or judge.template
    given = [template.prompt(fill(judge.backward_prompt, response=row["text"])) for row in rows]
    empty = template.prompt(fill(judge.backward_prompt, response=""))
    answers = [template.completion(row["instruction"]) for row in rows]
    for i, conditional, marginal in _pairs("backward_gain", rows, given, empty, answers, judge, engine, work, progress):
        gain = np.where(copied(answers[i], template.completion(rows[i]["text"])), 0, conditional - marginal)
        values = {"backward_gain": float(gain.mean()), "instruction_logprob": float(marginal.mean())}
        _note("backward_gain", rows[i], values, work, progress, len(answers[i]))


def copied(tokens: Sequence[int], source: Sequence[int]) -> np.ndarray:
    """Which tokens belong to a run of at least COPIED that stands in `source` too, shape [len(tokens)]."""
    runs = {tuple(source[at : at + COPIED]) for at in range(len(source) - COPIED + 1)}
    found = np.zeros(len(tokens), dtype=bool)
    for at in range(len(tokens) - COPIED + 1):
        if tuple(tokens[at : at + COPIED]) in runs:
            found[at : at + COPIED] = True
    return found


def _pairs(
    name: str,
    rows: list[Row],
    given: list[list[int]],
    empty: list[int],
    answers: list[list[int]],
    judge: Judge,
    engine: engines.Engine,
    work: WorkFile,
    progress: Progress,
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(index, log p of the answer's tokens given the prompt, the same given the empty prompt) of the rows that fit, unless done."""
    lengths = [max(len(g), len(empty)) + len(y) for g, y in zip(given, answers, strict=True)]
    fitting = _settle(name, rows, lengths, engine.context, work, progress)
    chunks = _chunks(fitting, lengths, judge)
    # Several candidates for one segment share its text, the faults of the audit even more: computed once, with
    # those that are new in the same chunk, which after a stop may be an earlier one that is done.
    new: list[set[tuple[int, ...]]] = []
    for chunk in chunks:
        new.append({tuple(answers[i]) for i in chunk}.difference(*new))
    known: dict[tuple[int, ...], np.ndarray] = {}
    for chunk in chunks:
        if all(f"{name} {rows[i]['id']}" in work.done for i in chunk):
            continue
        completions = [answers[i] for i in chunk]
        conditional = engine.sequence_logprobs([given[i] for i in chunk], completions)
        for together in new:
            if together & (set(map(tuple, completions)) - known.keys()):
                ordered = sorted(together)
                found = engine.sequence_logprobs([empty] * len(ordered), ordered)
                known |= dict(zip(ordered, found, strict=True))
        yield from zip(chunk, conditional, [known[tuple(answer)] for answer in completions], strict=True)


def combine(rows: list[Row], weights: dict[str, Any]) -> np.ndarray:
    """Probability that each pair is good, by the audit's logistic regression; NaN where a signal has no value.

    `weights` has `signals`, and for each `mean`, `scale` and `weight`; and `intercept` (see `audit.fit`).
    """
    values = np.array([[row[name] for name in weights["signals"]] for row in rows], dtype=float)
    z = (values - weights["mean"]) / weights["scale"] @ np.array(weights["weight"]) + weights["intercept"]
    return 1 / (1 + np.exp(-z))


def ranked(rated: list[Row], signal: str) -> list[Row]:
    """The candidates by `signal`, highest first; those without a value come last, ties go by id."""
    return sorted(rated, key=lambda row: (-np.nan_to_num(row[signal], nan=-np.inf), row["id"]))


def best_of(rated: list[Row], signal: str) -> tuple[list[Row], list[Row]]:
    """Of several candidates for one segment the one with the highest `signal`, and the ledger of the others.

    A candidate without a value loses to any with one; ties go by id.
    """
    best = {row["segment"]: row for row in first_of(ranked(rated, signal), "segment")}
    chosen = {row["id"] for row in best.values()}
    others = [
        drop(row, "best_of", "not_best", f"{signal} {row[signal]:.3f}, the best {best[row['segment']][signal]:.3f}")
        for row in rated
        if row["id"] not in chosen
    ]
    return [row for row in rated if row["id"] in chosen], others


def keep(rated: list[Row], signal: str, rule: str, value: float) -> tuple[list[Row], list[Row]]:
    """Split rated candidates by `curation.keep`: `threshold` (signal >= value) or `top_fraction`.

    A row whose signal has no value is dropped as `no_value`. Ties at a fraction's edge go by id.

    Raises JudgeError when nothing is kept.
    """
    valued = [row for row in ranked(rated, signal) if np.isfinite(row[signal])]
    if rule == "threshold":
        chosen = {row["id"] for row in valued if row[signal] >= value}
        why = f"{signal} below {value:g}"
    else:
        chosen = {row["id"] for row in valued[: round(value * len(valued))]}
        why = f"{signal} not in the top {value:.0%}"
    if not chosen:
        best = f"the best is {valued[0][signal]:.3f}" if valued else "no candidate has a value"
        raise JudgeError(
            f"curation.keep: none of {len(rated)} candidates is kept by {signal} with {rule} {value:g}; {best}"
        )
    dropped = [
        drop(row, "curate", "low_" + signal, f"{why}: {row[signal]:.3f}")
        if np.isfinite(row[signal])
        else drop(row, "curate", "no_value", f"{signal}: the pair does not fit the model's context, or no verdict had a score")
        for row in rated
        if row["id"] not in chosen
    ]
    logger.info("kept %d of %d by %s", len(chosen), len(rated), signal)
    return [row for row in rated if row["id"] in chosen], dropped


def score(
    pairs: list[Row],
    model: str | Path,
    rubric: str | Path = "config/rubrics/five_levels.txt",
    signals: Sequence[str] = ("rating", "instruction_gain"),
    work: str | Path | None = None,
    **precision: Any,
) -> "pd.DataFrame":
    """The signals of any list of pairs (`instruction`, `response`) under a model's folder: the judge without a workflow.

    `signals` as in `judge.signals`, but for backward_gain, which needs a backward model. `work` is a
    folder for partial results, so that a long rating can be stopped; `precision` goes to
    `engines.load` (dtype, quantization).

    Raises JudgeError naming the pair and the field when one is missing or no text.
    """
    import pandas as pd

    rows = []
    for n, pair in enumerate(pairs, 1):
        for name in ("instruction", "response"):
            if not isinstance(pair.get(name), str):
                raise JudgeError(f"pair {n}: the field {name} is missing or no text")
        rows.append({"id": row_id(str(n), pair["instruction"], pair["response"]), "instruction": pair["instruction"], "text": pair["response"]})
    if "backward_gain" in signals:
        raise JudgeError("signals: backward_gain needs a backward model; run the workflow for it")
    template = Template(models.load_tokenizer(Path(model)))
    judge = Judge(
        template,
        Path(rubric).read_text(encoding="utf-8"),
        signals,
        load=lambda: engines.load("transformers", Path(model), template.stop_id, **precision),
        generated={"samples": 1, "max_new_tokens": 300, "temperature": 0.7, "top_p": 0.9},
    )
    with tempfile.TemporaryDirectory() as folder:
        shape = [str(model), precision, judge.rubric, [row["id"] for row in rows]]
        rated = rate(rows, judge, WorkFile(work or folder, shape))
    columns = [column for name in signals for column in COLUMNS[name]]
    return pd.DataFrame([{**pair, **{name: row[name] for name in columns}} for pair, row in zip(pairs, rated, strict=True)])
