"""Deterministic checks of a generated instruction, each with a reason code."""

import re

from backtranslation import dedup
from backtranslation.records import Row, drop

# A sentence's end, or that of a block of code. Greeks ask with a semicolon.
_END = re.compile(r"(([.?!…。？！؟۔।॥\u037e]|(?<=[\u0370-\u03ff\u1f00-\u1fff]);)[\"'”’»)\]*`]*|```)$")
# Users say "I can't finish my report" too; only the assistant's ways of refusing are meant.
_REFUSAL = re.compile(
    r"^(i['’]?m sorry|i am sorry|sorry, |i apologi[sz]e|unfortunately, i)"
    r"|\bi (can(no|['’])t|am (not able|unable) to|['’]m (not able|unable) to) (help|assist|comply|fulfil|provide|answer|generate|create|write|do that)"
    r"|\bas an ai\b|\bas a (large )?language model|\bi(['’]m| am) (just |only )?an ai\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"^(here (is|are)\b.{0,40}\b(instruction|prompt|question)s?\b|sure\b|certainly\b|of course\b|the (following )?(instruction|prompt|question|text|user)\b.{0,40}\b(is|asks|above|below|answers)\b"
    r"|(instruction|prompt|question|answer|text|output)s?\s*:)"
    r"|\b(write|generate|create|provide|give|come up with)\b.{0,30}\b(an?|the) (instruction|prompt)\b"
    r"|\b(instruction|prompt|question)s?\b.{0,30}\b(above|below|following) text\b",
    re.IGNORECASE,
)

REASONS = {
    "over_context": "the text and its prompt do not fit the model's context",
    "empty": "nothing was generated",
    "cut_off": "the token limit was reached before the instruction ended",
    "no_terminal_punctuation": "does not end like a sentence",
    "echo": "copies the response instead of asking for it",
    "refusal": "refuses or apologises",
    "meta_instruction": "talks about writing an instruction",
    "duplicate": "the same instruction as an earlier candidate",
    "near_duplicate": "nearly the same instruction as an earlier candidate",
}
"""Reason codes and what they mean, in the order in which they are checked."""

NEARLY = 0.9
"""Jaccard index of the word bigrams of instructions that are nearly the same: of 40 words about one is another.

With 0.8 "the difference between a list and a tuple" would be the same as "a list and a set".
"""


def _words(text: str) -> list[str]:
    return re.findall(rf"[\w{dedup.WORD_MARKS}]+", text.lower())


def is_echo(instruction: str, response: str, size: int = 5, share: float = 0.6) -> bool:
    """Whether most word 5-grams of the instruction stand in the response word for word.

    A short instruction or a question is never an echo: a good answer often begins by repeating it
    (without this, 17 of 1,254 instructions that people wrote, in LIMA and OpenAssistant, were called echoes).
    """
    words, others = _words(instruction), _words(response)
    if len(words) < 12 or instruction.rstrip().endswith(("?", "؟")):
        return False
    grams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    known = {tuple(others[i : i + size]) for i in range(len(others) - size + 1)}
    return sum(gram in known for gram in grams) >= share * len(grams)


def reason(candidate: Row) -> str | None:
    """The first reason code that speaks against a candidate, duplicates apart; None when it passes."""
    instruction = candidate["instruction"].strip()
    if candidate["finish_reason"] == "over_context":
        return "over_context"
    if not instruction:
        return "empty"
    if candidate["finish_reason"] == "length":
        return "cut_off"
    if not _END.search(instruction):
        return "no_terminal_punctuation"
    if is_echo(instruction, candidate["text"]):
        return "echo"
    if _REFUSAL.search(instruction):
        return "refusal"
    if _META.search(instruction):
        return "meta_instruction"
    return None


def gate(candidates: list[Row]) -> tuple[list[Row], list[Row]]:
    """Split candidates into (kept, dropped); of equal and nearly equal instructions the first one by id is kept."""
    verdicts: dict[str, tuple[str, str]] = {}
    seen: dict[str, str] = {}
    ordered = sorted(candidates, key=lambda row: row["id"])
    for row in ordered:
        found = reason(row)
        key = " ".join(_words(row["instruction"]))
        if found:
            verdicts[row["id"]] = (found, REASONS[found])
        elif key in seen:
            verdicts[row["id"]] = ("duplicate", f"same instruction as {seen[key]}")
        else:
            seen[key] = row["id"]
    left = [row for row in ordered if row["id"] not in verdicts]
    for place, (earlier, how) in dedup.near_texts([row["instruction"] for row in left], NEARLY).items():
        verdicts[left[place]["id"]] = ("near_duplicate", f"{how:.2f} alike: {left[earlier]['id']}")
    kept = [row for row in candidates if row["id"] not in verdicts]
    dropped = [drop(row, "gate", *verdicts[row["id"]]) for row in candidates if row["id"] in verdicts]
    return kept, dropped
