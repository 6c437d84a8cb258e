"""A short fault drill; `make drill` is the whole one."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="the drill counts on Linux")
def test_faults_cost_no_row_and_change_no_byte():
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, ROOT / "tests" / "short_drill.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row["rule"] for row in rows} == {"measure_arm", "ingest_seed"} and len(rows) >= 5
    assert all(row["met"] and row["survived"] for row in rows), rows
    assert all(row["bytes_equal"] and row["rows_lost"] == row["rows_doubled"] == 0 for row in rows)
