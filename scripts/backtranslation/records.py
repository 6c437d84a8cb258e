"""Parquet schemas of every stage, stable row ids, atomic writing, and the ledger of dropped rows."""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

_ORIGIN = [("id", pa.string()), ("source", pa.string()), ("row", pa.int64())]

PAIRS = pa.schema([*_ORIGIN, ("instruction", pa.string()), ("response", pa.string())])
"""Seed pairs; `row` counts from 1 in the source."""

SEGMENTS = pa.schema([*_ORIGIN, ("part", pa.int64()), ("text", pa.string()), ("true_instruction", pa.string())])
"""Unlabelled text; `part` counts the pieces cut from one source row, `true_instruction` is null where unknown."""

CORPUS = pa.schema([*SEGMENTS, ("source_number", pa.int64()), ("stratum", pa.string())])
"""Segments as they are drawn from: the place of their source in the configuration, and the value to stratify by."""

PIECES = pa.schema([*CORPUS, ("key", pa.uint64()), ("signature", pa.binary(128))])
"""Segments before deduplication: `key` is equal for equal text, `signature` alike for alike texts (see `dedup`)."""

EXAMPLES = pa.schema(
    [(name, pa.string()) for name in ("id", "origin", "system", "prompt", "completion")]
)
"""Training examples; `origin` is `seed` or `augmented`, `system` may be null."""

CANDIDATES = pa.schema(
    [
        *SEGMENTS,
        ("segment", pa.string()),
        ("instruction", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
        ("logprob", pa.float64()),
    ]
)
"""Instructions written for segments, with their text; `segment` is the segment's id, `logprob` the mean per token of the instruction."""

COLUMNS = {
    "rating": ("rating", "rating_entropy", "rating_mass"),
    "rating_generated": ("rating_generated", "rating_parsed"),
    "instruction_gain": ("instruction_gain", "opening_gain", "ending_logprob"),
    "backward_gain": ("backward_gain", "instruction_logprob"),
}
"""The columns that come with each of the configuration's `judge.signals`."""

SIGNALS = tuple(column for columns in COLUMNS.values() for column in columns)
"""What the judge says of a pair, each a column (see `judge`); NaN where it was not asked or has no value."""

_SIGNALS = [(name, pa.float64()) for name in SIGNALS]
RATED = pa.schema([*CANDIDATES, *_SIGNALS, ("combination", pa.float64())])
"""Candidates with the judge's signals, and the probability that the audit's combination gives them."""

AUDITED = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "pair", "kind", "instruction", "text")),
        ("label", pa.int64()),
        ("length", pa.float64()),
        *_SIGNALS,
        ("combination", pa.float64()),
    ]
)
"""Pairs of the audit with what is known of them: `label` 1 is good; rows of one `pair` belong together."""

MEASURED = pa.schema([(name, pa.string()) for name in ("id", "set", "instruction", "response", "other", "near")])
"""Pairs that the arms of the proof are measured on; `other` and `near` are wrong instructions (see `arms.heldout`)."""

DROPPED = pa.schema(
    [*_ORIGIN, ("stage", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("text", pa.string())]
)
"""The ledger: where a row ended, with a reason code; `text` holds what was judged, at most 300 characters."""


class RecordError(ValueError):
    """The data of a stage breaks the contract; the message is meant for the user."""


def row_id(*parts: str) -> str:
    """16 hex digits that depend on the parts alone (source and text), not on order or run."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint(value: Any) -> str:
    """Hash of any JSON-serialisable value, equal for equal content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def seed_of(*parts: Any) -> int:
    """Seed of the random numbers of one row, below 2^60, by the parts alone: not by the rows beside it."""
    return int(fingerprint(parts)[:15], 16)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, synced and renamed to it when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: str | Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(value: Any, path: str | Path) -> None:
    write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", path)


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(rows: Iterable[Row], path: str | Path) -> None:
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: str | Path) -> list[Row]:
    with open(path, encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def write_table(table: "pd.DataFrame", path: str | Path) -> None:
    """Write a table as tab-separated text, without its index."""
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False)


def cell(text: str) -> str:
    """`text` for a csv that people open: with an apostrophe in front where a spreadsheet would compute it."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else text


def uncell(text: str) -> str:
    """What `cell` was given."""
    return text.removeprefix("'")


def write(rows: list[Row], schema: pa.Schema, path: str | Path) -> None:
    """Write rows as parquet with exactly the columns of `schema`; other keys of a row are left out."""
    with atomic(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def read(path: str | Path, ids: list[str] | None = None) -> list[Row]:
    """All rows of a parquet file that a stage wrote, or those with the ids.

    Raises RecordError naming the file when it is not a whole parquet file.
    """
    try:
        return pq.read_table(path, filters=None if ids is None else [("id", "in", ids)]).to_pylist()
    except pa.ArrowInvalid as error:
        raise RecordError(f"{path}: not a whole parquet file ({error}); delete it and run again") from error


@contextmanager
def writer(path: str | Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A parquet file that is written block by block, for what need not fit into memory; whole or not there at all."""
    with atomic(path) as temporary, pq.ParquetWriter(temporary, schema) as stream:
        yield stream


def write_block(rows: list[Row], schema: pa.Schema, stream: pq.ParquetWriter) -> None:
    """Append rows, if there are any, as one block."""
    if rows:
        stream.write_table(pa.Table.from_pylist(rows, schema=schema))


def batches(path: str | Path, columns: list[str] | None = None, size: int = 5000) -> Iterator[pa.RecordBatch]:
    """The rows of a parquet file, at most `size` at a time.

    Raises RecordError naming the file when it is not a whole parquet file.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(size, columns=columns)
    except pa.ArrowInvalid as error:
        raise RecordError(f"{path}: not a whole parquet file ({error}); delete it and run again") from error


def count(path: str | Path) -> int:
    """Number of rows of a parquet file, from its last bytes alone."""
    return pq.read_metadata(path).num_rows


def first_of(rows: Iterable[Row], key: str) -> list[Row]:
    """The first of the rows with each value of `key`, in their order."""
    found: dict[Any, Row] = {}
    for row in rows:
        found.setdefault(row[key], row)
    return list(found.values())


def other_of(rows: list[Row], at: int) -> Row:
    """The row before that of `at`, in a circle, which has another instruction; the row itself where none has."""
    others = (rows[at - back] for back in range(1, len(rows)))
    return next((row for row in others if row["instruction"] != rows[at]["instruction"]), rows[at])


def blocks(rows: list[Row], size: int = 1000) -> Iterator[list[Row]]:
    """Consecutive parts of at most `size` rows, so that what is made of rows need not all be in memory."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def encodable(text: str, errors: str = "replace") -> str:
    """`text` without the halves of surrogate pairs, which no file takes."""
    return text.encode("utf-8", errors).decode()


def drop(row: Row, stage: str, reason: str, detail: str = "", text: str = "") -> Row:
    """A ledger row for `row`."""
    # Of a candidate the instruction, also where none was written.
    shown = (text or (row["instruction"] if "instruction" in row else row.get("text", "")))[:300]
    return {
        "id": row["id"],
        "source": row["source"],
        "row": row["row"],
        "stage": stage,
        "reason": reason,
        "detail": encodable(detail),
        "text": encodable(shown),
    }


def settle(stage: str, incoming: list[Row], kept: list[Row], dropped: list[Row]) -> None:
    """Assert that every incoming row ended in exactly one place.

    Raises RecordError with the counts otherwise.
    """
    before = sorted(row["id"] for row in incoming)
    after = sorted(row["id"] for row in [*kept, *dropped])
    if before != after or len(set(after)) != len(after):
        raise RecordError(
            f"{stage}: {len(incoming)} rows came in, {len(kept)} kept and {len(dropped)} dropped went out; "
            "each row must end in exactly one place"
        )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Another user's.
        pass
    return True


@contextmanager
def scratch(folder: str | Path) -> Iterator[Path]:
    """A folder of this process inside `folder`, for what is large; those that killed processes of this machine left are removed."""
    prefix = f".scratch-{socket.gethostname()}-"
    own = Path(folder) / f"{prefix}{os.getpid()}"
    for left in own.parent.glob(f"{prefix}*"):
        # Another machine's name may begin with this one's.
        if (process := left.name.removeprefix(prefix)).isdecimal() and (left == own or not _alive(int(process))):
            shutil.rmtree(left, ignore_errors=True)
    own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def code_of(paths: Iterable[str]) -> list[str]:
    """What tells the code in files from other code, for the shape of partial results."""
    return sorted(sha256_of(Path(path)) for path in paths)


class WorkFile:
    """Append-only partial results, so that a job that was stopped goes on where it was.

    One JSON record per line, with its checksum in front; a torn or damaged line is ignored. Names carry
    the fingerprint of everything that shapes the records, so a changed setting starts afresh. Each
    process appends to a file of its own and begins with what all have, so that two copies of one job at
    once are harmless. `clear` removes the files once the final output is written.
    """

    def __init__(self, folder: str | Path, shape: Any):
        self.folder, self.name = Path(folder), fingerprint(shape)
        self.done: dict[str, Any] = {}
        self._stream: BinaryIO | None = None
        self._synced = time.monotonic()
        for path in self._files():
            # Another copy of this job may have come to its end meanwhile.
            with suppress(FileNotFoundError):
                self._read(path.read_bytes())

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.name}-*.jsonl"))

    def _read(self, content: bytes) -> None:
        for line in content.split(b"\n"):
            checksum, _, body = line.partition(b" ")
            if hashlib.sha256(body).hexdigest()[:16].encode() == checksum:
                record = json.loads(body)
                self.done[record["key"]] = record["value"]

    def add(self, key: str, value: Any) -> None:
        """Keep a value, whatever happens to the process; if the machine goes down, those of the last batch may be lost."""
        if self._stream is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._stream = open(self.folder / f"{self.name}-{uuid.uuid4().hex[:12]}.jsonl", "xb")  # noqa: SIM115 - open for as long as the job appends
        body = json.dumps({"key": key, "value": value}).encode()
        self._stream.write(hashlib.sha256(body).hexdigest()[:16].encode() + b" " + body + b"\n")
        self._stream.flush()
        if time.monotonic() > self._synced + 1:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()
        self.done[key] = value

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.close()
        for path in self._files():
            path.unlink(missing_ok=True)
