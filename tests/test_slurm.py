"""The whole workflow as jobs of a real SLURM on this machine: two nodes with a pretended GPU each."""

import os
import shutil
import subprocess

import pytest
from conftest import ROOT, promised_but_missing, run_snakemake, write_tiny_run

CLUSTER = ROOT / "tests" / "slurm_cluster.sh"
DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd")
# Looks for the state of jobs more often than is polite to a cluster that others use.
RUN = [
    "--workflow-profile",
    str(ROOT / "profiles" / "slurm"),
    "--configfile",
    "my.yaml",
    "--slurm-init-seconds-before-status-checks",
    "1",
]
FIELDS = ("jobid", "comment", "start", "end", "nodelist", "alloctres", "state")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")]
    if missing:
        pytest.skip(
            f"SLURM is not installed here ({', '.join(missing)} missing); `tests/slurm_cluster.sh install` does it on Debian"
        )
    if os.geteuid() != 0:
        pytest.skip("only root can start a SLURM of its own")
    folder = tmp_path_factory.mktemp("slurm")
    # mariadb and munge run as users of their own, who must get to their folders.
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    try:
        subprocess.run([CLUSTER, "start", folder], check=True, timeout=120)
        yield folder
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True, timeout=120)


def jobs() -> list[dict[str, str]]:
    """What the accounting says of all jobs; times are ISO, which sorts."""
    command = ["sacct", "--allocations", "--parsable2", "--noheader", "--format", ",".join(FIELDS)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [dict(zip(FIELDS, line.split("|"), strict=True)) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("run")
    write_tiny_run(folder, tiny)
    code, printed = run_snakemake(folder, *RUN, timeout=900)
    assert code == 0, printed
    return folder / "results" / "tiny"


def test_every_promised_file_is_there(finished):
    assert promised_but_missing(finished) == []


def test_shards_run_side_by_side_on_both_nodes(finished):
    for rule in ("write_instructions", "rate_candidates"):
        first, second = [job for job in jobs() if job["comment"].startswith(f"rule_{rule}_")]
        assert {first["nodelist"], second["nodelist"]} == {"n1", "n2"}
        assert max(first["start"], second["start"]) < min(first["end"], second["end"]), (first, second)


def test_jobs_ask_for_what_they_use(finished):
    """A GPU where a model computes, and one job of SLURM for short rules that follow one another; fetching stays on the login node."""
    found = jobs()
    assert {job["state"] for job in found} == {"COMPLETED"}
    names = [job["comment"].removeprefix("rule_").split("_wildcards_")[0] for job in found]
    with_gpu = {name for name, job in zip(names, found, strict=True) if "gres/gpu=1" in job["alloctres"]}
    models = {"train_backward", "train_forward", "write_instructions", "audit_judge", "rate_candidates", "evaluate_forward", "evaluate", "round_trip"}
    assert with_gpu == models
    # A job of several rules is called by its group and their names.
    groups = {"seed_ingest_seed_reverse_seed", "corpus_deduplicate_corpus_sample_segments", "report_report_figures_report_funnel"}
    assert groups <= set(names) and not {"fetch_model", "ingest_seed", "sample_segments", "report_figures"} & set(names), names
