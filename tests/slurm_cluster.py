"""A SLURM of our own on this machine, as tests/slurm_cluster.sh starts it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import ROOT

SCRIPT = ROOT / "tests" / "slurm_cluster.sh"
DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
# The memory of a small node, and a look at the state of jobs more often than is polite to a cluster that others use.
PROFILE = ["--workflow-profile", str(ROOT / "profiles" / "slurm"), "--resources", "mem_mb=6000", "--slurm-init-seconds-before-status-checks", "1"]
FIELDS = ("jobid", "comment", "start", "end", "nodelist", "alloctres", "state", "workdir")


def why_not() -> str | None:
    """Why there can be no cluster here, in a sentence; None when there can."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")]
    if missing:
        return f"SLURM is not installed here ({', '.join(missing)} missing); `tests/slurm_cluster.sh install` does it on Debian"
    if os.geteuid() != 0:
        return "only root can start a SLURM of its own"
    if (place := Path("/etc/slurm/slurm.conf")).exists():
        left = f"; if a test left it: `tests/slurm_cluster.sh stop {place.resolve().parent}`" if place.is_symlink() else ""
        return f"this machine has a SLURM of its own, which is left alone{left}"
    return None


@contextmanager
def running(folder: Path) -> Iterator[Path]:
    """The cluster, in `folder`."""
    # mariadb and munge run as users of their own, who must get to their folders.
    for parent in (folder, *folder.parents):
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, timeout=300)
        yield folder
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=300)


def jobs(folder: Path) -> list[dict[str, str]]:
    """What the accounting says of all jobs of runs in `folder`; times are ISO, which sorts. `rule` is the comment's, or group and rules."""
    command = ["sacct", "--allocations", "--parsable2", "--noheader", "--format", ",".join(FIELDS)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = [dict(zip(FIELDS, line.split("|"), strict=True)) for line in printed.splitlines()]
    return [{**job, "rule": job["comment"].removeprefix("rule_").split("_wildcards_")[0]} for job in found if job["workdir"] == str(folder)]
