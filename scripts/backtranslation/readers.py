"""The rows of one file, of whatever kind, in bounded memory whatever the file holds.

`rows` yields (name, number, row): the file, with the member for an archive; the row's number from 1; and what stands
there, or the `Problem` with it. Nothing is unpacked to disk, and no row is ever longer than MAX_ROW_BYTES.
"""

import csv
import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO, Literal, cast

from backtranslation import extraction
from backtranslation.records import encodable

MAX_ROW_BYTES = 10_000_000
"""A longer row is damage, not text; it is never loaded whole."""

MAX_JSON_BYTES = 100_000_000
"""A longer .json list is refused, since it can only be read whole; jsonl has no such limit."""

# Text shrinks to a tenth, at best to a fiftieth of its size.
_BOMB_RATIO, _BOMB_BYTES = 200, 100_000_000

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
PAGE_SUFFIXES = (*TEXT_SUFFIXES, *HTML_SUFFIXES)
ARCHIVE_SUFFIXES = (".zip", ".tar")
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
WARC_SUFFIXES = (".warc", ".wet")
PACKED = (".gz", ".zst")
SUFFIXES = (*TABLE_SUFFIXES, *WARC_SUFFIXES, *ARCHIVE_SUFFIXES, *PAGE_SUFFIXES)


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used: a reason code and a sentence."""

    reason: str
    detail: str


_TOO_LONG = Problem("row_too_long", f"longer than {MAX_ROW_BYTES} bytes")


class _Damaged(Exception):
    """A file that cannot be read any further."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.problem = Problem(reason, detail)


def _unreadable(error: Exception) -> Problem:
    said = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
    return Problem("unreadable", said)


Rows = Iterator[tuple[str, int, Any]]


def kind_of(path: str | PurePath) -> str:
    """The suffix that says what a file holds, without that of its packing: `.jsonl` of `a.jsonl.gz`."""
    name = str(path).lower().replace(".tgz", ".tar.gz")
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


class _Limited(io.RawIOBase):
    """A stream that fails when it has given far more bytes than a file of `size` bytes can hold in text."""

    def __init__(self, stream: BinaryIO, size: int):
        self.stream, self.left = stream, max(_BOMB_BYTES, _BOMB_RATIO * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.stream.read(len(buffer))
        except Exception as error:  # each kind of packing has errors of its own
            raise _Damaged("unreadable", f"{type(error).__name__}: {error}") from error
        self.left -= len(data)
        if self.left < 0:
            raise _Damaged("compression_bomb", f"holds more than {_BOMB_RATIO} times its size")
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file; a packed file that is cut off is an error, not an end."""
    import pyarrow as pa

    packing = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"}.get(path.suffix.lower())
    if packing:
        with pa.input_stream(str(path), compression=packing) as stream:
            yield io.BufferedReader(_Limited(stream, path.stat().st_size), 1 << 16)
    else:
        with open(path, "rb") as stream:
            yield stream


def _lines(stream: BinaryIO) -> Iterator[bytes | Problem]:
    while line := stream.readline(MAX_ROW_BYTES + 1):
        if len(line) <= MAX_ROW_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(1 << 20)
        yield _TOO_LONG


def _jsonl(path: Path, columns: list[str]) -> Rows:
    with _opened(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if isinstance(line, Problem):
                yield str(path), number, line
            elif line.strip():
                yield str(path), number, _parse_json(line)


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return Problem("invalid_utf8", f"invalid UTF-8 at byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        return Problem("invalid_json", f"not valid JSON: {error}")


def _json(path: Path, columns: list[str]) -> Rows:
    with _opened(path) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise _Damaged("row_too_long", f"longer than {MAX_JSON_BYTES} bytes; write it as jsonl")
    found = _parse_json(data)
    if isinstance(found, Problem):
        raise _Damaged(found.reason, found.detail)
    if not isinstance(found, list):
        raise _Damaged("wrong_type", f"expected a JSON list of objects, found {type(found).__name__}")
    for number, row in enumerate(found, start=1):
        long = len(data) > MAX_ROW_BYTES and len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) > MAX_ROW_BYTES
        yield str(path), number, _TOO_LONG if long else row


def _csv(path: Path, columns: list[str]) -> Rows:
    csv.field_size_limit(MAX_ROW_BYTES)
    with _opened(path) as stream:
        # Undecodable bytes survive as lone surrogates, so that one bad row does not end the file; a line that is
        # too long stands for a field that is too long.
        lines = (
            "\0" * (MAX_ROW_BYTES + 1) + "\n" if isinstance(line, Problem) else line.decode("utf-8-sig", "surrogateescape")
            for line in _lines(stream)
        )
        # Strict, since a stray quotation mark would take the rows that follow for a part of its own.
        reader = csv.DictReader(lines, strict=True)
        try:
            reader.fieldnames  # noqa: B018 - reads the header
        except csv.Error as error:
            raise _Damaged("invalid_csv", f"not valid CSV: {error}") from error
        number = 0
        while True:
            number += 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield str(path), number, Problem("invalid_csv", f"not valid CSV: {error}")
                continue
            if None in row or None in row.values():
                yield str(path), number, Problem("invalid_csv", f"{len(reader.fieldnames or [])} columns expected in this row")
            elif any(re.search("[\udc80-\udcff]", value) for value in row.values()):
                yield str(path), number, Problem("invalid_utf8", "invalid UTF-8")
            else:
                yield str(path), number, row


def _parquet(path: Path, columns: list[str]) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            # Only what is asked for; where a column is missing, all, so that the message can name them.
            present = set(file.schema_arrow.names)
            wanted = [column if column in present else column.split(".")[0] for column in columns]
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(256, [group], columns=wanted if set(wanted) <= present else None):
                    for row in _rows_of(batch):
                        number += 1
                        yield str(path), number, row
    except pa.ArrowException as error:
        raise _Damaged("unreadable", f"not readable as parquet ({error})") from error


def _rows_of(batch: Any) -> Iterator[Any]:
    """The rows of a record batch; one by one where it is large or one of them is damaged."""
    import pyarrow as pa

    if batch.nbytes <= MAX_ROW_BYTES:
        with suppress(UnicodeDecodeError):
            yield from batch.to_pylist()
            return
    for at in range(len(batch)):
        columns = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in batch.slice(at, 1).columns]
        if sum(column.nbytes for column in columns) > MAX_ROW_BYTES:
            yield _TOO_LONG
            continue
        row, name = {}, ""
        try:
            for name, column in zip(batch.schema.names, columns, strict=True):
                row[name] = column[0].as_py()
            yield row
        except UnicodeDecodeError as error:
            yield Problem("invalid_utf8", f"field {name!r}: invalid UTF-8 at byte {error.start + 1}")


def _page(data: bytes, html: bool) -> Any:
    """A row whose text is that of a page."""
    if len(data) > MAX_ROW_BYTES:
        return _TOO_LONG
    try:
        text = extraction.decode(data)
        text = extraction.markdown(text) if html else text
        return {"text": text} if text.strip() else Problem("no_text", "empty, or nothing but navigation and boilerplate")
    except extraction.PageError as error:
        reason, _, detail = str(error).partition(": ")
        return Problem(reason, detail)


def _text_file(path: Path, columns: list[str]) -> Rows:
    with _opened(path) as stream:
        yield str(path), 1, _page(stream.read(MAX_ROW_BYTES + 1), kind_of(path) in HTML_SUFFIXES)


def _some(reader: Any, size: int) -> bytes:
    """What a reader gives, or a little more than `size` bytes of it."""
    data = bytearray()
    while len(data) <= size and (block := reader.read(1 << 16)):
        data += block
    return bytes(data)


def _warc(path: Path, columns: list[str]) -> Rows:
    """HTML answers of a WARC file, and the plain text of a WET file; unpacked by fastwarc, record by record.

    Each answer is decoded apart from the file, so that the records after a damaged one can be read.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

    def answer(record: WarcRecord, content: bytes, decode: Literal["none", "all"]) -> WarcRecord:
        found = WarcRecord()
        found.is_http = record.is_http
        found.set_bytes_content(content)
        found.parse_http(auto_decode=decode)
        return found

    number = 0
    with open(path, "rb") as stream:
        wanted = WarcRecordType.response | WarcRecordType.conversion
        records = iter(ArchiveIterator(stream, record_types=wanted, parse_http=False))
        while True:
            try:
                record = next(records)
                # Packed or in chunks a page may be longer than it is.
                content = _some(record.reader, 2 * MAX_ROW_BYTES)
            except StopIteration:
                return
            except Exception as error:
                raise _Damaged("unreadable", f"record {number + 1}: {type(error).__name__}: {error}") from error
            if len(content) < min(record.content_length, 2 * MAX_ROW_BYTES) or "Content-Length" not in record.headers:
                raise _Damaged("unreadable", f"record {number + 1}: the file is cut off in it")
            page: bytes | Problem
            try:
                kind = (answer(record, content, "none").http_content_type or "") if record.record_type == WarcRecordType.response else "text/plain"
                # Pictures and scripts are no rows.
                if not kind.startswith(("text/html", "application/xhtml", "text/plain")):
                    continue
                page = _some(answer(record, content, "all").reader, MAX_ROW_BYTES)
            except OSError as error:
                page = _unreadable(error)
            number += 1
            yield str(path), number, page if isinstance(page, Problem) else _page(page, "html" in kind)


def _member(path: Path, name: str, seen: Counter[int], data: Callable[[], bytes | Problem]) -> Rows:
    """The page in an archive, if it is one; its name is only shown, never used as a path.

    An archive may hold several pages of one name: `seen` counts them, and they are rows 1, 2, ... of it.
    """
    shown = f"{path}!{encodable(name)}"
    inside = PurePosixPath(name.replace("\\", "/"))
    unsafe = inside.is_absolute() or ".." in inside.parts or re.match("[A-Za-z]:", name)
    if not unsafe and kind_of(name) not in PAGE_SUFFIXES:
        return
    # Hashes, since an archive may hold millions of pages.
    seen[hash(shown)] += 1
    page = Problem("unsafe_path", "the archive names a path outside of itself") if unsafe else data()
    yield shown, seen[hash(shown)], page if isinstance(page, Problem) else _page(page, kind_of(name) in HTML_SUFFIXES)


def _zip(path: Path, columns: list[str]) -> Rows:
    left, seen = max(_BOMB_BYTES, _BOMB_RATIO * path.stat().st_size), Counter[int]()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith("/"):
                continue
            left -= min(info.file_size, MAX_ROW_BYTES)
            if left < 0:
                raise _Damaged("compression_bomb", f"holds more than {_BOMB_RATIO} times its size")
            yield from _member(path, info.filename, seen, partial(_inflated, archive, info))


def _inflated(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes | Problem:
    """The bytes of a member, each of which is packed by itself: the others can be read where one cannot."""
    try:
        with archive.open(info) as stream:
            return stream.read(MAX_ROW_BYTES + 1)
    except Exception as error:  # each kind of packing has errors of its own
        return _unreadable(error)


def _tar(path: Path, columns: list[str]) -> Rows:
    seen = Counter[int]()
    with _opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        for info in archive:
            # What was passed is of no more use; tarfile would keep it.
            archive.members = []  # type: ignore[attr-defined]
            if info.isfile():
                member = cast(BinaryIO, archive.extractfile(info))
                yield from _member(path, info.name, seen, partial(member.read, MAX_ROW_BYTES + 1))


_READERS: dict[str, Callable[[Path, list[str]], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".zip": _zip,
    ".tar": _tar,
    **dict.fromkeys(WARC_SUFFIXES, _warc),
    **dict.fromkeys(PAGE_SUFFIXES, _text_file),
}


def rows(path: Path, columns: list[str]) -> Rows:
    """(name, row number, row or Problem) of one file; what stops the reading is the last row, a Problem.

    `columns` are the columns that will be used, so that others need not be read.
    """
    number, found = 0, _READERS[kind_of(path)](path, columns)
    while True:
        try:
            name, number, row = next(found)
        except StopIteration:
            return
        except MemoryError:
            raise  # no fault of the file
        except Exception as error:  # the readers of damaged files raise errors of any kind
            problem = error.problem if isinstance(error, _Damaged) else _unreadable(error)
            yield encodable(str(path), "backslashreplace"), number + 1, problem
            return
        # Names of files may hold bytes that are no text.
        yield encodable(name, "backslashreplace"), number, row
