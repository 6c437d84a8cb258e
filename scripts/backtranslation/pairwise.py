"""Which of two answers is better: a judge that reads both orders, and what it is worth against people's preferences."""

import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd

from backtranslation import audit, engines, logs, models
from backtranslation.evaluation import in_batches
from backtranslation.judge import FORCED, JudgeError, digit_ids
from backtranslation.records import Row, WorkFile, other_of
from backtranslation.templates import Template, fill

PROMPT = """Two assistants have answered the same instruction. Compare the answers by how helpful, correct and complete they are. Do not mind their order or their length.

Instruction:
{instruction}

Answer 1:
{first}

Answer 2:
{second}

Which answer is better? Write "Score: 1" if it is answer 1, and "Score: 2" if it is answer 2."""


class ModelJudge:
    """A model on this machine, of which the probability of "1" against "2" is read off."""

    def __init__(self, engine: engines.TransformersEngine, template: Template):
        self.engine, self.template = engine, template

    def first_is_better(self, texts: list[str], work: WorkFile | None) -> list[float]:
        """Probability that answer 1 is better, of each prompt; NaN where it does not fit the context.

        Raises JudgeError when the tokenizer does not write a digit as one token.
        """
        prompts = [self.template.prompt(text, forced=FORCED) for text in texts]
        digits = digit_ids(self.template)[:2]
        found = np.full(len(prompts), np.nan)
        fitting = [at for at, ids in enumerate(prompts) if len(ids) < self.engine.context]

        def run(batch: list[int]) -> list[float]:
            logprobs = self.engine.choice_logprobs([prompts[fitting[i]] for i in batch], digits)
            return (1 / (1 + np.exp(logprobs[:, 1] - logprobs[:, 0]))).tolist()

        found[fitting] = in_batches([str(at) for at in fitting], [len(prompts[at]) for at in fitting], self.engine.batch_tokens, run, work)
        return found.tolist()


class ServedJudge:
    """A model behind an OpenAI-compatible server, of which the verdict is read; `server` is its address up to /v1.

    The token comes from the variable OPENAI_API_KEY alone, and is in no message.
    """

    def __init__(self, server: str, model: str):
        # Only needed here, and it takes a second to import.
        import openai

        self.server, self.model, self.error = server, model, openai.APIError
        # Servers on one's own machine ask for no token, but the client does.
        self.client = openai.OpenAI(base_url=server, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=6)

    def first_is_better(self, texts: list[str], work: WorkFile | None) -> list[float]:
        """1 where it says that answer 1 is better, 0 where answer 2; NaN without a verdict. Eight are asked at once.

        Raises JudgeError when the server does not answer, or not in the protocol.
        """
        keys, ones = [str(at) for at in range(len(texts))], [1] * len(texts)
        with ThreadPoolExecutor(8) as pool:

            def run(batch: list[int]) -> list[float]:
                return list(pool.map(self._verdict, [texts[i] for i in batch]))

            return in_batches(keys, ones, 8, run, work)

    def _verdict(self, text: str) -> float:
        try:
            answer = self.client.chat.completions.create(model=self.model, messages=[{"role": "user", "content": text}], temperature=0)
        except self.error as error:
            status = getattr(error, "status_code", None)
            # What is too long for its context, or what it will not speak of.
            if status in (400, 413, 422):
                logs.logger.info("no verdict: %s", error.message)
                return math.nan
            # What a server says of a refused token may hold parts of it.
            said = "it refused the token in OPENAI_API_KEY" if status in (401, 403) else error.message
            raise JudgeError(f"proof.judge: {self.server}, model {self.model}: no verdict: {said}") from None
        except ValueError:
            raise JudgeError(f"proof.judge: {self.server}, model {self.model}: what it answered is no JSON") from None
        # A wrong address may lead to a page, and the client checks nothing.
        try:
            written = answer.choices[0].message.content if len(answer.choices) else None
            # The last one: a verdict may speak of both before it decides.
            found = re.findall(r"Score:\W*([12])\b(?!\.\d)", written or "")
        except (AttributeError, LookupError, TypeError):
            raise JudgeError(f"proof.judge: {self.server}, model {self.model}: what it answered is no chat completion; is the address that of its API, up to /v1?") from None
        return float(found[-1] == "1") if found else math.nan


Judge = ModelJudge | ServedJudge


def load_judge(served: Row | None, manifest: str, template: str, batch_tokens: int, precision: Row) -> tuple[Judge, list[Any]]:
    """The judge that is configured (`proof.judge`), and what identifies it where work is kept: `served`, or the model of `manifest`."""
    if served:
        return ServedJudge(**served), [served]
    base = models.folder_of(manifest)
    chat = Template(models.load_tokenizer(base), template)
    engine = engines.TransformersEngine(base, chat.stop_id, batch_tokens=batch_tokens, **precision)
    return ModelJudge(engine, chat), [models.identity(manifest), models.computed_in(precision["dtype"]), chat.jinja]


def prefer(rows: list[Row], judge: Judge, work: WorkFile | None = None) -> np.ndarray:
    """Probability that the answer shown first is better, shape [n, 2]: with `own` first, and with `other` first.

    Rows have `instruction`, `own` and `other`; NaN where the judge has none (see the judges). With `work`, what
    is done is kept there. Raises JudgeError.
    """
    orders = (("own", "other"), ("other", "own"))
    texts = [
        fill(PROMPT, instruction=row["instruction"], first=row[first], second=row[second]) for row in rows for first, second in orders
    ]
    return np.array(judge.first_is_better(texts, work)).reshape(-1, 2)


def compare(rows: list[Row], judge: Judge, work: WorkFile | None = None) -> pd.DataFrame:
    """Columns id, win (1 if `own` is better over both orders, 0 if `other`, 0.5 for a tie), longer (own's words more than other's).

    Where the judge has no verdict in one of the orders, that is a tie, and a warning says how many there are. `work` as in `prefer`.
    """
    both = prefer(rows, judge, work)
    ahead = both[:, 0] - both[:, 1]
    longer = [len(row["own"].split()) - len(row["other"].split()) for row in rows]
    if unread := int(np.isnan(ahead).sum()):
        logs.warn(f"{unread} of {len(rows)} comparisons got no verdict in both orders, and count as ties")
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


def true_against_others(pairs: list[Row]) -> list[Row]:
    """`instruction`, `chosen` and `rejected` where there are no preferences of people: each pair's response against another pair's."""
    return [{"instruction": row["instruction"], "chosen": row["response"], "rejected": other_of(pairs, at)["response"]} for at, row in enumerate(pairs)]


def audited(rows: list[Row], judge: Judge, random_seed: int, work: WorkFile | None = None) -> Row:
    """What the judge is worth on preferences: rows of `instruction`, `chosen` and `rejected`.

    `agreement` with people, with a 95 % bootstrap interval over instructions (see `audit.preferred`), and `always_longer`, that of taking the longer answer;
    `first`, the mean probability of the answer shown first (0.5 without position bias); `consistent`, the share
    in which both orders name the same answer; `longer`, the share in which the longer one is preferred,
    and `people_longer`, in which people do. `unread` pairs do not fit the context, or
    got no verdict. `work` as in `prefer`.

    Raises AuditError when no pair has a verdict.
    """
    asked = [{"instruction": row["instruction"], "own": row["chosen"], "other": row["rejected"]} for row in rows]
    both = prefer(asked, judge, work)
    read = ~np.isnan(both).any(1)
    both = both[read]
    if not len(both):
        raise audit.AuditError("proof.preferences: no pair fits the context of the judge, or it gave no verdict on any")
    agree = (np.sign(both[:, 0] - both[:, 1]) + 1) / 2
    asked = [row for row, fits in zip(asked, read, strict=True) if fits]
    more = np.sign([len(row["own"].split()) - len(row["other"].split()) for row in asked])
    agreement, low, high = audit.share(agree, [row["instruction"] for row in asked], random_seed)
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
        "consistent": float(((both[:, 0] - 0.5) * (both[:, 1] - 0.5) < 0).mean()),
        "longer": float(longer.mean()) if len(longer) else None,
        "people_longer": float((more[different] > 0).mean()) if different.any() else None,
    }
