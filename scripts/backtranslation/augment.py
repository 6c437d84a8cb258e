"""Backtranslation proper: reversed seed pairs, and an instruction for every segment."""

from collections.abc import Callable
from dataclasses import asdict

from backtranslation import engines
from backtranslation.logs import Progress
from backtranslation.records import Row, WorkFile, blocks, row_id, seed_of
from backtranslation.templates import Template, both_tags, fill


def reverse(pairs: list[Row], prompt: str) -> list[Row]:
    """Examples for the backward model p(instruction | response); `prompt` contains `{response}`."""
    return [
        {
            "id": pair["id"],
            "origin": "seed",
            "system": None,
            "prompt": fill(prompt, response=pair["response"]),
            "completion": pair["instruction"],
        }
        for pair in pairs
    ]


def write_instructions(
    segments: list[Row],
    engine: Callable[[], engines.Engine],
    template: Template,
    prompt: str,
    sampling: engines.Sampling,
    random_seed: int,
    work: WorkFile,
    count: int = 1,
) -> list[Row]:
    """`count` candidates for each segment, in the order of the segments.

    The first candidate bears the id of its segment; of each, `segment` names it.

    What `work` holds is not written again, and ends up the same as without a stop; `engine` is called
    only when something is left to do. The random numbers of a row depend on `random_seed` and its id alone. A text that does not
    fit the model's context gets no instruction and the finish reason `over_context`; it is not cut.
    """
    candidates = [
        {**row, "segment": row["id"], "id": row_id(row["id"], str(n)) if n else row["id"]}
        for row in segments
        for n in range(count)
    ]
    progress = Progress("instructions", len(candidates))
    progress.skip(sum(row["id"] in work.done for row in candidates))
    loaded: engines.Engine | None = None
    # Of all rows, so that a row has the same company after a stop.
    for block in blocks(candidates):
        if all(row["id"] in work.done for row in block):
            continue
        loaded = loaded or engine()
        prompts, seeds, fitting = [], [], []
        for row in block:
            ids = template.prompt(fill(prompt, response=row["text"]))
            if len(ids) + sampling.max_new_tokens > loaded.context:
                if row["id"] not in work.done:
                    work.add(row["id"], asdict(engines.Completion("", [], "over_context", 0.0)))
                    progress.add(1)
                continue
            prompts.append(ids)
            seeds.append(seed_of(random_seed, row["id"]))
            fitting.append(row["id"])
        done = {i for i, name in enumerate(fitting) if name in work.done}
        for i, completion in loaded.generate(prompts, sampling, seeds, done) if prompts else ():
            work.add(fitting[i], asdict(completion))
            if i not in done:
                progress.add(1, len(completion.tokens))
    return [
        {
            **row,
            "instruction": work.done[row["id"]]["text"],
            "finish_reason": work.done[row["id"]]["finish_reason"],
            "tokens": len(work.done[row["id"]]["tokens"]),
            "logprob": work.done[row["id"]]["logprob"],
        }
        for row in candidates
    ]


def mix(train: list[Row], curated: list[Row], tags: dict[str, str | None], seed_share: float | None = None) -> list[Row]:
    """Examples for a forward model: seed pairs with tag S_a, curated pairs with tag S_w (paper, section 2.3).

    `seed_share` repeats the seed pairs, or leaves the last of them out, until they are this share of all.
    """
    seed = [_forward(row, "seed", tags["seed"], row["response"]) for row in train]
    if seed_share is not None and curated:
        wanted = max(1, round(len(curated) * seed_share / (1 - seed_share)))
        turns = [seed[n % len(seed)] for n in range(wanted)]
        seed = [{**row, "id": row_id(row["id"], str(n))} if (n := at // len(seed)) else row for at, row in enumerate(turns)]
    return seed + [_forward(row, "augmented", tags["augmented"], row["text"]) for row in curated]


def for_inference(pairs: list[Row], tags: dict[str, str | None]) -> list[Row]:
    """Held-out examples for the forward model, with both tags, as it is used."""
    return [_forward(row, "seed", both_tags(tags), row["response"]) for row in pairs]


def _forward(row: Row, origin: str, system: str | None, response: str) -> Row:
    return {
        "id": row["id"],
        "origin": origin,
        "system": system,
        "prompt": row["instruction"],
        "completion": response,
    }
