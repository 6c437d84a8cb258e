"""The faults of a cluster: jobs that SLURM ends, loses or forgets, on a real SLURM on this machine.

Training and writing are each hit while they work, and Snakemake, which hands the jobs in again, is started once more
if it gave up. What comes out must be what an undisturbed run makes, byte for byte.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests")]

import slurm_cluster  # noqa: E402
from about import about  # noqa: E402
from conftest import make_chatml_tokenizer, run_snakemake, tiny_llama, write_tiny_run  # noqa: E402
from drill import compare  # noqa: E402

from backtranslation import records  # noqa: E402

TARGET = "results/tiny/augment/candidates.parquet"
SHARDS = [f"results/tiny/augment/shards/{n}-of-2.parquet" for n in (1, 2)]
COMPARED = ["results/tiny/backward/adapter/adapter_model.safetensors", *SHARDS, TARGET]
# Work of each rule that has come to the disk and would be lost with it.
PARTIAL = {
    "train_backward": "results/tiny/backward/adapter/.work/*/run-*/checkpoint-*/whole.json",
    "write_instructions": "results/tiny/augment/shards/.work/*.jsonl",
}
PATIENCE = 900


def scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], check=True, capture_output=True, text=True, timeout=60).stdout


def wait_for(what: str, found: Callable[[], Any]) -> Any:
    """What `found` returns once that is true."""
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        if result := found():
            return result
        time.sleep(0.1)
    raise TimeoutError(f"gave up waiting for {what}")


def state(job: str) -> str:
    """The state of a job in the accounting, where one that was requeued has several."""
    asked = subprocess.run(["sacct", "-X", "-n", "-P", "-D", "-j", job, "-o", "state"], check=True, capture_output=True, text=True)
    return ", ".join(asked.stdout.split("\n")[:-1])


def cancel(cluster: Path, job: str, node: str) -> None:
    subprocess.run(["scancel", job], check=True)


def lose_node(cluster: Path, job: str, node: str) -> None:
    """The node's daemon is gone, its processes run on as orphans; it comes back when SLURM has given the job up."""
    subprocess.run(["kill", "-9", (cluster / f"{node}.pid").read_text().strip()], check=True)
    scontrol("update", f"nodename={node}", "state=down", "reason=drill")
    time.sleep(5)
    subprocess.run([slurm_cluster.SCRIPT, "start", cluster, node], check=True)

    def back() -> bool:
        # SLURM may take it back by itself at any moment, and refuses this from then on.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
        return "State=DOWN" not in scontrol("show", "node", node)

    wait_for("the node", back)


def exceed_time(cluster: Path, job: str, node: str) -> None:
    """Its processes are held until its time is up, for SLURM counts time in minutes."""
    for line in scontrol("listpids", job, node).splitlines()[1:]:
        process = int(line.split()[0])
        if process > 0:
            os.kill(process, signal.SIGSTOP)
    scontrol("update", f"jobid={job}", "timelimit=1")
    wait_for("the time limit", lambda: "TIMEOUT" in state(job))


def lose_controller(cluster: Path, job: str, node: str) -> None:
    subprocess.run([slurm_cluster.SCRIPT, "stop", cluster, "slurmctld"], check=True)
    time.sleep(60)
    subprocess.run([slurm_cluster.SCRIPT, "start", cluster, "slurmctld"], check=True)


FAULTS = {"scancel": cancel, "node down": lose_node, "time limit": exceed_time, "slurmctld away for 60 s": lose_controller}


def at_work(folder: Path, rule: str) -> tuple[str, str] | None:
    """Number and node of a running job of the rule that has partial work on the disk."""
    if not any(path.stat().st_size for path in folder.glob(PARTIAL[rule])):
        return None
    asked = subprocess.run(["squeue", "--states", "running", "--noheader", "--format", "%i %N %k"], capture_output=True, text=True)
    found = [line.split() for line in asked.stdout.splitlines() if f"rule_{rule}" in line]
    return (found[0][0], found[0][1]) if found else None


def prepare(folder: Path, model: Path) -> None:
    """A run whose training and writing take some seconds and save their work often."""
    write_tiny_run(folder, model)
    config = yaml.safe_load((folder / "my.yaml").read_text())
    texts = [{"text": f"The number {n} comes after {n - 1}, and before {n + 1}. It is a number."} for n in range(100, 420)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    config["corpus"]["sample"] = 300
    config["backward"]["epochs"] = 60
    config["training"]["checkpoint_steps"] = 4
    config["generation"]["batch_tokens"] = 600
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    before = ["results/tiny/corpus/sample.parquet", "results/tiny/backward/train_examples.parquet", "results/tiny/backward/heldout_examples.parquet"]
    start = ["--cores", "2", "--configfile", "my.yaml"]
    code, printed = run_snakemake(folder, *before, *start, timeout=PATIENCE)
    assert code == 0, printed


def run(folder: Path) -> tuple[int, str]:
    return run_snakemake(folder, TARGET, *slurm_cluster.PROFILE, "--configfile", "my.yaml", timeout=PATIENCE)


def strike(fault: str, cluster: Path, folder: Path, undisturbed: Path) -> list[dict[str, Any]]:
    """One run in which training and one shard of writing meet the fault."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", TARGET, *slurm_cluster.PROFILE, "--configfile", "my.yaml"]
    tried = []
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with open(folder / "first.log", "w") as log:
        first = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path})
        for rule in PARTIAL:
            job, node = wait_for(f"{rule} to be at work", lambda rule=rule: at_work(folder, rule) or (first.poll() is not None and ("", "")))
            if not job:
                break
            FAULTS[fault](cluster, job, node)
            tried.append({"fault": fault, "rule": rule, "job": job})
        code = first.wait(timeout=PATIENCE)
    started_again = code != 0
    if started_again:
        code, printed = run(folder)
        (folder / "again.log").write_text(printed)
    wanted = {folder / path: (undisturbed / path).read_bytes() for path in COMPARED}
    figures = {"survived": code == 0, **compare(wanted), "started_again": started_again}
    return [{**one, "state": state(one["job"]), **figures} for one in tried]


def drill(folder: Path) -> list[dict[str, Any]]:
    """One row for each rule that met a fault; `folder` holds the cluster and all runs."""
    model = tiny_llama(folder / "model", make_chatml_tokenizer())
    prepared, undisturbed = folder / "prepared", folder / "undisturbed"
    prepared.mkdir()
    prepare(prepared, model)
    (folder / "cluster").mkdir()
    with slurm_cluster.running(folder / "cluster") as cluster:
        shutil.copytree(prepared, undisturbed, symlinks=True)
        code, printed = run(undisturbed)
        assert code == 0, printed
        rows = []
        for fault in FAULTS:
            disturbed = folder / fault.replace(" ", "-")
            shutil.copytree(prepared, disturbed, symlinks=True)
            rows += strike(fault, cluster, disturbed, undisturbed)
            print(f"{fault}: {rows[-1]['survived']}", flush=True)
    return rows


def main(folder: Path) -> bool:
    rows = drill(folder)
    print(f"{'fault':26}{'rule':22}{'state in SLURM':32}{'survived':10}{'bytes equal':13}{'started again'}")
    for row in rows:
        print(f"{row['fault']:26}{row['rule']:22}{row['state']:32}{row['survived']!s:10}{row['bytes_equal']!s:13}{row['started_again']}")
    figures: dict[str, Any] = {
        **about("snakemake", "snakemake-executor-plugin-slurm", "torch", "transformers"),
        "tried": len(rows),
        "survived": sum(row["survived"] for row in rows),
        "rows_lost": sum(row["rows_lost"] for row in rows),
        "rows_doubled": sum(row["rows_doubled"] for row in rows),
        "bytes_equal": all(row["bytes_equal"] for row in rows),
        "faults": rows,
    }
    records.write_json(figures, ROOT / "results" / "bench" / "slurm_drill.json")
    return len(rows) == len(FAULTS) * len(PARTIAL) and figures["survived"] == len(rows) and figures["bytes_equal"]


if __name__ == "__main__":
    if reason := slurm_cluster.why_not():
        sys.exit(f"skipped: {reason}")
    with tempfile.TemporaryDirectory() as made:
        sys.exit(not main(Path(made)))
