"""The arms of the proof: what each is trained on, and the pairs that all are measured on."""

import numpy as np

from backtranslation import augment
from backtranslation.decontamination import Protected
from backtranslation.dedup import bigrams, words
from backtranslation.grid import UNAUGMENTED
from backtranslation.judge import ranked
from backtranslation.records import SEGMENTS, Row, batches, drop, first_of, other_of, row_id


class ArmError(ValueError):
    """An arm has nothing to be trained on; the message says which, and why."""


def _shuffled(rows: list[Row]) -> list[Row]:
    """The rows, each with the instruction of one before; they come in a random order, so that is a random other."""
    return [{**row, "instruction": other_of(rows, at)["instruction"]} for at, row in enumerate(rows)]


def added(arm: str, n: int | None, rated: list[Row], signal: str, random_seed: int) -> list[Row]:
    """The candidates that an arm adds to the seed pairs; `n` of them where the arm has a size.

    Draws depend on `random_seed` alone, so that the smaller sample is part of the larger, and `oracle` and
    `broken` have the same responses. Raises ArmError when there are not as many.
    """
    if arm in UNAUGMENTED:
        return []
    ordered = ranked(rated, signal)
    if arm in ("random", "oracle", "broken"):
        able = sorted((row for row in rated if arm == "random" or row["true_instruction"]), key=lambda row: row["id"])
        drawn = [able[at] for at in np.random.default_rng(random_seed).permutation(len(able))]
        pool = first_of(drawn, "segment")
    elif arm == "all":
        pool = ordered
    elif arm == "single":
        # The gate may have dropped the first of several candidates; then there is none for its segment.
        pool = [row for row in ordered if row["id"] == row["segment"]]
    elif arm in ("a4", "a5"):
        least = 4 if arm == "a4" else 4.5
        pool = first_of((row for row in ordered if row["rating"] >= least), "segment")
        if not pool:
            raise ArmError(f"proof.arms: {arm}: no candidate is rated {least} or more; leave this arm out")
    else:
        pool = first_of(ordered, "segment")
    if n is not None and len(pool) < n:
        known = " with a known true instruction" if arm in ("oracle", "broken") else ""
        raise ArmError(f"proof.sizes: {n} candidates are asked for, and there are {len(pool)}{known} for the arm {arm}")
    pool = pool[:n]
    if arm == "oracle":
        return [{**row, "instruction": row["true_instruction"]} for row in pool]
    return _shuffled(pool) if arm == "broken" else pool


def examples(
    arm: str,
    n: int | None,
    train: list[Row],
    rated: list[Row],
    signal: str,
    tags: dict[str, str | None],
    seed_share: float | None,
    random_seed: int,
) -> list[Row]:
    """Training examples of an arm; see `added` and `augment.mix`. Of `base` none."""
    if arm == "base":
        return []
    curated = added(arm, n, rated, signal, random_seed)
    if arm == "augmented":
        return augment.mix([], curated, tags)
    if arm == "seed_broken":
        train = _shuffled([train[at] for at in np.random.default_rng(random_seed).permutation(len(train))])
    return augment.mix(train, curated, tags, seed_share)


def known(path: str) -> list[Row]:
    """The rows of a table of segments whose true instruction is known; of a corpus mostly few."""
    found = batches(path, SEGMENTS.names)
    return [row for batch in found for row in batch.filter(batch.column("true_instruction").is_valid()).to_pylist()]


def heldout(
    pairs: list[Row], train: list[Row], segments: list[Row], sample: list[Row], count: int, n: int, random_seed: int
) -> tuple[list[Row], list[Row]]:
    """(pairs to measure on, dropped): the held-out seed pairs, and true pairs of the corpus that were not drawn.

    Of the corpus at most `count`, as long as those drawn are, and only where it knows an instruction. A pair with `n`
    words in a row in common with a text or an instruction of people that an arm is trained on is dropped. Each pair has a `set`,
    seed or corpus, and two wrong instructions of the same set: `other`, a random one, and `near`, the most alike in
    words (Jaccard index). A set in which all ask for the same is left out; raises ArmError when none is left.
    """
    drawn, lengths = {row["id"] for row in sample}, [len(row["text"]) for row in sample]
    shortest, longest = min(lengths), max(lengths)
    left = [row for row in segments if row["true_instruction"] and row["id"] not in drawn and shortest <= len(row["text"]) <= longest]
    rng = np.random.default_rng(random_seed)
    chosen = ({**left[at], "instruction": left[at]["true_instruction"], "response": left[at]["text"]} for at in rng.permutation(len(left)))
    trained = [("seed", row["instruction"], row["response"]) for row in train]
    trained += [("corpus", row["true_instruction"] or "", row["text"]) for row in sample]
    protected = Protected([(name, text) for name, *both in trained for text in both if text], n)
    kept: list[Row] = []
    dropped: list[Row] = []
    for name, rows, most in (("seed", pairs, len(pairs)), ("corpus", chosen, count)):
        clean: list[Row] = []
        for row in rows:
            if len(clean) == most:
                break
            if found := next((hit for side in ("instruction", "response") if (hit := protected.match(row[side], bigrams(row[side])))), None):
                dropped.append(drop(row, "proof", "contaminated", f"{found[1]}: {found[0][:200]}", row["response"]))
            else:
                clean.append({"id": row_id(name, row["id"]), "set": name, **{side: row[side] for side in ("instruction", "response")}})
        kept += _with_wrong_instructions(clean)
    if not kept:
        raise ArmError(f"proof: of {len(pairs)} held-out pairs, {len(dropped)} of them like what arms are trained on, not two that ask for different things are left to measure on; raise seed.heldout")
    return kept, dropped


def _with_wrong_instructions(rows: list[Row]) -> list[Row]:
    asked = [row["instruction"] for row in rows]
    if len(set(asked)) < 2:
        return []
    said = [set(words(text)) for text in asked]
    found = []
    for at, row in enumerate(rows):
        alike = [len(said[at] & other) / len(said[at] | other or {""}) if asked[to] != asked[at] else -1.0 for to, other in enumerate(said)]
        found.append({**row, "other": other_of(rows, at)["instruction"], "near": asked[int(np.argmax(alike))]})
    return found
