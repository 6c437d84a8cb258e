"""Which of two answers is better: a judge that reads both orders, and what it is worth against people's preferences."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from backtranslation import audit
from backtranslation.evaluation import in_batches
from backtranslation.judge import digit_ids
from backtranslation.proof import interval
from backtranslation.records import Row, WorkFile
from backtranslation.templates import Template, fill

if TYPE_CHECKING:
    from backtranslation.engines import TransformersEngine

PROMPT = """Two assistants have answered the same instruction. Compare the answers by how helpful, correct and complete they are. Do not mind their order or their length.

Instruction:
{instruction}

Answer 1:
{first}

Answer 2:
{second}

Which answer is better? Write "Score: 1" if it is answer 1, and "Score: 2" if it is answer 2."""


def prefer(rows: list[Row], engine: "TransformersEngine", template: Template, work: WorkFile | None = None) -> np.ndarray:
    """Probability that the answer shown first is better, shape [n, 2]: with `own` first, and with `other` first.

    Rows have `instruction`, `own` and `other`; NaN where a pair does not fit the context. With `work`, what
    is done is kept there. Raises JudgeError when the tokenizer does not write a digit as one token.
    """
    orders = (("own", "other"), ("other", "own"))
    prompts = [
        template.prompt(fill(PROMPT, instruction=row["instruction"], first=row[first], second=row[second]), forced="Score: ")
        for row in rows
        for first, second in orders
    ]
    digits = digit_ids(template)[:2]
    found = np.full(len(prompts), np.nan)
    fitting = [at for at, ids in enumerate(prompts) if len(ids) < engine.context]

    def run(batch: list[int]) -> list[float]:
        logprobs = engine.choice_logprobs([prompts[fitting[i]] for i in batch], digits)
        return (1 / (1 + np.exp(logprobs[:, 1] - logprobs[:, 0]))).tolist()

    found[fitting] = in_batches([str(at) for at in fitting], [len(prompts[at]) for at in fitting], engine.batch_tokens, run, work)
    return found.reshape(-1, 2)


def compare(rows: list[Row], engine: "TransformersEngine", template: Template, work: WorkFile | None = None) -> pd.DataFrame:
    """Columns id, win (1 if `own` is better over both orders, 0 if `other`, 0.5 for a tie), longer (own's words more than other's).

    `work` as in `prefer`.
    """
    both = prefer(rows, engine, template, work)
    ahead = both[:, 0] - both[:, 1]
    longer = [len(row["own"].split()) - len(row["other"].split()) for row in rows]
    # Equal answers are a tie, whatever numbers say.
    win = np.where(np.isnan(ahead), 0.5, np.where([row["own"] == row["other"] for row in rows], 0.5, (np.sign(ahead) + 1) / 2))
    return pd.DataFrame({"id": [row["id"] for row in rows], "win": win, "longer": longer})


def win_rates(wins: pd.DataFrame) -> pd.DataFrame:
    """Columns of `wins` but win and longer, with measure and value: `seed_win_rate` and `seed_win_rate_lc` of every comparison.

    The length-controlled one takes away what length explains: a linear term in tanh of the standardised
    difference in words, fitted over all arms together (after AlpacaEval 2, whose term is inside a logistic regression).
    """
    scale = wins["longer"].std(ddof=0)
    length = np.tanh(wins["longer"] / scale) if scale else wins["longer"] * 0.0
    # Through the means of each arm, so that arms which are better and longer do not count for length.
    rest = wins.drop(columns=["win", "longer"])
    within = length - length.groupby([rest[name] for name in rest.columns.drop("id")]).transform("mean")
    slope = (within * wins["win"]).sum() / (within**2).sum() if (within**2).sum() else 0.0
    return pd.concat(
        [rest.assign(measure="seed_win_rate", value=wins["win"]), rest.assign(measure="seed_win_rate_lc", value=wins["win"] - slope * length)],
        ignore_index=True,
    )


def preferences(path: str | Path) -> list[Row]:
    """`instruction`, `chosen` and `rejected` from jsonl: such rows, or Open-Assistant message trees.

    Of a tree each two replies to its first message that people ranked differently are taken. Raises AuditError naming the row.
    """
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if lines and "prompt" in lines[0]:
        return [row for tree in lines for row in _ranked(tree["prompt"])]
    rows = audit.read_labels(path)
    chosen, rejected = ([row for row in rows if row["kind"] == kind] for kind in ("chosen", "rejected"))
    if len(chosen) + len(rejected) != len(rows):
        raise audit.AuditError(f"{path}: preferences need the fields instruction, chosen and rejected in every row")
    return [{"instruction": good["instruction"], "chosen": good["text"], "rejected": bad["text"]} for good, bad in zip(chosen, rejected, strict=True)]


def _ranked(prompt: Row) -> list[Row]:
    ranked = sorted((reply for reply in prompt["replies"] if reply.get("rank") is not None), key=lambda reply: reply["rank"])
    return [
        {"instruction": prompt["text"], "chosen": better["text"], "rejected": worse["text"]}
        for at, better in enumerate(ranked)
        for worse in ranked[at + 1 :]
        if better["rank"] < worse["rank"]
    ]


def audited(
    rows: list[Row], engine: "TransformersEngine", template: Template, random_seed: int, work: WorkFile | None = None
) -> Row:
    """What the judge is worth on preferences: rows of `instruction`, `chosen` and `rejected`.

    `agreement` with people, with a 95 % bootstrap interval over preferences, and `always_longer`, that of taking the longer answer;
    `first`, the mean probability of the answer shown first (0.5 without position bias); `consistent`, the share
    in which both orders name the same answer; `longer`, the share in which the longer one is preferred,
    and `people_longer`, in which people do. `unread` pairs do not fit the context. `work` as in `prefer`.
    """
    asked = [{"instruction": row["instruction"], "own": row["chosen"], "other": row["rejected"]} for row in rows]
    both = prefer(asked, engine, template, work)
    read = ~np.isnan(both).any(1)
    both = both[read]
    if not len(both):
        raise audit.AuditError("proof.preferences: no pair fits the context of the judge")
    agree = (np.sign(both[:, 0] - both[:, 1]) + 1) / 2
    more = np.sign([len(row["own"].split()) - len(row["other"].split()) for row, fits in zip(asked, read, strict=True) if fits])
    agreement, low, high = interval(agree[None], random_seed)
    different = more != 0
    longer = np.where(more > 0, agree, 1 - agree)[different]
    return {
        "n": len(both),
        "unread": int((~read).sum()),
        "agreement": agreement,
        "low": low,
        "high": high,
        "always_longer": float(((more + 1) / 2).mean()),
        "first": float(both.mean()),
        "consistent": float(((both[:, 0] > 0.5) == (both[:, 1] < 0.5)).mean()),
        "longer": float(longer.mean()) if len(longer) else None,
        "people_longer": float((more[different] > 0).mean()) if different.any() else None,
    }
