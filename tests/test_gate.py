"""Each way in which a generated instruction can be broken has one reason code, and good ones pass."""

import pytest
from conftest import segment

from backtranslation.gate import REASONS, gate, reason

TEXT = (
    "The with statement wraps the execution of a block with methods defined by a context manager. "
    "This allows common try...except...finally usage patterns to be encapsulated for convenient reuse."
)


def candidate(instruction: str, finish: str = "stop", number: int = 1) -> dict:
    return {**segment(number, TEXT), "instruction": instruction, "finish_reason": finish}


@pytest.mark.parametrize(
    "instruction, finish, expected",
    [
        ("", "over_context", "over_context"),
        ("", "stop", "empty"),
        ("   \n", "stop", "empty"),
        ("Explain the with statement and how it", "length", "cut_off"),
        ("Explain the with statement.", "length", "cut_off"),
        ("Explain the with statement and how it", "stop", "no_terminal_punctuation"),
        (TEXT, "stop", "echo"),
        ("Explain. " + TEXT, "stop", "echo"),
        ("I'm sorry, but I cannot help with that request.", "stop", "refusal"),
        ("As an AI language model, I do not write instructions.", "stop", "refusal"),
        ("Here is the instruction: explain the with statement.", "stop", "meta_instruction"),
        ("Write an instruction for the text above.", "stop", "meta_instruction"),
        ("Instruction: Explain the with statement.", "stop", "meta_instruction"),
        ("The instruction is to explain the with statement.", "stop", "meta_instruction"),
        ("Explain it. I cannot assist with anything else.", "stop", "refusal"),
        ("I can't open this file in Python. What may be wrong?", "stop", None),
        ("What does the with statement do?", "stop", None),
        ("How does the with statement wrap the execution of a block with methods defined by a context manager?", "stop", None),
        ('Explain what is meant by a "context manager."', "stop", None),
        ("Fix this code:\n```python\nwith open(x):\n```", "stop", None),
        ("Wie funktioniert die with-Anweisung?", "stop", None),
        ("with 文は何をしますか？", "stop", None),
        ("ما هي عاصمة فرنسا؟", "stop", None),
        ("भारत की राजधानी क्या है, समझाइए।", "stop", None),
        ("اس جملے کی وضاحت کریں۔", "stop", None),
        ("Ποια είναι η πρωτεύουσα της Γαλλίας;", "stop", None),
        ("Explain the with statement;", "stop", "no_terminal_punctuation"),
        ("How do I write instructions for a CPU simulator in Python?", "stop", None),
    ],
)
def test_reason(instruction, finish, expected):
    assert reason(candidate(instruction, finish)) == expected


def test_every_row_ends_once_and_the_first_of_equals_stays():
    rows = [
        candidate("What does it do?", number=3),
        candidate("what does it do", number=1),
        candidate("What does it DO?", number=2),
        candidate("Why?", number=4),
        candidate("", "over_context", number=5),
    ]
    kept, dropped = gate(rows)
    assert {row["id"][-1] for row in kept} == {"2", "4"}
    assert [(row["id"][-1], row["reason"]) for row in dropped] == [("3", "duplicate"), ("1", "no_terminal_punctuation"), ("5", "over_context")]
    # The instruction, also where there is none: not the text that it was to be written for.
    assert [row["text"] for row in dropped] == ["What does it do?", "what does it do", ""]
    assert {row["reason"] for row in dropped} <= set(REASONS)


def test_the_first_of_nearly_equal_instructions_stays():
    said = "Explain step by step how a context manager of Python opens a file, hands it to the block and closes it in the end, even after errors."
    rows = [
        candidate(said, number=2),
        candidate(said.replace("errors", "failures"), number=1),
        candidate("What is the difference between a list and a tuple?", number=3),
        candidate("What is the difference between a list and a set?", number=4),
    ]
    kept, dropped = gate(rows)
    assert [row["id"][-1] for row in kept] == ["1", "3", "4"]
    assert [(row["id"][-1], row["reason"]) for row in dropped] == [("2", "near_duplicate")]
    assert dropped[0]["detail"].endswith(rows[1]["id"])
