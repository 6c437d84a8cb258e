"""Labelled pairs and preferences from files of one's own. Without the packages of a model, since it is looked at before any job starts."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backtranslation.records import Row, encodable, row_id, uncell


class AuditError(ValueError):
    """The audit cannot be made, or the judge failed it; the message says why."""


def labelled(pair: Row, kind: str, instruction: str, text: str) -> Row:
    """A pair to be rated, by which the judge is tried: made from `pair`, and good where `kind` is `true`."""
    return {
        "id": row_id(pair["id"], kind),
        "pair": pair["id"],
        "kind": kind,
        "instruction": instruction,
        "text": text,
        "label": int(kind == "true"),
        "length": float(len(text.split())),
    }


def label_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(number, object) of each row of a jsonl file; or of each labelled row of a csv as the labelling page's rule writes it.

    Raises AuditError naming a file that is no UTF-8, and a row that is no JSON or no CSV.
    """
    try:
        # Spreadsheets put a byte order mark in front.
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AuditError(f"{path}: invalid UTF-8 at byte {error.start + 1}; save it as UTF-8") from error
    if path.suffix.lower() == ".csv":
        # Row 1 is the header.
        n = 1
        try:
            for n, cells in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
                found = {name: uncell(said or "") for name, said in cells.items() if name}
                if label := found.get("label", "").strip():
                    yield n, {**found, "label": int(label) if label in ("0", "1") else label}
        except csv.Error as error:
            raise AuditError(f"{path}: row {n + 1}: not valid CSV ({error})") from error
        return
    # By "\n" alone, since texts may hold other characters that end lines.
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield n, json.loads(line)
        except json.JSONDecodeError as error:
            raise AuditError(f"{path}: row {n}: no JSON ({error.msg})") from error


def check_texts(where: str, found: Any, *names: str) -> None:
    """Raises AuditError where `found`, the object `where` (a file and row, in words), has a field of `names` that is no text, or none that can be written."""
    for name in names:
        if not isinstance(found.get(name), str) or not found[name].strip():
            raise AuditError(f"{where}: the field {name} is missing, empty or no text")
        if encodable(found[name]) != found[name]:
            raise AuditError(f"{where}: the field {name} holds half a surrogate pair")


def read_labels(path: str | Path) -> list[Row]:
    """Labelled pairs from jsonl: `instruction`, `response` and `label` (1 good, 0 bad), or `chosen` and `rejected`.

    A csv with the columns instruction, response and label serves as well; its rows without a label
    are passed over. A preference becomes two rows, chosen and rejected. Raises AuditError naming the
    row and the field.
    """
    rows: list[Row] = []
    for n, found in label_rows(Path(path)):
        if not isinstance(found, dict):
            raise AuditError(f"{path}: row {n}: no object with the fields instruction, response and label")
        preference = "chosen" in found or "rejected" in found
        texts = ("chosen", "rejected") if preference else ("response",)
        check_texts(f"{path}: row {n}", found, "instruction", *texts)
        if not preference and (isinstance(found.get("label"), bool) or found.get("label") not in (0, 1)):
            raise AuditError(f"{path}: row {n}: the field label is {found.get('label')!r}; expected 1 (good) or 0 (bad)")
        for name in texts:
            # Answers to one instruction belong together, whoever compared them; the same answer is rated once.
            row = labelled({"id": row_id(found["instruction"])}, name, found["instruction"], found[name])
            label = int(name == "chosen") if preference else found["label"]
            rows.append({**row, "id": row_id(found["instruction"], found[name]), "label": label})
    if len({row["label"] for row in rows}) < 2:
        raise AuditError(f"{path}: {len(rows)} pairs, which need labels of both kinds, good and bad")
    return rows


def read_preferences(path: str | Path) -> list[Row]:
    """`instruction`, `chosen` and `rejected` from jsonl: such rows, or Open-Assistant message trees.

    Of a tree each two replies to its first message that people ranked differently are taken. Raises AuditError naming the row and the
    field, or where there is none at all.
    """
    rows: list[Row] = []
    for n, found in label_rows(Path(path)):
        where = f"{path}: row {n}"
        if not isinstance(found, dict):
            raise AuditError(f"{where}: neither a preference nor a message tree")
        if "prompt" in found:
            rows += _ranked(where, found["prompt"])
        else:
            check_texts(where, found, "instruction", "chosen", "rejected")
            rows.append({name: found[name] for name in ("instruction", "chosen", "rejected")})
    if not rows:
        raise AuditError(f"{path}: no preferences: neither instruction, chosen and rejected, nor replies that people ranked")
    return rows


def _ranked(where: str, prompt: Any) -> list[Row]:
    replies = prompt.get("replies") if isinstance(prompt, dict) else None
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise AuditError(f"{where}: the field prompt is no message with replies")
    check_texts(f"{where}: prompt", prompt, "text")
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    for at, reply in enumerate(ranked):
        check_texts(f"{where}: ranked reply {at + 1}", reply, "text")
        if not isinstance(reply["rank"], int):
            raise AuditError(f"{where}: ranked reply {at + 1}: the field rank is {reply['rank']!r}; expected a whole number")
    ranked.sort(key=lambda reply: reply["rank"])
    return [
        {"instruction": prompt["text"], "chosen": better["text"], "rejected": worse["text"]}
        for at, better in enumerate(ranked)
        for worse in ranked[at + 1 :]
        if better["rank"] < worse["rank"]
    ]
