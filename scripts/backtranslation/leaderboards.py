"""Answers of the finished model to the questions of AlpacaEval and MT-bench, in the form that their tools read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backtranslation.engines import Engine, Sampling
from backtranslation.logs import Progress
from backtranslation.records import Row, WorkFile, fingerprint, seed_of
from backtranslation.templates import Template

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1}
"""Of MT-bench's categories, as FastChat sets them (fastchat/llm_judge/common.py); 0.7 for any other."""


class LeaderboardError(ValueError):
    """A question cannot be asked; the message names file, row and field."""


@dataclass(frozen=True)
class Question:
    """What the user says turn by turn; `row` is the question as it was read."""

    id: str
    turns: list[str]
    temperature: float
    row: Row


def _rows(path: Path) -> list[Row]:
    """Objects of a .json array or a .jsonl file."""
    text = path.read_text(encoding="utf-8")
    # By "\n" alone, since texts may hold other characters that end lines.
    parts = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()] if path.suffix == ".jsonl" else [(1, text)]
    found = []
    for number, part in parts:
        try:
            found.append(json.loads(part))
        except json.JSONDecodeError as error:
            raise LeaderboardError(f"{path}: row {number}: not valid JSON ({error})") from error
    if path.suffix != ".jsonl":
        found = found[0]
    if not isinstance(found, list) or not found:
        raise LeaderboardError(f"{path}: expected an array of questions")
    return found


def _field(path: Path, number: int, row: Row, name: str, fits: Callable[[object], bool], expected: str) -> None:
    if not isinstance(row, dict) or not fits(row.get(name)):
        raise LeaderboardError(f"{path}: row {number}: {name}: expected {expected}")


def alpaca_eval(path: Path) -> list[Question]:
    """AlpacaEval's evaluation set, an array of objects with `instruction`; greedily answered.

    Raises LeaderboardError naming file, row and field.
    """
    found = []
    for number, row in enumerate(_rows(path), 1):
        _field(path, number, row, "instruction", lambda text: isinstance(text, str) and bool(text.strip()), "a text")
        found.append(Question(str(number), [row["instruction"]], 0.0, row))
    return found


def mt_bench(path: Path) -> list[Question]:
    """MT-bench's question.jsonl, with `question_id`, `category` and `turns`. Raises LeaderboardError naming file, row and field."""
    found: list[Question] = []
    for number, row in enumerate(_rows(path), 1):
        _field(path, number, row, "question_id", lambda value: isinstance(value, int) and str(value) not in [question.id for question in found], "a number that no other row has")
        _field(path, number, row, "category", lambda value: value is None or isinstance(value, str), "a text")
        _field(path, number, row, "turns", lambda turns: isinstance(turns, list) and bool(turns) and all(isinstance(turn, str) for turn in turns), "a list of texts")
        found.append(Question(str(row["question_id"]), row["turns"], TEMPERATURES.get(row.get("category") or "", 0.7), row))
    return found


def answer(
    questions: list[Question], engine: Engine, template: Template, system: str | None, max_new_tokens: int, random_seed: int, work: WorkFile
) -> list[list[str]]:
    """The answers to every turn of every question; a later turn is asked after the answers to those before.

    What `work` holds is not written again, and ends up the same as without a stop. Raises LeaderboardError when a question and its answer exceed the
    model's context.
    """
    progress = Progress("answers", sum(len(question.turns) for question in questions))
    before = set(work.done)
    progress.skip(len(before))
    for turn in range(max(len(question.turns) for question in questions)):
        for temperature in sorted({question.temperature for question in questions}):
            asked, prompts, seeds = [], [], []
            # All of them, so that a row has the same company after a stop.
            for question in questions:
                key = f"{question.id} {turn}"
                if question.temperature != temperature or len(question.turns) <= turn:
                    continue
                earlier = [(question.turns[n], work.done[f"{question.id} {n}"]) for n in range(turn)]
                ids = template.prompt(question.turns[turn], system, earlier=earlier)
                if len(ids) + max_new_tokens > engine.context:
                    raise LeaderboardError(
                        f"question {question.id}: {len(ids)} tokens and an answer of {max_new_tokens} exceed the model's context "
                        f"of {engine.context}; set release.leaderboards.max_new_tokens lower"
                    )
                asked.append(key)
                prompts.append(ids)
                seeds.append(seed_of(random_seed, key))
            done = {i for i, key in enumerate(asked) if key in before}
            for i, completion in engine.generate(prompts, Sampling(max_new_tokens, temperature), seeds, done) if prompts else ():
                work.add(asked[i], completion.text.strip())
                if i not in done:
                    progress.add(1, len(completion.tokens))
    return [[work.done[f"{question.id} {n}"] for n in range(len(question.turns))] for question in questions]


def as_model_outputs(questions: list[Question], answers: list[list[str]], model: str) -> list[Row]:
    """AlpacaEval's model_outputs.json: instruction, output, generator, and the data set where the question names one."""
    return [
        {
            **({"dataset": question.row["dataset"]} if "dataset" in question.row else {}),
            "instruction": question.row["instruction"],
            "output": output,
            "generator": model,
        }
        for question, (output,) in zip(questions, answers, strict=True)
    ]


def as_model_answers(questions: list[Question], answers: list[list[str]], model: str) -> list[Row]:
    """Lines of MT-bench's model_answer/<model>.jsonl. The time stamp is 0: the same run gives the same file."""
    return [
        {
            "question_id": question.row["question_id"],
            "answer_id": fingerprint([model, question.id])[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": turns}],
            "tstamp": 0.0,
        }
        for question, turns in zip(questions, answers, strict=True)
    ]
