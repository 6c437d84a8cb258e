"""Readers of seed pairs and corpus texts: files, folders, hub data sets, and Python's own manual.

A source is one mapping from the configuration (see `config/schema.yaml`): where the rows are
(`path`, `hub` or `python`), the `layout` of a row, and the column mapping. Seed pairs are the user's
own careful work, so damage there is an error; a corpus is expected to be dirty, so a damaged row or
file goes to the ledger.
"""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backtranslation import extraction, readers, segments
from backtranslation.logs import logger
from backtranslation.readers import Problem
from backtranslation.records import Row, drop, encodable, fingerprint, row_id, writer

# Turns follow each other without a line break: "### Human: Why?### Assistant: Because."
_GUANACO_TURN = re.compile(r"### (Human|Assistant):[ \t]*")
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class SourceError(ValueError):
    """A source that cannot be used; the message names file, row and field."""


@dataclass(frozen=True)
class Text:
    """What a row says: a response, with its instruction, licence and stratum where the source has them."""

    instruction: str | None
    response: str
    licence: str | None = None
    stratum: str | None = None


def name_of(source: Row) -> str:
    """The name a source has in messages and logs."""
    if "path" in source:
        return str(source["path"])
    if "hub" in source:
        return f"hub:{source['hub']}"
    return f"python:{source['python']}"


HUB_KEYS = ("hub", "revision", "subset", "split", "rows")
"""What tells one hub data set from another."""


def data_key(source: Row) -> str:
    """Folder name of a hub data set: readable, and different for whatever makes the rows differ."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", source["hub"]).strip("-")
    return f"{readable}-{fingerprint([source.get(key) for key in HUB_KEYS])[:8]}"


def data_path(source: Row) -> Path:
    """Where the rows of a hub data set lie once `fetch` has brought them."""
    return Path("resources", "data", data_key(source), "rows.parquet")


def files_of(source: Row) -> list[Path]:
    """The files of a source, sorted: of a path, a pattern such as `pages/**/*.html`, or everything known below a folder.

    Links to folders are not followed, so a loop of them ends. A hub data set is the file that `fetch` makes of it,
    and Python's manual has no file.

    Raises SourceError when nothing is there or the kind of file is unknown.
    """
    if "hub" in source:
        return [data_path(source)]
    if "python" in source:
        return []
    path = Path(source["path"])
    known = ", ".join(readers.SUFFIXES)
    if path.is_dir():
        if files := sorted(file for file in _below(path) if readers.kind_of(file) and file.is_file()):
            return files
        raise SourceError(f"{path}: this folder holds no file of a known kind ({known})")
    if "*" in str(path) and not path.exists():
        # What comes before the first star is where to look.
        fixed = len(list(itertools.takewhile(lambda step: "*" not in step, path.parts)))
        folder, pattern = Path(*path.parts[:fixed]), str(Path(*path.parts[fixed:]))
        if files := sorted(file for file in folder.glob(pattern) if file.is_file()):
            unknown = next((file for file in files if not readers.kind_of(file)), None)
            if unknown:
                raise SourceError(f"{path}: {unknown} is of an unknown kind; expected one of {known}")
            return files
        raise SourceError(f"{path}: no file matches this pattern")
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder")
    if not readers.kind_of(path):
        raise SourceError(f"{path}: unknown kind of file; expected one of {known}, or a folder of such files")
    return [path]


def _below(folder: Path) -> Iterator[Path]:
    return (Path(inner, name) for inner, _, names in os.walk(folder) for name in names)


def unknown_kinds(source: Row) -> Counter[str]:
    """How many files that nothing here reads lie below the folder of a source, by suffix; none where it is no folder."""
    if "path" not in source:
        return Counter()
    return Counter(file.suffix for file in _below(Path(source["path"])) if not readers.kind_of(file) and file.is_file())


Part = list[tuple[int, Row, list[str]]]
"""Sources, by their place in the configuration and their settings, each with some of its files."""


def parts(sources: list[Row], part_mb: float) -> list[Part]:
    """The corpus in parts of at most about `part_mb` megabytes, each a job of its own.

    Parts are in the order of the corpus; a file is never divided.
    """
    found: list[Part] = []
    room = 0.0
    for place, source in enumerate(sources):
        files: list[str | None] = [str(file) for file in files_of(source)] if "python" not in source else [None]
        for file in files:
            # A hub data set may not be there yet, and is a part of its own before and after.
            size = part_mb if "hub" in source else Path(file).stat().st_size / 1e6 if file else 0.0
            if not found or size > room:
                found.append([])
                room = part_mb
            room -= size
            if not found[-1] or found[-1][-1][0] != place:
                found[-1].append((place, source, []))
            if file:
                found[-1][-1][2].append(file)
    return found


def _raw_rows(source: Row, files: Iterable[Path | str], columns: list[str]) -> readers.Rows:
    """(name, row number from 1, what stands there) of a source, or of some of its files."""
    if "python" in source:
        manual = segments.python_topics() if source["python"] == "topics" else segments.python_docstrings()
        for number, (_, text) in enumerate(manual, start=1):
            yield name_of(source), number, {"text": text}
    for file in files:
        for name, number, row in readers.rows(Path(file), columns):
            yield (name_of(source) if "hub" in source else name), number, row


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
    if _HALF_PAIR.search(value):
        return Problem("invalid_utf8", f"field {column!r}: holds half a surrogate pair")
    return value


def _extra(record: Any, column: str | None) -> str | None:
    """What stands in a column that may be of any type, or lacking."""
    try:
        value = pick(record, column) if column else None
    except KeyError:
        return None
    return None if value is None else encodable(str(value))


def _from_columns(record: Any, columns: dict[str, str]) -> Text | Problem:
    found: dict[str, str] = {}
    for role, column in columns.items():
        if role in ("licence", "stratum"):
            continue
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
    if any(map(_HALF_PAIR.search, turns)):
        return Problem("invalid_utf8", f"field {column!r}: holds half a surrogate pair")
    return _from_turns(turns)


LAYOUTS: dict[str, Callable[[Any, dict[str, str]], Text | Problem]] = {
    "columns": _from_columns,
    "guanaco": _from_guanaco,
    "lima": _from_lima,
}


def _unmarked(text: Text) -> Text | Problem:
    """A row whose text is HTML, as Markdown."""
    try:
        response = extraction.markdown(text.response)
    except extraction.PageError as error:
        return Problem(*str(error).split(": ", 1))
    return replace(text, response=response) if response else Problem("no_text", "nothing but navigation and boilerplate")


def texts(source: Row, roles: dict[str, str], files: Iterable[Path | str] | None = None) -> Iterator[tuple[str, int, Text | Problem]]:
    """(name, row number, text or problem) of a source, or of some of its files; `roles` are the default columns.

    Raises SourceError when a whole source holds no row at all, or lacks a mapped column altogether.
    """
    columns = columns_of(source, roles)
    empty, missing = True, None
    for name, number, record in _raw_rows(source, files_of(source) if files is None else files, list(columns.values())):
        text = record if isinstance(record, Problem) else LAYOUTS[source["layout"]](record, columns)
        if isinstance(text, Text):
            text = replace(text, licence=_extra(record, columns.get("licence")), stratum=_extra(record, columns.get("stratum")))
            if source.get("format") == "html":
                text = _unmarked(text)
        if isinstance(text, Problem) and text.reason == "missing_field":
            missing = missing or f"{name}: row {number}: {text.detail}"
        else:
            missing = missing if empty else None
            empty = False
        yield name, number, text
    if files is None and empty:
        raise SourceError(missing or f"{name_of(source)}: holds no rows")


def columns_of(source: Row, roles: dict[str, str]) -> dict[str, str]:
    """The columns that a source is read by: those mapped, and the layout's own."""
    mapped = source.get("columns") or {}
    if source["layout"] == "columns":
        return mapped if {"text", "response"} & set(mapped) else {**roles, **mapped}
    return {"guanaco": {"text": "text"}, "lima": {"conversations": "conversations"}}[source["layout"]] | mapped


def check(source: Row, roles: dict[str, str]) -> None:
    """Look at a source before any job starts: files exist, have names that are text, and the first row has the mapped columns.

    Raises SourceError. Hub data sets are looked at when they are fetched.
    """
    if "path" not in source:
        return
    if "response" in roles and "instruction" not in columns_of(source, roles) and source["layout"] == "columns":
        raise SourceError(f"{name_of(source)}: a seed source needs the columns instruction and response")
    files = files_of(source)
    if unnamed := next((file for file in files if _HALF_PAIR.search(str(file))), None):
        shown = encodable(str(unnamed), "backslashreplace")
        raise SourceError(f"{shown}: the name of this file is no UTF-8, which Snakemake does not take; rename it, or pack the files into an archive")
    columns = columns_of(source, roles)
    for name, number, record in itertools.islice(_raw_rows(source, files[:1], list(columns.values())), 1):
        text = record if isinstance(record, Problem) else LAYOUTS[source["layout"]](record, columns)
        if isinstance(text, Problem) and (text.reason == "missing_field" or (text.reason == "unreadable" and len(files) == 1)):
            raise SourceError(f"{name}: row {number}: {text.detail}")
        for role in {"licence", "stratum"} & set(columns):
            if isinstance(text, Text) and _extra(record, columns[role]) is None:
                raise SourceError(f"{name}: row {number}: no field {columns[role]!r}; fields present: {', '.join(map(str, record))}")


def _language_problem(source: Row, text: str) -> Problem | None:
    if source["language"] and (found := segments.language_of(text)) != source["language"]:
        return Problem("language", f"{found}, not {source['language']}")
    return None


SEED_ROLES = {"instruction": "instruction", "response": "response"}
CORPUS_ROLES = {"text": "text"}
PROMPT_ROLES = {"text": "instruction"}
# What a careful seed set may still hold on purpose; every other problem is damage.
_SEED_DROPS = {"multi_turn", "no_answer", "empty_field", "language"}


def read_seed(sources: list[Row]) -> tuple[list[Row], list[Row]]:
    """All usable seed pairs and the dropped rows (`multi_turn`, `no_answer`, `empty_field`, `language`, `duplicate`).

    Raises SourceError naming file, row and field for a row that is damaged, or a file that several sources name.
    """
    kept: list[Row] = []
    dropped: list[Row] = []
    seen: dict[tuple[str, str], Row] = {}
    read: dict[str, int] = {}
    for place, source in enumerate(sources):
        for name, number, text in texts(source, SEED_ROLES):
            # Splits of one data set of the hub have one name.
            row: Row = {"id": row_id("seed", data_key(source) if "hub" in source else name, str(number)), "source": name, "row": number}
            if read.setdefault(row["id"], place) != place:
                raise SourceError(f"seed.sources: {name} is read twice; name it in one source")
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


def read_corpus(source: Row, files: Iterable[Path | str] | None = None) -> Iterator[tuple[Row, Problem | None]]:
    """The rows of one source of the corpus, or of some of its files, each with the problem that keeps it from use.

    A row carries `source`, `row` and, where it can be used, `text`, `true_instruction`, `licence` and `stratum`.
    """
    for name, number, text in texts(source, CORPUS_ROLES, files):
        row: Row = {"source": name, "row": number}
        problem = text if isinstance(text, Problem) else None
        if isinstance(text, Text):
            row |= {"true_instruction": text.instruction, "licence": text.licence, "stratum": text.stratum}
            row["text"] = extraction.clean(text.response)
            problem = None if row["text"] else Problem("no_text", "nothing but control characters")
        if problem:
            row["id"] = row_id("corpus", name, str(number))
        yield row, problem


def fetch(source: Row, path: Path) -> int:
    """Write a hub data set to a parquet file, streamed, so that everything after needs no network; returns the number of rows.

    Raises SourceError with what to do when it cannot be had.
    """
    import datasets
    import pyarrow as pa

    name, page = name_of(source), f"https://huggingface.co/datasets/{source['hub']}"
    rows = 0
    try:
        stream = datasets.load_dataset(
            source["hub"], source["subset"], revision=source["revision"], split=source["split"], streaming=True
        )
        if source.get("rows"):
            stream = stream.take(source["rows"])
        tables = stream.with_format("arrow").iter(batch_size=1000)
        first = next(iter(tables), None)
        if first is None:
            raise SourceError(f"{name}: holds no rows")
        with writer(path, first.schema) as out:
            for table in itertools.chain([first], tables):
                out.write_table(pa.table(table).cast(first.schema))
                rows += table.num_rows
                logger.info("%s: %d rows", name, rows)
    except SourceError:
        raise
    except Exception as error:  # the hub's client raises many kinds; all mean the same to the user
        said = (str(error).splitlines() or [""])[0]
        if "gated" in str(error).lower() or "401" in said or "403" in said:
            raise SourceError(f"{name}: asks for a licence; accept it at {page} and set the variable HF_TOKEN") from error
        raise SourceError(f"{name}: could not be loaded ({type(error).__name__}: {said}); its page is {page}") from error
    return rows
