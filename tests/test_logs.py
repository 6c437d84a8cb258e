"""What a job says where."""

import os
import subprocess
import sys

from conftest import ROOT

from backtranslation import evaluation
from backtranslation.records import WorkFile


def test_the_terminal_sees_how_far_a_job_is(tmp_path):
    program = (
        "import sys, time\n"
        "from backtranslation import logs\n"
        "with logs.job(sys.argv[1]):\n"
        "    progress = logs.Progress('instructions', 4, every=0, shown=0)\n"
        "    progress.skip(1)\n"
        "    progress.add(1, tokens=7)\n"
        "    print('noise of a library')\n"
        "    logs.Progress('rows', 2).add(1)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "log"], check=True, env=environment, capture_output=True, text=True)
    # One line, since the second is not due.
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith("  instructions: 2 of 4, ") and line.endswith(" s left")
    log = (tmp_path / "log").read_text()
    assert "instructions: 2 of 4, " in log and "tokens/s" in log and "rows/s" not in log and "noise of a library" in log


def test_names_that_are_no_text_are_shown_as_they_can_be(tmp_path):
    program = "import sys\nfrom backtranslation import logs\nwith logs.job(sys.argv[1]):\n    logs.warn('a.\\udcff is passed over')\n    raise ValueError('b.\\udcff')\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "log"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines() == [r"WARNING: a.\udcff is passed over", r"ERROR: b.\udcff"]


def test_measurements_say_how_far_they_are(caplog, tmp_path):
    work = WorkFile(tmp_path, "once")
    work.add("a", 1.0)
    with caplog.at_level("INFO", "backtranslation"):
        assert evaluation.in_batches(["a", "b", "c"], [5, 5, 5], 5, lambda batch: [0.5] * len(batch), work) == [1.0, 0.5, 0.5]
    assert "rows: 3 of 3, " in caplog.text
