"""The curated set in the forms that training tools read, each loading in `datasets.load_dataset`.

`messages` is trl's conversational format and LLaMA-Factory's and axolotl's OpenAI format; `alpaca` and `sharegpt` are
as LLaMA-Factory's data/README.md describes them, the latter also what axolotl's chat_template reads with its fields
mapped (docs/dataset-formats/conversation of axolotl). What each tool has to be told stands in docs/release.md.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from backtranslation.records import SIGNALS, Row, write, write_json, write_jsonl

CURATED = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "source", "system", "instruction", "response")),
        *((name, pa.float64()) for name in (*SIGNALS, "combination")),
    ]
)
"""The curated set as it is released; signals that were not asked for, or have no value, are null."""

FILES = {
    "parquet": "curated.parquet",
    "messages": "messages.jsonl",
    "alpaca": "alpaca.json",
    "sharegpt": "sharegpt.json",
}
"""The forms and their files."""

LLAMA_FACTORY = {
    "messages": {
        "file_name": FILES["messages"],
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    },
    "alpaca": {
        "file_name": FILES["alpaca"],
        "columns": {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
    },
    "sharegpt": {"file_name": FILES["sharegpt"], "formatting": "sharegpt", "columns": {"messages": "conversations"}},
}
"""LLaMA-Factory's dataset_info.json."""


def public(name: str) -> str:
    """The name of a model or source as others may read it: of a path from the root of this machine the last part alone."""
    return Path(name).name if Path(name).is_absolute() else name


def messages(row: Row, system: str | None) -> list[dict[str, str]]:
    """The turns of a curated pair: the system text, if there is one, the instruction, and the text as its answer."""
    turns = [("system", system), ("user", row["instruction"]), ("assistant", row["text"])]
    return [{"role": role, "content": content} for role, content in turns if content]


def alpaca(row: Row, system: str | None) -> dict[str, str]:
    return {"instruction": row["instruction"], "input": "", "output": row["text"], "system": system or ""}


def sharegpt(row: Row, system: str | None) -> list[dict[str, str]]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in messages(row, system)]


def write_all(rows: list[Row], system: str | None, folder: Path) -> None:
    """Write the curated `rows` into `folder` in every form of FILES, in the same order, with their id and source.

    `system` is the system text that the forward model was trained with on such pairs, null for none.
    """

    def origin(row: Row) -> dict[str, Any]:
        return {"id": row["id"], "source": public(row["source"])}

    flat = [
        {
            **origin(row),
            "system": system,
            "instruction": row["instruction"],
            "response": row["text"],
            # NaN stands for what has no value; in a released file that is null.
            **{name: row[name] if row[name] == row[name] else None for name in (*SIGNALS, "combination")},
        }
        for row in rows
    ]
    write(flat, CURATED, folder / FILES["parquet"])
    write_jsonl(({**origin(row), "messages": messages(row, system)} for row in rows), folder / FILES["messages"])
    write_json([{**origin(row), **alpaca(row, system)} for row in rows], folder / FILES["alpaca"])
    write_json([{**origin(row), "conversations": sharegpt(row, system)} for row in rows], folder / FILES["sharegpt"])
    write_json(LLAMA_FACTORY, folder / "dataset_info.json")
