"""Readers of seed pairs and corpus texts: files, folders, hub data sets, and Python's own manual.

A source is one mapping from the configuration (see `config/schema.yaml`): where the rows are
(`path`, `hub` or `python`), the `layout` of a row, and the column mapping. Seed pairs are the user's
own careful work, so damage there is an error; a corpus is expected to be dirty, so a damaged row
goes to the ledger.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backtranslation import segments
from backtranslation.records import Row, drop, row_id

MAX_ROW_BYTES = 10_000_000
"""A longer row is damage, not text; it is never loaded whole."""

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", *TEXT_SUFFIXES)

# Turns follow each other without a line break: "### Human: Why?### Assistant: Because."
_GUANACO_TURN = re.compile(r"### (Human|Assistant):[ \t]*")


class SourceError(ValueError):
    """A source that cannot be used; the message names file, row and field."""


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used: a reason code and a sentence."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Text:
    """What a row says: a response, with its instruction where the source has one."""

    instruction: str | None
    response: str


def name_of(source: Row) -> str:
    """The name a source has in ids, logs and the ledger."""
    if "path" in source:
        return str(source["path"])
    if "hub" in source:
        return f"hub:{source['hub']}"
    return f"python:{source['python']}"


def files_of(source: Row) -> list[Path]:
    """The files of a `path` source: itself, or every text file below the folder, sorted.

    Raises SourceError when nothing is there or the kind of file is unknown.
    """
    path = Path(source["path"])
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
        if not files:
            raise SourceError(f"{path}: this folder holds no text file ({', '.join(TEXT_SUFFIXES)})")
        return files
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder")
    if path.suffix.lower() not in SUFFIXES:
        raise SourceError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}, or a folder of texts")
    return [path]


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_ROW_BYTES)
                yield number, Problem("row_too_long", f"longer than {MAX_ROW_BYTES} bytes")
            elif line.strip():
                yield number, _parse_json(line)


def _parse_json(line: bytes) -> Any:
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"invalid UTF-8 at byte {error.start + 1}")
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return Problem("invalid_json", f"not valid JSON: {error}")


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    rows = _parse_json(path.read_bytes())
    if isinstance(rows, Problem):
        raise SourceError(f"{path}: {rows.detail}")
    if not isinstance(rows, list):
        raise SourceError(f"{path}: expected a JSON list of objects, found {type(rows).__name__}")
    yield from enumerate(rows, start=1)


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_ROW_BYTES)
    # Undecodable bytes survive as lone surrogates, so that one bad row does not end the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream)
        number = 0
        while True:
            number += 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, Problem("invalid_csv", f"not valid CSV: {error}")
                continue
            if None in row or None in row.values():
                yield number, Problem("invalid_csv", f"{len(reader.fieldnames or [])} columns expected in this row")
            elif any(re.search("[\udc80-\udcff]", value) for value in row.values()):
                yield number, Problem("invalid_utf8", "invalid UTF-8")
            else:
                yield number, row


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pa.ArrowException as error:
        raise SourceError(f"{path}: row {number + 1}: not readable as parquet ({error})") from error


def _text_files(source: Row) -> Iterator[tuple[int, Any]]:
    for number, path in enumerate(files_of(source), start=1):
        if path.stat().st_size > MAX_ROW_BYTES:
            yield number, Problem("row_too_long", f"{path}: longer than {MAX_ROW_BYTES} bytes")
            continue
        try:
            yield number, {"text": path.read_text(encoding="utf-8-sig")}
        except UnicodeDecodeError as error:
            yield number, Problem("invalid_utf8", f"{path}: invalid UTF-8 at byte {error.start + 1}")


def _hub(source: Row) -> Iterator[tuple[int, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(source["hub"], revision=source["revision"], split=source["split"])
    except Exception as error:  # the hub's client raises many kinds; all mean the same to the user
        raise SourceError(
            f"hub:{source['hub']}: could not be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
            f"If it is gated, accept its terms at https://huggingface.co/datasets/{source['hub']} and set HF_TOKEN."
        ) from error
    yield from enumerate(rows, start=1)


def _raw_rows(source: Row) -> Iterator[tuple[int, Any]]:
    """(row number from 1, what stands there) for any source."""
    if "hub" in source:
        return _hub(source)
    if "python" in source:
        texts = segments.python_topics() if source["python"] == "topics" else segments.python_docstrings()
        return ((number, {"text": text}) for number, (_, text) in enumerate(texts, start=1))
    path = Path(source["path"])
    files_of(source)
    if path.is_dir() or path.suffix.lower() in TEXT_SUFFIXES:
        return _text_files(source)
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    return readers[path.suffix.lower()](path)


def pick(record: Any, column: str) -> Any:
    """The value at a dotted path; a number steps into a list: `instances.0.output`.

    Raises KeyError when there is no such column.
    """
    if isinstance(record, dict) and column in record:
        return record[column]
    value = record
    for step in column.split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise KeyError(column)
    return value


def _string(record: Any, column: str) -> str | Problem:
    if not isinstance(record, dict):
        return Problem("wrong_type", f"expected an object, found {type(record).__name__}")
    try:
        value = pick(record, column)
    except KeyError:
        return Problem("missing_field", f"no field {column!r}; fields present: {', '.join(map(str, record))}")
    if not isinstance(value, str):
        return Problem("wrong_type", f"field {column!r}: expected text, found {type(value).__name__}")
    if re.search("[\ud800-\udfff]", value):
        return Problem("invalid_utf8", f"field {column!r}: holds half a surrogate pair")
    return value


def _from_columns(record: Any, columns: dict[str, str]) -> Text | Problem:
    found: dict[str, str] = {}
    for role, column in columns.items():
        value = _string(record, column)
        if isinstance(value, Problem):
            return value
        found[role] = value.strip()
    response = found.get("response", found.get("text", ""))
    instruction = found.get("instruction")
    if instruction and found.get("input"):
        instruction = f"{instruction}\n\n{found['input']}"
    for role, said in (("response", response), ("instruction", instruction)):
        if said == "":
            return Problem("empty_field", f"field {columns.get(role) or columns['text']!r} is empty")
    return Text(instruction, response)


def _from_turns(turns: list[str]) -> Text | Problem:
    if len(turns) < 2:
        return Problem("no_answer", "the conversation has no answer")
    if len(turns) > 2:
        return Problem("multi_turn", f"{len(turns)} turns; single-turn rows are used")
    instruction, response = (turn.strip() for turn in turns)
    if not instruction or not response:
        return Problem("empty_field", f"the {'answer' if instruction else 'instruction'} is empty")
    return Text(instruction, response)


def _from_guanaco(record: Any, columns: dict[str, str]) -> Text | Problem:
    """`### Human: ... ### Assistant: ...` in one field, as timdettmers/openassistant-guanaco has it."""
    text = _string(record, columns.get("text", "text"))
    if isinstance(text, Problem):
        return text
    speakers = _GUANACO_TURN.findall(text)
    if speakers[:1] != ["Human"]:
        return Problem("not_guanaco", "the text does not begin with '### Human:'")
    if any(a == b for a, b in itertools.pairwise(speakers)):
        return Problem("not_guanaco", "two turns of one speaker in a row")
    return _from_turns(_GUANACO_TURN.split(text)[2::2])


def _from_lima(record: Any, columns: dict[str, str]) -> Text | Problem:
    """`{conversations: [instruction, response, ...], source}`, as GAIR/lima has it."""
    column = columns.get("conversations", "conversations")
    if not isinstance(record, dict) or column not in record:
        return Problem("missing_field", f"no field {column!r}")
    turns = record[column]
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return Problem("wrong_type", f"field {column!r}: expected a list of texts")
    return _from_turns(turns)


LAYOUTS: dict[str, Callable[[Any, dict[str, str]], Text | Problem]] = {
    "columns": _from_columns,
    "guanaco": _from_guanaco,
    "lima": _from_lima,
}


def texts(source: Row, roles: dict[str, str]) -> Iterator[tuple[int, Text | Problem]]:
    """(row number, text or problem) of a source; `roles` are the default columns.

    Raises SourceError when the source holds no row at all, or lacks a mapped column altogether.
    """
    columns = source.get("columns") or roles
    empty, missing = True, None
    for number, record in _raw_rows(source):
        text = record if isinstance(record, Problem) else LAYOUTS[source["layout"]](record, columns)
        if empty and isinstance(text, Problem) and text.reason == "missing_field":
            missing = missing or f"{name_of(source)}: row {number}: {text.detail}"
        else:
            empty = False
        yield number, text
    if missing and empty:
        raise SourceError(missing)
    if empty:
        raise SourceError(f"{name_of(source)}: holds no rows")


def check(source: Row, roles: dict[str, str]) -> None:
    """Look at a source before any job starts: files exist, the first row has the mapped columns.

    Raises SourceError. Hub data sets are looked at when they are downloaded.
    """
    if "path" not in source:
        return
    if "response" in roles and "instruction" not in (source.get("columns") or roles) and source["layout"] == "columns":
        raise SourceError(f"{name_of(source)}: a seed source needs the columns instruction and response")
    for _, text in texts(source, roles):
        if isinstance(text, Problem) and text.reason == "missing_field":
            raise SourceError(f"{name_of(source)}: row 1: {text.detail}")
        return


def _language_problem(source: Row, text: str) -> Problem | None:
    if source["language"] and (found := segments.language_of(text)) != source["language"]:
        return Problem("language", f"{found}, not {source['language']}")
    return None


SEED_ROLES = {"instruction": "instruction", "response": "response"}
CORPUS_ROLES = {"text": "text"}
# What a careful seed set may still hold on purpose; every other problem is damage.
_SEED_DROPS = {"multi_turn", "no_answer", "empty_field", "language"}


def read_seed(sources: list[Row]) -> tuple[list[Row], list[Row]]:
    """All usable seed pairs and the dropped rows (`multi_turn`, `no_answer`, `empty_field`, `language`, `duplicate`).

    Raises SourceError naming file, row and field for a row that is damaged.
    """
    kept: list[Row] = []
    dropped: list[Row] = []
    seen: dict[tuple[str, str], Row] = {}
    for source in sources:
        name = name_of(source)
        for number, text in texts(source, SEED_ROLES):
            row = {"id": row_id("seed", name, str(number)), "source": name, "row": number}
            if isinstance(text, Text):
                both = f"{text.instruction}\n{text.response}"
                row |= {"instruction": text.instruction, "response": text.response}
                row["id"] = row_id(name, str(number), both)
                text = _language_problem(source, both) or text
            if isinstance(text, Problem):
                if text.reason not in _SEED_DROPS:
                    raise SourceError(f"{name}: row {number}: {text.detail}")
                dropped.append(drop(row, "ingest", text.reason, text.detail))
            elif (first := seen.get((text.instruction or "", text.response))) is not None:
                dropped.append(drop(row, "ingest", "duplicate", f"same pair as row {first['row']} of {first['source']}"))
            else:
                seen[text.instruction or "", text.response] = row
                kept.append(row)
    return kept, dropped


def read_corpus(sources: list[Row]) -> tuple[list[Row], list[Row]]:
    """Documents for `segments.segment`, and the rows that could not be read.

    Raises SourceError when no row of a source is readable.
    """
    documents: list[Row] = []
    dropped: list[Row] = []
    for source in sources:
        name = name_of(source)
        before, last = len(documents), None
        for number, text in texts(source, CORPUS_ROLES):
            if isinstance(text, Problem):
                row = {"id": row_id("corpus", name, str(number)), "source": name, "row": number}
                dropped.append(drop(row, "read", text.reason, text.detail))
                last = (number, text)
            else:
                documents.append(
                    {
                        "source": name,
                        "row": number,
                        "text": text.response,
                        "true_instruction": text.instruction,
                        "settings": source,
                    }
                )
        if len(documents) == before and last:
            raise SourceError(f"{name}: no row could be read; row {last[0]}: {last[1].detail}")
    return documents, dropped
