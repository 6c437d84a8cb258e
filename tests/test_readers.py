"""Files of every kind, whole, packed, damaged and malicious: rows, or a problem with its reason; never a crash or a hang."""

import gzip
import io
import json
import random
import tarfile
import tracemalloc
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastwarc.warc import WarcRecord, WarcRecordType
from hypothesis import given, settings
from hypothesis import strategies as st

from backtranslation import extraction, readers
from backtranslation.sources import SourceError, files_of, parts, read_corpus, read_seed

PAGE = "<html><body><nav><a href=/>Home</a></nav><main><h1>Title</h1><p>A paragraph of the page, with its text.</p></main></body></html>"


def texts(path) -> list:
    return [row["text"] if isinstance(row, dict) else row.reason for _, _, row in readers.rows(path, ["text"])]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.json.zst"])
def test_packed_tables(tmp_path, name):
    rows = [{"text": "one"}, {"text": "zwei µ"}]
    plain = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
        ".csv": "text\none\nzwei µ\n",
    }[readers.kind_of(name)].encode()
    packed = gzip.compress(plain) if name.endswith(".gz") else bytes(pa.Codec("zstd").compress(plain)) if name.endswith(".zst") else plain
    (tmp_path / name).write_bytes(packed)
    assert texts(tmp_path / name) == ["one", "zwei µ"]
    # Cut off in the middle: what was read stays, the rest is one problem.
    if packed is not plain:
        (tmp_path / name).write_bytes(packed[: len(packed) - 6])
        assert texts(tmp_path / name)[-1] in ("unreadable", "invalid_json")


def test_pages_of_a_warc_and_a_wet(tmp_path):
    for name, kind, content in (("a.warc.gz", WarcRecordType.response, PAGE), ("a.warc.wet.gz", WarcRecordType.conversion, "Plain text.")):
        record = WarcRecord()
        record.init_headers(record_type=kind)
        if kind == WarcRecordType.response:
            record.headers["Content-Type"] = "application/http; msgtype=response"
            record.is_http = True
            record.set_bytes_content(f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())
        else:
            record.headers["Content-Type"] = "text/plain"
            record.set_bytes_content(content.encode())
        stream = io.BytesIO()
        record.write(stream)
        (tmp_path / name).write_bytes(gzip.compress(stream.getvalue()) + gzip.compress(stream.getvalue()))
        found = texts(tmp_path / name)
        assert found == (["# Title\n\nA paragraph of the page, with its text."] * 2 if "wet" not in name else ["Plain text."] * 2)


def answer(body: bytes, **headers: str) -> bytes:
    """A record of a WARC file."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in {"Content_Type": "text/html", **headers}.items()]
    content = "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode() + body
    return f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n"


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_a_damaged_record_of_a_warc_costs_that_record(tmp_path, packed):
    pages = [f"<html><body><p>What page {number} says is this.</p></body></html>".encode() for number in range(9)]
    body = gzip.compress(pages[3])
    records = [
        answer(pages[0]),
        answer(b"no gzip", Content_Encoding="gzip"),
        answer(b"no gzip", Content_Encoding="gzip", Content_Type="image/png"),
        answer(b"no length\r\n" + pages[2], Transfer_Encoding="chunked"),
        answer(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), Transfer_Encoding="chunked", Content_Encoding="gzip"),
        answer(pages[4]),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(map(packed, records)))
    expected = ["What page 0 says is this.", "unreadable", "unreadable", "What page 3 says is this.", "What page 4 says is this."]
    assert texts(tmp_path / "a.warc") == expected
    assert [number for _, number, _ in readers.rows(tmp_path / "a.warc", ["text"])] == [1, 2, 3, 4, 5]


def test_a_warc_that_is_cut_off_says_so_and_keeps_no_torn_page(tmp_path):
    records = [answer(f"<p>What page {number} says is this, and a little more.</p>".encode()) for number in range(3)]
    whole = b"".join(records)
    for left in (40, 60, 130, 150, len(records[2]) - 10):
        (tmp_path / "a.warc").write_bytes(whole[: 2 * len(records[0]) + left])
        *pages, (_, number, problem) = readers.rows(tmp_path / "a.warc", ["text"])
        assert [row["text"][:11] for _, _, row in pages] == ["What page 0", "What page 1"], left
        assert (number, problem.reason) == (3, "unreadable") and problem.detail.startswith("record 3: "), left


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_read_in_place_and_never_leave_it(tmp_path, kind):
    path = tmp_path / f"pages.{kind}"
    members = {"deep/a.html": PAGE, "../../evil.txt": "x", "/etc/evil.txt": "x", "b.txt": "Text.", "c.png": "x"}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in members.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
            for name, text in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
            link = tarfile.TarInfo("link.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert texts(path) == ["# Title\n\nA paragraph of the page, with its text.", "unsafe_path", "unsafe_path", "Text."]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_pages_of_one_name_are_rows_of_it(tmp_path, kind):
    path = tmp_path / f"pages.{kind}"
    names = ["a.txt", "b.txt", "a.txt", "a.png", "a.txt"]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            for name in names:
                archive.writestr(name, "Text.")
    else:
        with tarfile.open(path, "w") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 5
                archive.addfile(info, io.BytesIO(b"Text."))
    found = [(name, number) for name, number, _ in readers.rows(path, ["text"])]
    assert found == [(f"{path}!a.txt", 1), (f"{path}!b.txt", 1), (f"{path}!a.txt", 2), (f"{path}!a.txt", 3)]
    documents = [row for row, _ in read_corpus({"path": str(path), "layout": "columns"})]
    assert len(documents) == 4


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_page_of_a_zip_costs_that_page(tmp_path, packing):
    path = tmp_path / "pages.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name in "abc":
            archive.writestr(f"{name}.txt", f"Text of {name}. " + random.Random(name).randbytes(500).hex())
        at = archive.getinfo("b.txt").header_offset
    data = bytearray(path.read_bytes())
    data[at + 60 : at + 80] = b"\xff" * 20
    path.write_bytes(data)
    found = list(readers.rows(path, ["text"]))
    assert [name for name, _, _ in found] == [f"{path}!{name}.txt" for name in "abc"]
    assert [row.reason if isinstance(row, readers.Problem) else row["text"][:10] for _, _, row in found] == ["Text of a.", "unreadable", "Text of c."]


def test_an_archive_damaged_anywhere_is_rows_and_problems(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("é.txt", "Text.")
    whole, details = (tmp_path / "a.zip").read_bytes(), set()
    for at in range(len(whole)):
        (tmp_path / "a.zip").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        details |= {row.detail.split(":")[0] for _, _, row in readers.rows(tmp_path / "a.zip", ["text"]) if isinstance(row, readers.Problem)}
    assert {"BadZipFile", "UnicodeDecodeError"} <= details
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), "x")
        archive.writestr("a.txt", "Text.")
    assert texts(tmp_path / "b.zip") == ["Text."]
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"Text."))
        info = tarfile.TarInfo("b.txt")
        info.pax_headers = {"GNU.sparse.size": "no number"}
        archive.addfile(info, io.BytesIO())
    assert texts(tmp_path / "c.tar") == ["Text.", "unreadable"]
    # Of seed pairs the file is named.
    with pytest.raises(SourceError, match=r"c\.tar: row 2: ValueError: "):
        read_seed([{"path": str(tmp_path / "c.tar"), "layout": "columns", "columns": {"instruction": "text", "response": "text"}, "language": None}])


def bomb(path, name: str) -> None:
    """600 MB of one letter."""
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(60):
                archive.writestr(f"{number}.txt", "x" * 10_000_000)
        return
    with pa.output_stream(str(path), compression="gzip" if name.endswith("gz") else "zstd") as stream:
        for _ in range(60):
            stream.write(b"x" * 10_000_000)


@pytest.mark.parametrize("name", ["a.zip", "a.jsonl.gz", "a.csv.gz", "a.txt.zst", "a.json.gz"])
def test_bombs_end_in_bounded_memory(tmp_path, name):
    bomb(tmp_path / name, name)
    tracemalloc.start()
    found = texts(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[-1] in ("compression_bomb", "row_too_long") and peak < 400_000_000


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.html"])
def test_one_endless_line_is_never_loaded_whole(tmp_path, name):
    with open(tmp_path / name, "wb") as stream:
        # Holes take no place on the disk and read as NUL bytes.
        stream.truncate(1_000_000_000)
    tracemalloc.start()
    found = texts(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found in (["row_too_long"], [], ["invalid_csv"]) and peak < 100_000_000


def test_files_that_cannot_be_read_are_problems_with_their_path(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no parquet")
    (tmp_path / "b.zip").write_bytes(b"PK no zip")
    (tmp_path / "c.warc.gz").write_bytes(gzip.compress(b"WARC/1.0\r\nbroken"))
    for path in files_of({"path": str(tmp_path)}):
        found = list(readers.rows(path, ["text"]))
        assert len(found) <= 1 and all(name == str(path) and row.reason == "unreadable" for name, _, row in found), path
    ((name, number, problem),) = readers.rows(tmp_path / "vanished.txt", ["text"])
    assert (name, number, problem.reason, problem.detail) == (str(tmp_path / "vanished.txt"), 1, "unreadable", "No such file or directory")


def test_parquet_damaged_in_the_middle_keeps_the_rows_before(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"row {n} " + "x" * 50 for n in range(4000)]})
    pq.write_table(table, path, row_group_size=1000, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    # The lengths of the strings of the third row group.
    at = data.find(b"row 2000 ") - 24
    data[at : at + 4] = b"\xff" * 4
    data[at + 20 : at + 24] = b"\xff" * 4
    path.write_bytes(data)
    found = texts(path)
    assert found[:2000] == table.column("text").to_pylist()[:2000] and found[-1] == "unreadable"


def test_one_bad_row_of_a_table_costs_that_row(tmp_path):
    said = [b"Text %d." % number for number in range(1000)]
    said[500], said[700] = b"bad \xff row", b"x" * (readers.MAX_ROW_BYTES + 1)
    raw = pa.array(said, pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 1000, raw.buffers()), "nested": [[{"n": n}] for n in range(1000)], "kind": pa.array(["a", "b"] * 500).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    found = list(readers.rows(tmp_path / "a.parquet", ["text", "nested.0.n", "kind"]))
    bad = {number: (row.reason, row.detail) for _, number, row in found if isinstance(row, readers.Problem)}
    assert bad == {501: ("invalid_utf8", "field 'text': invalid UTF-8 at byte 5"), 701: ("row_too_long", "longer than 10000000 bytes")}
    good = [n for n in range(1000) if n not in (500, 700)]
    assert [row for _, number, row in found if number not in bad] == [{"text": f"Text {n}.", "nested": [{"n": n}], "kind": "ab"[n % 2]} for n in good]
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, {"text": "x" * readers.MAX_ROW_BYTES}, {"text": "\ud800"}]))
    assert texts(tmp_path / "a.json") == ["one", "row_too_long", "\ud800"]


def test_links_in_a_loop_and_to_nowhere(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
    (tmp_path / "in" / "a.txt").write_text("Text.")
    assert [path.name for path in files_of({"path": str(tmp_path)})] == ["a.txt"]
    assert [path.name for path in files_of({"path": str(tmp_path / "**" / "*.txt")})] == ["a.txt"]


@pytest.mark.parametrize("tag", ["div", "b", "ul><li", "table><tr><td", "blockquote"])
def test_html_nested_a_hundred_thousand_deep(tmp_path, tag):
    (tmp_path / "a.html").write_text("<html><body>" + f"<{tag}>" * 100_000 + "text")
    assert texts(tmp_path / "a.html") == ["too_deep"]


def test_end_tags_of_what_is_not_open_end_nothing():
    assert extraction.markdown("<body><p>A text.</p>" + "<div><b>x</div>" * 1000).startswith("A text.")
    with pytest.raises(extraction.PageError, match="too_deep: elements nested 1000 deep"):
        extraction.markdown("<div></x>" * 1000)


@pytest.mark.parametrize("tag", ["<" + "a-" * 1_000_000, "<ul><li>" + "x y " * 500_000, "<ul><a " + "href " * 400_000 + "</ul>", "<ul" + " " * 2_000_000])
def test_two_megabytes_that_are_never_closed(tag):
    """With expressions that give back what they took these would take hours, or a gigabyte."""
    tracemalloc.start()
    assert extraction.markdown(f"<body><p>A text of the page.</p>{tag}").startswith("A text of the page.")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000_000


def test_html_loses_menus_and_scripts_and_keeps_structure(tmp_path):
    page = """<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>T</title><script>var x = 1;</script></head><body>
    <ul class="docnav"><li><a href="p.html">Prev</a></li></ul><div class="toc"><a href="#a">1. First</a></div>
    <div><h2><a id="first"/>1. First &amp; last</h2><div>One paragraph,<br/>in two lines.</div><div>Another.</div>
    <ul><li><a href="x">Download the book</a></li><li><a href="y">All chapters of it</a></li></ul><pre># a comment &lt;here&gt;

    code</pre><p>Things:</p><ul><li>The first of them is here.</li><li><p>The second has more.</p><ul><li>It lies deeper than the others.</li></ul></li></ul>
    <table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table><p>The end of it.</p></div></body></html>"""
    assert extraction.markdown(page) == (
        "## 1. First & last\n\nOne paragraph,\nin two lines.\n\nAnother.\n\n```\n# a comment <here>\n\n    code\n```\n\n"
        "Things:\n\n- The first of them is here.\n- The second has more.\n  - It lies deeper than the others.\n| a | b |\n| c | d |\n\nThe end of it."
    )


def test_a_break_after_a_table_joins_it_to_nothing():
    table = "<table><tr><td>a</td><td>b</td></tr></table><br class='table-break'/>"
    page = f"<body><p>What the table says.</p>{table}<h2>After it</h2><p>Some text.</p>{table}<div><p>Note</p></div></body>"
    assert extraction.markdown(page) == "What the table says.\n\n| a | b |\n\n## After it\n\nSome text.\n\n| a | b |\n\nNote"
    assert extraction.markdown(f"<body><p>What the table says.</p>{table}<pre>code</pre></body>") == "What the table says.\n\n| a | b |\n\n```\ncode\n```"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_found(encoding):
    text = "Größe und Höhe: Die Prüfung war für alle schön. " * 5
    assert extraction.clean(extraction.decode(text.encode(encoding))) == text.strip()


def test_marks_of_writing_direction_stay_and_control_characters_go():
    assert extraction.clean("a\0b\r\nשלום\u200f\x1b[0m") == "ab\nשלום\u200f[0m"


@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.csv", "a.json", "a.parquet", "a.zip", "a.tar", "a.warc", "a.html", "a.txt", "a.jsonl.gz", "a.jsonl.zst"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_rows_or_problems(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(data)
    for _, number, row in readers.rows(path, ["text"]):
        assert number >= 1 and (not isinstance(row, readers.Problem) or row.reason)


MARKUP = st.lists(st.sampled_from(["<p>", "</p>", "<div", ">", "<h2>", "</h1>", "<pre>", "</pre>", "<ul><li>", "</ul>", "<a href='", "&lt;", "&#0;", "\ud800", "<table><td>", "word ", "<!--", "-->", "<script>", "\u202e", "<br/>", "```\n", "# x\n"]), max_size=60)


@given(MARKUP.map("".join))
@settings(max_examples=300, deadline=None)
def test_any_markup_gives_text(page):
    text = extraction.markdown(page)
    text.encode()
    assert "<script" not in text


def test_parts_keep_the_order_and_divide_no_file(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.txt").write_text("x" * 1000)
    given_sources = [{"path": str(tmp_path)}, {"python": "topics"}, {"hub": "a/b", "revision": "c", "subset": None, "split": "train"}]
    for part_mb in (0.0001, 0.0025, 1):
        found = parts(given_sources, part_mb)
        assert [file for part in found for _, _, files in part for file in files if file.endswith(".txt")] == [str(tmp_path / f"{n}.txt") for n in "abcdef"]
        assert [place for part in found for place, _, _ in part if place] == [1, 2]
    assert [len(parts(given_sources, part_mb)) for part_mb in (0.0001, 0.0025, 1)] == [7, 4, 2]
