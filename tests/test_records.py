"""The contract: nothing half-written, nothing lost, every row in one place."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pytest
from conftest import pair, segment

from backtranslation import records
from backtranslation.funnel import funnel, reasons, reasons_of


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    records.write_json({"old": 1}, path)
    with pytest.raises(RuntimeError), records.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert records.read_json(path) == {"old": 1} and list(tmp_path.iterdir()) == [path]


def test_parquet_round_trip_keeps_exactly_the_schema(tmp_path):
    rows = [{**pair(n), "extra": "x"} for n in range(3)]
    records.write(rows, records.PAIRS, tmp_path / "a.parquet")
    back = records.read(tmp_path / "a.parquet")
    assert [set(row) for row in back] == [set(records.PAIRS.names)] * 3
    assert [row["instruction"] for row in back] == [row["instruction"] for row in rows]


def test_truncated_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    records.write([segment(1)], records.SEGMENTS, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(records.RecordError, match=r"a\.parquet: not a whole parquet file"):
        records.read(path)


def test_row_with_wrong_type_is_not_written(tmp_path):
    with pytest.raises(pa.ArrowException):
        records.write([{**pair(1), "row": "one"}], records.PAIRS, tmp_path / "a.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept, dropped", [([1, 2], []), ([1, 2, 3], [3]), ([1, 1, 2], []), ([1, 2], [4])])
def test_settle_refuses_lost_and_doubled_rows(kept, dropped):
    rows = {n: pair(n) for n in range(5)}
    with pytest.raises(records.RecordError, match="each row must end in exactly one place"):
        records.settle("gate", [rows[1], rows[2], rows[3]], [rows[n] for n in kept], [rows[n] for n in dropped])


def test_work_file_trusts_no_torn_or_damaged_line(tmp_path):
    work = records.WorkFile(tmp_path, ["shape"])
    work.add("a", 1)
    work.add("b", [2.5])
    (file,) = tmp_path.iterdir()
    # Killed in the middle of a write, and one bit of the first record flipped by a bad disk.
    damaged = bytearray(file.read_bytes() + b'0123456789abcdef {"key": "c", "val')
    damaged[30] ^= 1
    file.write_bytes(damaged)
    again = records.WorkFile(tmp_path, ["shape"])
    assert again.done == {"b": [2.5]}
    again.add("a", 1)
    assert records.WorkFile(tmp_path, ["shape"]).done == {"a": 1, "b": [2.5]}
    assert records.WorkFile(tmp_path, ["other shape"]).done == {}
    again.clear()
    assert list(tmp_path.iterdir()) == []


def test_two_copies_of_a_job_share_what_is_done_and_do_not_hurt_each_other(tmp_path):
    orphan = records.WorkFile(tmp_path, "x")
    orphan.add("a", 1)
    copy = records.WorkFile(tmp_path, "x")
    assert copy.done == {"a": 1}
    for work, key in ((copy, "b"), (orphan, "b"), (copy, "c")):
        work.add(key, 2)
    assert records.WorkFile(tmp_path, "x").done == {"a": 1, "b": 2, "c": 2}
    copy.clear()
    # The other one is still at it.
    orphan.add("c", 2)
    orphan.clear()
    assert orphan.done == {"a": 1, "b": 2, "c": 2} and list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_process_is_removed_and_of_a_running_one_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    kept = [f".scratch-{host}-{os.getppid()}", f".scratch-elsewhere-{dead.pid}", f".scratch-{host}-1-{dead.pid}"]
    for name in (*kept, f".scratch-{host}-{dead.pid}"):
        (tmp_path / name).mkdir()
    with records.scratch(tmp_path) as folder:
        (folder / "large").write_text("x")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, folder.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_funnel_adds_up_or_stops(tmp_path):
    records.write([records.drop(segment(n), "gate", "echo") for n in range(2)], records.DROPPED, tmp_path / "dropped.parquet")
    drops = reasons_of(str(tmp_path / "dropped.parquet"))
    table = funnel([("corpus", "sample", 10, Counter(), 10), ("corpus", "gate", 10, drops, 8), ("seed", "read", 3, Counter(), 3)])
    assert table["reasons"].tolist() == ["", "echo 2", ""]
    assert reasons(drops).to_dict("records") == [{"stage": "gate", "reason": "echo", "rows": 2}]
    with pytest.raises(records.RecordError, match="corpus, gate: 10 rows in, but 2 dropped and 7 out"):
        funnel([("corpus", "gate", 10, drops, 7)])
    with pytest.raises(records.RecordError, match="9 rows in, but 10 came out of the stage before"):
        funnel([("corpus", "sample", 10, Counter(), 10), ("corpus", "gate", 9, drops, 7)])


def test_ledger_survives_lone_surrogates(tmp_path):
    row = records.drop(segment(1, "bad \udcff text"), "read", "invalid_utf8")
    records.write([row], records.DROPPED, tmp_path / "a.parquet")
    assert records.read(tmp_path / "a.parquet")[0]["text"] == "bad ? text"
    assert json.dumps(row)
