"""The fault drill: jobs that are killed at random moments, damaged partial work, a full disk, two copies at once.

After each fault the job is started again, and what comes out must be what an undisturbed run made, byte for byte. Jobs are run
from the scripts that Snakemake leaves of a finished run on the tiny model, in processes forked from this one, so that a
try takes a second; some faults meet Snakemake itself. A full disk and a closed folder need root, for a small tmpfs.
"""

import contextlib
import datetime
import os
import platform
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests")]

from conftest import make_chatml_tokenizer, run_snakemake, tiny_llama, write_tiny_run  # noqa: E402

from backtranslation import engines, records, training  # noqa: E402

SIZE_MB = 256
TARGET = "results/tiny/augment/candidates.parquet"
RUN = ["--cores", "1", "--configfile", "my.yaml"]
PATIENCE = 600
CHECKPOINT_STEPS = 4


@dataclass
class Job:
    rule: str
    script: Path
    outputs: dict[Path, bytes]
    seconds: float = 0.0
    bookkeeping: float = 0.0
    batch: int = 0
    notes: int = 0


def prepare(folder: Path) -> None:
    """A finished run, with the scripts of its jobs."""
    write_tiny_run(folder, tiny_llama(folder / "model", make_chatml_tokenizer()))
    config = yaml.safe_load((folder / "my.yaml").read_text())
    texts = [{"text": f"The number {n} comes after {n - 1}, and before {n + 1}. It is a number."} for n in range(100, 180)]
    records.write_jsonl(texts, folder / "corpus.jsonl")
    config["corpus"]["sample"] = 60
    config["training"]["checkpoint_steps"] = CHECKPOINT_STEPS
    config["generation"]["batch_tokens"] = 600
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    code, printed = run_snakemake(folder, *RUN, "--skip-script-cleanup")
    assert code == 0, printed


def jobs_of(folder: Path) -> list[Job]:
    """One job of each rule, from the scripts that Snakemake left."""
    found = {}
    for script in sorted((folder / ".snakemake" / "scripts").glob("*.py")):
        scope: dict[str, Any] = {"__file__": str(script)}
        # Snakemake writes the job's paths and settings into one line at the top.
        exec(script.read_text().split("preamble end")[0], scope)
        job = scope["snakemake"]
        found[job.rule] = Job(job.rule, script, {Path(path): (folder / path).read_bytes() for path in job.output})
    return list(found.values())


def start(job: Job, tally: Path) -> int:
    """Starts the job's script in a process of its own, whose records, batches and steps go to `tally`; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        notes = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        _watch(lambda *words: os.write(notes, (" ".join(map(str, words)) + "\n").encode()))
        runpy.run_path(str(job.script), run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(note: Callable[..., Any]) -> None:
    add, batches, diverging = records.WorkFile.add, engines.batches, training.diverging

    def added(self: records.WorkFile, key: str, value: Any) -> None:
        started = time.perf_counter()
        add(self, key, value)
        note("seconds", time.perf_counter() - started)
        note("row", self.name, key)

    def counted(*arguments: Any) -> Iterator[list[int]]:
        for batch in batches(*arguments):
            note("batch", len(batch))
            yield batch

    def step(losses: list[float]) -> str | None:
        note("step", len(losses))
        return diverging(losses)

    records.WorkFile.add, engines.batches, training.diverging = added, counted, step  # type: ignore[method-assign, assignment]
    # Snakemake gave the scripts copies of the library, which went with it.
    code_of = records.code_of
    records.code_of = lambda paths: code_of(str(ROOT / "scripts" / "backtranslation" / Path(path).name) for path in paths)


def finish(process: int) -> int:
    """Waits for a process to end; returns its exit code, or minus the signal that ended it."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def noted(tally: Path, kind: str) -> list[str]:
    lines = tally.read_text().splitlines() if tally.exists() else []
    return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(f"{kind} ")]


def remove_outputs(job: Job) -> None:
    """As Snakemake does before it starts a job and after one failed."""
    for path in job.outputs:
        path.unlink(missing_ok=True)


def partial(job: Job) -> list[Path]:
    """Files with partial work, of the folders in which the job's outputs lie."""
    folders = {folder for path in job.outputs for folder in (path.parent, path.parent.parent)}
    return sorted(path for folder in folders for path in folder.glob(".work/**/*") if path.is_file())


def await_moment(job: Job, tally: Path, dice: random.Random, process: int) -> bool:
    """Waits for a random moment, of a job that keeps partial work one in the middle of that; False when the job ended before."""
    moment, notes = time.monotonic() + dice.uniform(0.02, 0.9) * job.seconds, dice.randrange(job.notes) if job.notes else 0
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if len(noted(tally, "row")) + len(noted(tally, "step")) > notes if job.notes else time.monotonic() > moment:
            return True
        time.sleep(0.001)
    return False


def ended_by(number: int) -> Callable[[Job, Path, random.Random], bool]:
    def strike(job: Job, tally: Path, dice: random.Random) -> bool:
        process = start(job, tally)
        met = await_moment(job, tally, dice, process)
        if met:
            os.kill(process, number)
        return finish(process) == -number and met

    return strike


killed = ended_by(signal.SIGKILL)


def truncated(job: Job, tally: Path, dice: random.Random) -> bool:
    met = killed(job, tally, dice)
    for path in partial(job):
        os.truncate(path, dice.randint(0, path.stat().st_size))
    return met


def corrupted(job: Job, tally: Path, dice: random.Random) -> bool:
    met = killed(job, tally, dice)
    for path in partial(job):
        if content := bytearray(path.read_bytes()):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(content)
    return met


def clock_set_back(job: Job, tally: Path, dice: random.Random) -> bool:
    """What is there seems to have been made tomorrow."""
    met = killed(job, tally, dice)
    for path in partial(job):
        os.utime(path, (time.time() + 86400,) * 2)
    return met


def two_copies(job: Job, tally: Path, dice: random.Random) -> bool:
    """An orphan and the job that was started in its place; only the second one's work is counted."""
    orphan = start(job, tally.with_suffix(".orphan"))
    time.sleep(dice.uniform(0, job.seconds / 2))
    copy = start(job, tally.with_suffix(".copy"))
    if code := finish(copy):
        raise RuntimeError(f"the second copy ended with {code}")
    if code := finish(orphan):
        raise RuntimeError(f"the first copy ended with {code}")
    return True


def disk_full(job: Job, tally: Path, dice: random.Random) -> bool:
    """Of a job that keeps partial work, in the middle of that."""
    process = start(job, tally)
    await_moment(job, tally, dice, process)
    with contextlib.suppress(OSError), open("ballast", "wb", buffering=0) as stream:
        stream.write(b"\0" * shutil.disk_usage(".").free)
    code = finish(process)
    Path("ballast").unlink()
    return code != 0


def read_only(job: Job, tally: Path, dice: random.Random) -> bool:
    """Closed before the job starts, since a file system with a file open for writing cannot be."""
    subprocess.run(["mount", "-o", "remount,ro", "."], check=True)
    code = finish(start(job, tally))
    subprocess.run(["mount", "-o", "remount,rw", "."], check=True)
    return code != 0


FAULTS: dict[str, tuple[Callable[[Job, Path, random.Random], bool], bool]] = {
    "SIGKILL": (killed, False),
    "SIGTERM": (ended_by(signal.SIGTERM), False),
    "SIGINT": (ended_by(signal.SIGINT), False),
    "truncated partial work": (truncated, True),
    "corrupted partial work": (corrupted, True),
    "clock set back": (clock_set_back, True),
    "two copies at once": (two_copies, False),
    "disk full": (disk_full, False),
    "read-only folder": (read_only, True),
}
"""What happens to a job (True when it did meet it), and whether only to one that has partial work."""
DAMAGE = ("truncated partial work", "corrupted partial work")


def ids(path: Path, content: bytes | None) -> list[str]:
    if content is None or path.suffix != ".parquet":
        return []
    import io

    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(content))
    return table["id"].to_pylist() if "id" in table.column_names else []


def compare(wanted: dict[Path, bytes]) -> dict[str, Any]:
    """Rows lost and doubled against what an undisturbed run made, and whether all bytes are equal."""
    found = {path: path.read_bytes() if path.exists() else None for path in wanted}
    lost = doubled = 0
    for path, content in wanted.items():
        before, after = Counter(ids(path, content)), Counter(ids(path, found[path]))
        lost, doubled = lost + (before - after).total(), doubled + (after - before).total()
    return {"rows_lost": lost, "rows_doubled": doubled, "bytes_equal": found == wanted}


def measure(job: Job, tally: Path) -> None:
    """One undisturbed run of the job: its seconds, the share of bookkeeping, the largest batch."""
    remove_outputs(job)
    began = time.monotonic()
    code = finish(start(job, tally))
    job.seconds = time.monotonic() - began
    job.bookkeeping = sum(map(float, noted(tally, "seconds")))
    job.notes = len(noted(tally, "row")) + len(noted(tally, "step"))
    job.batch = max(map(int, noted(tally, "batch")), default=0)
    assert code == 0 and compare(job.outputs)["bytes_equal"], f"{job.rule} without a fault: exit code {code}, {compare(job.outputs)}"


def strike(fault: str, job: Job, tally: Path, dice: random.Random) -> dict[str, Any]:
    remove_outputs(job)
    said, met = "", False
    try:
        met = FAULTS[fault][0](job, tally, dice)
        if fault != "two copies at once":
            remove_outputs(job)
            if code := finish(start(job, tally)):
                said = f"ended with {code} when started again"
    except RuntimeError as error:
        said = str(error)
    rows, steps = noted(tally, "row"), noted(tally, "step")
    figures = compare(job.outputs)
    redone, again = len(rows) - len(set(rows)), len(steps) - len(set(steps))
    # Damage may cost all that it hit; a stop costs a batch, or what was trained since the last checkpoint.
    # A job that came to its end before the fault has left no partial work, and is made anew here.
    little = fault in DAMAGE or not met or (redone <= job.batch and again <= CHECKPOINT_STEPS + 1)
    survived = not said and little and figures["bytes_equal"]
    return {"fault": fault, "rule": job.rule, "met": met, "survived": survived, **figures, "rows_redone": redone, "steps_redone": again, "said": said}


def of_snakemake(folder: Path, dice: random.Random) -> list[dict[str, Any]]:
    """Faults that meet Snakemake while it has the instructions of a finished run written anew."""
    wanted = {path: path.read_bytes() for path in folder.glob("results/tiny/augment/**/*.parquet")}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), TARGET, *RUN]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    tried = []
    for fault, number in (
        ("Snakemake: SIGKILL", signal.SIGKILL),
        ("Snakemake: SIGTERM", signal.SIGTERM),
        ("Snakemake: SIGINT", signal.SIGINT),
        ("Snakemake: two at once", None),
        ("Snakemake: removed output", None),
    ):
        for path in wanted:
            path.unlink(missing_ok=True)
        said = ""
        if "removed" not in fault:
            first = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while first.poll() is None and not list(folder.glob(".snakemake/locks/*")):
                time.sleep(0.05)
            if number is None:
                code, printed = run_snakemake(folder, TARGET, *RUN, timeout=PATIENCE)
                said = "" if code != 0 and "lock" in printed.lower() else "the second one was let in"
            else:
                time.sleep(dice.uniform(0, 10))
                first.send_signal(number)
            first.wait(PATIENCE)
        if number == signal.SIGKILL:
            run_snakemake(folder, TARGET, *RUN, "--unlock", timeout=PATIENCE)
        code, printed = run_snakemake(folder, TARGET, *RUN, "--rerun-incomplete", timeout=PATIENCE)
        said = said or ("" if code == 0 else printed[-300:])
        figures = compare(wanted)
        tried.append({"fault": fault, "rule": "write_instructions", "survived": not said and figures["bytes_equal"], **figures, "said": said})
        print(f"{fault}: {tried[-1]['survived']} {said}", flush=True)
    return tried


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "tried": len(rows),
        "survived": sum(row["survived"] for row in rows),
        "rows_lost": sum(row["rows_lost"] for row in rows),
        "rows_doubled": sum(row["rows_doubled"] for row in rows),
        "bytes_equal": all(row["bytes_equal"] for row in rows),
        # Work that damage hit must be done again, so it does not count here.
        "max_rows_redone": max((row.get("rows_redone", 0) for row in rows if row["fault"] not in DAMAGE), default=0),
        "max_steps_redone": max((row.get("steps_redone", 0) for row in rows if row["fault"] not in DAMAGE), default=0),
    }


def drill(folder: Path, notes: Path, tries: int = 100, random_seed: int = 7) -> dict[str, Any]:
    """`tries` faults on jobs of the finished run in `folder`, every fault on every rule in turn, and those of Snakemake."""
    import datasets  # noqa: F401 - once for all the processes that are forked
    import peft  # noqa: F401
    import trl  # noqa: F401

    untouched = notes / "untouched"
    shutil.copytree(folder, untouched, symlinks=True)
    os.chdir(folder)
    dice = random.Random(random_seed)
    jobs = jobs_of(folder)
    mounted = os.path.ismount(folder)
    for number, job in enumerate(jobs):
        measure(job, notes / f"measured-{number}")
        print(f"{job.rule}: {job.seconds:.2f} s, {job.bookkeeping / job.seconds:.2%} of it bookkeeping", flush=True)
    working = [job for job in jobs if noted(notes / f"measured-{jobs.index(job)}", "row") or noted(notes / f"measured-{jobs.index(job)}", "step")]
    turns = [
        (fault, job)
        for fault, (_, works) in FAULTS.items()
        for job in (working if works else jobs)
        if mounted or fault not in ("disk full", "read-only folder")
    ]
    dice.shuffle(turns)
    rows = []
    for number in range(tries):
        fault, job = turns[number % len(turns)]
        row = strike(fault, job, notes / str(number), dice)
        print(f"{number + 1} of {tries}: {row}", flush=True)
        # What ended before its fault tried nothing.
        rows += [row] if row["met"] or not row["survived"] else []
    rows += of_snakemake(untouched, dice)
    figures: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT).stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("snakemake", "torch", "transformers")},
        **total(rows),
        "largest_batch": max(job.batch for job in jobs),
        "bookkeeping": {job.rule: round(job.bookkeeping / job.seconds, 5) for job in working},
    }
    kinds = dict.fromkeys(row["fault"] for row in rows)
    figures["faults"] = [{"fault": kind, **total([row for row in rows if row["fault"] == kind])} for kind in kinds]
    figures["failed"] = [row for row in rows if not row["survived"]]
    return figures


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs in `folder` for root; else the folder itself."""
    if os.geteuid() != 0:
        print("not root: a full disk and a read-only folder are not tried")
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "drill", folder], check=True)
    try:
        yield folder
    finally:
        os.chdir("/")
        subprocess.run(["umount", "--lazy", folder], check=True)


def report(figures: dict[str, Any]) -> bool:
    """Prints the table and writes it; True when everything survived."""
    names = ("tried", "survived", "rows_lost", "rows_doubled", "bytes_equal", "max_rows_redone")
    print(f"{'fault':28}" + "".join(f"{name:>17}" for name in names))
    for line in (*figures["faults"], {"fault": "all", **figures}):
        print(f"{line['fault']:28}" + "".join(f"{line[name]!s:>17}" for name in names))
    records.write_json(figures, ROOT / "results" / "bench" / "drill.json")
    return figures["survived"] == figures["tried"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "run").mkdir()
        (Path(made) / "notes").mkdir()
        with small_disk(Path(made) / "run") as disk:
            prepare(disk)
            sys.exit(not report(drill(disk, Path(made) / "notes")))
