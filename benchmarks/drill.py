"""The fault drill: jobs that are killed at random moments, damaged partial work, a full disk, two copies at once.

After each fault the job is started again, and what comes out must be what an undisturbed run made, byte for byte. Jobs are run
from the scripts that Snakemake leaves of a finished run on the tiny model, in processes forked from this one, so that a
try takes a second; some faults meet Snakemake itself. A full disk and a closed folder need root, for a small tmpfs.
A try counts only if the fault met a job at work; one that came too late is drawn again.
"""

import contextlib
import os
import random
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests")]

from about import about  # noqa: E402
from conftest import make_chatml_tokenizer, run_snakemake, tiny_llama, write_tiny_run  # noqa: E402

from backtranslation import engines, records, training  # noqa: E402

SIZE_MB = 256
RUN = ["--cores", "1", "--configfile", "my.yaml"]
MADE = [f"results/tiny/{path}" for path in ("evaluation/heldout.tsv", "evaluation/round_trip.tsv", "proof/arm~seed/n~0/seed~1/wins.tsv", "proof/pairwise.json")]
PATIENCE = 600
CHECKPOINT_STEPS = 4
DRAWS = 8
"""How often a fault is tried until it meets a job at work."""

RULES = (
    *("ingest_seed", "segment_corpus", "deduplicate_corpus", "sample_segments", "reverse_seed", "train_backward", "write_instructions"),
    *("gate_candidates", "audit_judge", "rate_candidates", "filter_candidates", "mix_examples", "train_forward", "merge_forward"),
    *("evaluate_forward", "evaluate", "round_trip", "measure_arm", "judge_arm", "audit_pairwise"),
)
"""The rules that are hit: all that ask or train a model, and those that make the data; none before one that it reads from."""


@dataclass
class Job:
    rule: str
    script: Path
    outputs: dict[Path, bytes]
    log: Path
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
    config["proof"] = {"arms": ["base", "seed"], "seeds": [1], "steps": 4, "answers": 6}
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    code, printed = run_snakemake(folder, *MADE, *RUN, "--skip-script-cleanup")
    assert code == 0, printed


def jobs_of(folder: Path) -> list[Job]:
    """One job of each of RULES, from the scripts that Snakemake left."""
    found = {}
    for script in sorted((folder / ".snakemake" / "scripts").glob("*.py")):
        scope: dict[str, Any] = {"__file__": str(script)}
        # Snakemake writes the job's paths and settings into one line at the top.
        exec(script.read_text().split("preamble end")[0], scope)
        job = scope["snakemake"]
        found[job.rule] = Job(job.rule, script, {Path(path): (folder / path).read_bytes() for path in job.output}, Path(job.log[0]))
    return [found[rule] for rule in RULES]


def fork(run: Callable[[], Any], output: str | Path = os.devnull) -> int:
    """Starts `run` in a process of its own, which prints to `output`; returns its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        # As in a program that is started by hand; in the background SIGINT may be ignored.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def start(job: Job, tally: Path) -> int:
    """Starts the job's script, whose records, batches and steps go to `tally`; returns its process."""

    def run() -> None:
        notes = os.open(tally, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        _watch(lambda *words: os.write(notes, (" ".join(map(str, words)) + "\n").encode()))
        runpy.run_path(str(job.script), run_name="__main__")

    return fork(run)


def start_snakemake(folder: Path, output: Path, *arguments: str) -> int:
    """Starts Snakemake on the run in `folder`; returns its process."""

    def run() -> None:
        from snakemake.cli import main

        os.chdir(folder)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        main(["--snakefile", str(ROOT / "Snakefile"), *arguments, *RUN])

    return fork(run, output)


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


def ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def finish(process: int) -> int:
    """Waits for a process to end; returns its exit code, or minus the signal that ended it."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        number, status = os.waitpid(process, os.WNOHANG)
        if number:
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


def partial_work(job: Job) -> list[Path]:
    """Files with partial work, of the folders in which the job's outputs lie."""
    folders = {folder for path in job.outputs for folder in (path.parent, path.parent.parent)}
    return sorted(path for folder in folders for path in folder.glob(".work/**/*") if path.is_file())


def await_moment(job: Job, tally: Path, dice: random.Random, process: int) -> bool:
    """Waits for a random moment, of a job that keeps partial work one in the middle of that; False when the job ended before."""
    moment, notes = time.monotonic() + dice.uniform(0.02, 0.9) * job.seconds, dice.randrange(job.notes) if job.notes else 0
    while not ended(process):
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
    met, paths = killed(job, tally, dice), partial_work(job)
    for path in paths:
        os.truncate(path, dice.randint(0, path.stat().st_size))
    return met and bool(paths)


def corrupted(job: Job, tally: Path, dice: random.Random) -> bool:
    met, paths = killed(job, tally, dice), partial_work(job)
    for path in paths:
        if content := bytearray(path.read_bytes()):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            path.write_bytes(content)
    return met and bool(paths)


def clock_set_back(job: Job, tally: Path, dice: random.Random) -> bool:
    """What is there seems to have been made tomorrow."""
    met, paths = killed(job, tally, dice), partial_work(job)
    for path in paths:
        os.utime(path, (time.time() + 86400,) * 2)
    return met and bool(paths)


def two_copies(job: Job, tally: Path, dice: random.Random) -> bool:
    """An orphan and the job that was started in its place."""
    orphan = start(job, tally.with_suffix(".orphan"))
    time.sleep(dice.uniform(0, job.seconds / 2))
    copy = start(job, tally.with_suffix(".copy"))
    met = not ended(orphan)
    if code := finish(copy):
        raise RuntimeError(f"the second copy ended with {code}")
    if code := finish(orphan):
        raise RuntimeError(f"the first copy ended with {code}")
    return met


def out_of_memory(job: Job, tally: Path, dice: random.Random) -> bool:
    """From a random moment on the process gets no more memory from the system."""
    process = start(job, tally)
    if await_moment(job, tally, dice, process):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))
    return finish(process) != 0


def disk_full(job: Job, tally: Path, dice: random.Random) -> bool:
    """Of a job that keeps partial work, in the middle of that; any other is over too soon, so the disk is full before it starts."""
    process = start(job, tally) if job.notes else 0
    if process:
        await_moment(job, tally, dice, process)
    with contextlib.suppress(OSError), open("ballast", "wb", buffering=0) as stream:
        stream.write(b"\0" * shutil.disk_usage(".").free)
    code = finish(process or start(job, tally))
    Path("ballast").unlink()
    return code != 0


def read_only(job: Job, tally: Path, dice: random.Random) -> bool:
    """Closed before the job starts, since a file system with a file open for writing cannot be."""
    subprocess.run(["mount", "-o", "remount,ro", "."], check=True)
    code = finish(start(job, tally))
    subprocess.run(["mount", "-o", "remount,rw", "."], check=True)
    return code != 0


FAULTS: dict[str, tuple[Callable[[Job, Path, random.Random], bool], bool, int]] = {
    "SIGKILL": (killed, False, 5),
    "SIGTERM": (ended_by(signal.SIGTERM), False, 1),
    "out of memory": (out_of_memory, False, 1),
    "truncated partial work": (truncated, True, 1),
    "corrupted partial work": (corrupted, True, 1),
    "clock set back": (clock_set_back, True, 1),
    "two copies at once": (two_copies, True, 1),
    "disk full": (disk_full, False, 1),
    "read-only folder": (read_only, False, 1),
}
"""What happens to a job (True when it did meet it at work), whether only to one that has partial work, and how often to each rule."""
MOUNTED = ("disk full", "read-only folder")
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
    """One fault of the job's process; what it did is counted in `tally`."""
    remove_outputs(job)
    tally.unlink(missing_ok=True)
    said, met = "", False
    try:
        met = FAULTS[fault][0](job, tally, dice)
        if fault != "two copies at once" and (met or not all(path.exists() for path in job.outputs)):
            remove_outputs(job)
            if code := finish(start(job, tally)):
                said = f"ended with {code} when started again"
    except RuntimeError as error:
        said = str(error)
    rows, steps = noted(tally, "row"), noted(tally, "step")
    figures = compare(job.outputs)
    redone, again = len(rows) - len(set(rows)), len(steps) - len(set(steps))
    # Damage may cost all that it hit; a stop costs a batch, or what was trained since the last checkpoint.
    little = fault in DAMAGE or (redone <= job.batch and again <= CHECKPOINT_STEPS + 1)
    survived = not said and little and figures["bytes_equal"]
    return {"fault": fault, "rule": job.rule, "met": met, "survived": survived, **figures, "rows_redone": redone, "steps_redone": again, "said": said}


def strike_snakemake(fault: str, job: Job, folder: Path, dice: random.Random) -> dict[str, Any]:
    """A fault of Snakemake while it has the job of a finished run in `folder` done anew; after SIGKILL the job's process is left over."""
    job = replace(job, outputs={folder / path: content for path, content in job.outputs.items()})
    remove_outputs(job)
    (folder / job.log).unlink(missing_ok=True)
    target, printed = str(next(iter(job.outputs)).relative_to(folder)), folder / "printed"
    first = start_snakemake(folder, Path(os.devnull), target)
    while not ended(first) and not (folder / job.log).exists():
        time.sleep(0.01)
    time.sleep(dice.uniform(0, 0.9 * job.seconds))
    working = [] if ended(first) else psutil.Process(first).children(recursive=True)
    said = ""
    if fault == "two at once":
        code = finish(start_snakemake(folder, printed, target))
        if not ended(first) and (code == 0 or "lock" not in printed.read_text().lower()):
            said = "the second one was let in"
    else:
        os.kill(first, getattr(signal, fault))
    finish(first)
    if working:
        if fault == "SIGKILL":
            finish(start_snakemake(folder, printed, "--unlock"))
        if finish(start_snakemake(folder, printed, target, "--rerun-incomplete")):
            said = said or printed.read_text()[-300:]
    psutil.wait_procs(working, PATIENCE)
    figures = compare(job.outputs)
    survived = not said and figures["bytes_equal"]
    return {"fault": f"Snakemake: {fault}", "rule": job.rule, "met": bool(working), "survived": survived, **figures, "said": said}


def drawn(hit: Callable[..., dict[str, Any]], fault: str, job: Job, where: Path, dice: random.Random) -> tuple[list[dict[str, Any]], int]:
    """The try that met a job at work, or failed; none if all came too late. And how many did."""
    for late in range(DRAWS):
        row = hit(fault, job, where, dice)
        if row["met"] or not row["survived"]:
            return [row], late
    return [], DRAWS


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


def drill(folder: Path, notes: Path, random_seed: int = 7) -> dict[str, Any]:
    """All faults on jobs of the finished run in `folder`, in random order, then those of Snakemake."""
    import datasets  # noqa: F401 - once for all the processes that are forked
    import peft  # noqa: F401
    import snakemake.cli  # noqa: F401
    import trl  # noqa: F401

    untouched = notes / "untouched"
    shutil.copytree(folder, untouched, symlinks=True)
    os.chdir(folder)
    dice = random.Random(random_seed)
    jobs = jobs_of(folder)
    mounted = os.path.ismount(folder)
    for job in jobs:
        measure(job, notes / job.rule)
        print(f"{job.rule}: {job.seconds:.2f} s, {job.bookkeeping / job.seconds:.2%} of it bookkeeping, {job.notes} rows or steps", flush=True)
    working = [job for job in jobs if job.notes]
    turns = [
        (fault, job)
        for fault, (_, works, times) in FAULTS.items()
        for job in (working if works else jobs)
        for _ in range(times)
        if mounted or fault not in MOUNTED
    ]
    dice.shuffle(turns)
    tries = [(fault, job, False) for fault, job in turns]
    # What a rule reads is made anew after it, so that Snakemake finds nothing else to do again.
    for job in reversed(jobs):
        others = ("SIGTERM", "SIGINT", "two at once") if job.rule == "write_instructions" else ()
        tries += [(fault, job, True) for fault in ("SIGKILL", *others)]
    rows, late, never = [], 0, []
    for number, (fault, job, of_snakemake) in enumerate(tries):
        where, hit = (untouched, strike_snakemake) if of_snakemake else (notes / str(number), strike)
        found, missed = drawn(hit, fault, job, where, dice)
        print(f"{number + 1} of {len(tries)}: {fault}, {job.rule}: {found[0] if found else 'came too late each time'}", flush=True)
        rows, late = rows + found, late + missed
        never += [] if found else [f"{fault}, {job.rule}"]
    figures: dict[str, Any] = {
        **about("snakemake", "torch", "transformers"),
        **total(rows),
        "came_too_late": late,
        "never_met": never,
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
