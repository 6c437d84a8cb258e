"""A job that is stopped anywhere goes on, redoes at most one batch, and ends with the same values to the last bit."""

import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT, pair, segment

from backtranslation import engines, evaluation, judge, pairwise, proof
from backtranslation.augment import reverse, write_instructions
from backtranslation.records import WorkFile

PROMPT = "{response}\n\nWrite the instruction."
SEGMENTS = [segment(n, f"The text number {n} explains the iterator. " * (1 + n % 5)) for n in range(1, 25)]
PAIRS = [pair(n, response=f"The number {n} comes after {n - 1}. " * (1 + n % 4)) for n in range(1, 25)]
# Several candidates for one text, whose likelihood is computed once.
CANDIDATES = [{**SEGMENTS[n // 2], "id": f"{n:016x}", "segment": SEGMENTS[n // 2]["id"], "instruction": f"What about {n}?"} for n in range(12)]
WRITTEN = {"samples": 2, "max_new_tokens": 6, "temperature": 1.0, "top_p": 1.0}


JOBS = ["writing", "rating", "measuring", "proving", "comparing"]


class Killed(Exception):
    pass


class Dying(WorkFile):
    """Dies in place of the record after the first `limit`, and counts what it was given."""

    def __init__(self, folder, limit=None):
        super().__init__(folder, "shape")
        self.limit, self.keys = limit, []

    def add(self, key, value):
        if len(self.keys) == self.limit:
            raise Killed
        super().add(key, value)
        self.keys.append(key)


@pytest.fixture(scope="module")
def engine(tiny, template):
    # In small batches: the last bits of a row's numbers depend on the rows beside it.
    return engines.TransformersEngine(tiny, template.stop_id, dtype="float32", batch_tokens=300)


@pytest.fixture(scope="module")
def reader(tiny, template):
    # Of whole texts, which it takes fewer at once.
    return engines.TransformersEngine(tiny, template.stop_id, dtype="float32", batch_tokens=1500)


@pytest.fixture
def job(request, engine, reader, template):
    """A model rule's work, given where it keeps what is done."""

    def writing(work):
        return write_instructions(SEGMENTS, lambda: engine, template, PROMPT, engines.Sampling(8, 1.0, 0.9), 42, work, 2)

    def rating(work):
        signals = ["rating", "rating_generated", "instruction_gain", "backward_gain"]
        options = {"load_backward": lambda: engine, "backward_prompt": PROMPT, "generated": WRITTEN, "batch_tokens": 300}
        return judge.rate(CANDIDATES, judge.Judge(template, "Rate.\n{instruction}\n{response}", signals, lambda: engine, **options), work)

    def measuring(work):
        examples = reverse(PAIRS, PROMPT)
        return evaluation.losses(examples, reader, template, work, "base").tolist(), evaluation.answers(examples[:6], engine, template, work, "base")

    def proving(work):
        pairs = [{**row, "set": "seed", "other": "What is it?", "near": PAIRS[at - 1]["instruction"]} for at, row in enumerate(PAIRS)]
        return proof.measure(pairs, reader, template, "Be brief.", work).values.tolist()

    def comparing(work):
        rows = [{"instruction": row["instruction"], "own": row["response"], "other": "It is a number."} for row in PAIRS[:12]]
        return pairwise.prefer(rows, pairwise.ModelJudge(reader, template), work).tolist()

    jobs = {"writing": writing, "rating": rating, "measuring": measuring, "proving": proving, "comparing": comparing}
    return jobs[request.param]


@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_killed_anywhere_it_goes_on_and_ends_the_same(job, tmp_path, monkeypatch):
    sizes, batches = [], engines.batches

    def watched(*arguments):
        for batch in batches(*arguments):
            sizes.append(len(batch))
            yield batch

    monkeypatch.setattr(engines, "batches", watched)
    undisturbed = Dying(tmp_path / "whole")
    whole = job(undisturbed)
    assert max(sizes) * 3 < len(undisturbed.keys)
    dice = random.Random(3)
    for number in range(2):
        folder, kept = tmp_path / str(number), set()
        # Killed twice: the second time while it makes up for the first.
        for limit in (dice.randrange(len(undisturbed.keys)), dice.randrange(1, max(sizes))):
            with pytest.raises(Killed):
                job(killed := Dying(folder, limit))
            kept |= set(killed.keys)
        last = Dying(folder)
        assert last.done.keys() == kept
        assert repr(job(last)) == repr(whole)
        # Work of a batch that is not whole is done again, of any other never.
        assert len(kept.intersection(last.keys)) < max(sizes)
        assert sorted(kept.union(last.keys)) == sorted(undisturbed.keys)


@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_damaged_records_are_made_again_and_whole_ones_are_not(job, tmp_path):
    whole = job(first := Dying(tmp_path))
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    # A number that a bad disk changed, a line that is gone, and one that was cut.
    lines[1] = lines[1].replace(b": ", b":  ", 1)
    file.write_bytes(b"".join(lines[:-2]) + lines[-1][:-9])
    again = Dying(tmp_path)
    assert len(again.done) == len(first.keys) - 3
    assert repr(job(again)) == repr(whole)
    assert 3 <= len(again.keys) < len(first.keys)


@pytest.mark.parametrize("job", JOBS, indirect=True)
def test_what_is_done_needs_no_model(job, engine, tmp_path, monkeypatch):
    whole = job(Dying(tmp_path))
    for name in ("_decode", "choice_logprobs", "sequence_logprobs"):
        monkeypatch.delattr(engines.TransformersEngine, name)
    again = Dying(tmp_path)
    assert repr(job(again)) == repr(whole) and again.keys == []


def test_two_copies_of_a_job_end_with_the_same(engine, template, tmp_path):
    """An orphan that a crash left behind, and the job that was started in its place, which is through first."""

    def write(work):
        return write_instructions(SEGMENTS, lambda: engine, template, PROMPT, engines.Sampling(8, 1.0, 0.9), 42, work)

    class Overtaken(WorkFile):
        def add(self, key, value):
            super().add(key, value)
            if len(self.done) == 5:
                copy = WorkFile(tmp_path, "x")
                assert len(copy.done) == 5
                rows.append(write(copy))
                copy.clear()

    rows = []
    rows.append(write(orphan := Overtaken(tmp_path, "x")))
    orphan.clear()
    assert rows[0] == rows[1] and list(tmp_path.iterdir()) == []


JOB = """
from backtranslation import logs, records
with logs.job("{log}"):
    with open("{path}", "w") as stream:
        stream.write("x")
"""


@pytest.mark.parametrize(
    "path, sentence",
    [
        ("/dev/full", "the disk is full ([Errno 28] No space left on device); make room and start again: what was done is kept"),
        ("/sys/kernel/none", "/sys/kernel/none: Permission denied; a run must be able to write to results/ and resources/"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="devices of Linux")
def test_a_full_disk_and_a_closed_folder_are_one_sentence(path, sentence, tmp_path):
    code = JOB.format(log=tmp_path / "log", path=path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == f"ERROR: {sentence}\n"
    assert "Traceback" in (tmp_path / "log").read_text()
