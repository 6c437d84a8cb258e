"""The whole workflow as jobs of a real SLURM on this machine: two nodes with a pretended GPU each."""

import os
import re

import pytest
import slurm_cluster
from conftest import ROOT, promised_but_missing, run_snakemake, write_tiny_run
from slurm_cluster import jobs


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("run")
    write_tiny_run(folder, tiny)
    # Up to the shards first, so that no other job holds one of the two GPUs when they are due.
    for until in (["--until", "write_instructions"], ["--until", "rate_candidates"], []):
        code, printed = run_snakemake(folder, *slurm_cluster.PROFILE, "--configfile", "my.yaml", *until, timeout=1800)
        assert code == 0, printed
    return folder / "results" / "tiny"


def test_every_promised_file_is_there(finished):
    assert promised_but_missing(finished) == []


def test_shards_run_side_by_side_on_both_nodes(finished):
    for rule in ("write_instructions", "rate_candidates"):
        first, second = [job for job in jobs() if job["rule"] == rule]
        assert {first["nodelist"], second["nodelist"]} == {"n1", "n2"}
        assert max(first["start"], second["start"]) < min(first["end"], second["end"]), (first, second)


def test_jobs_ask_for_what_they_use(finished):
    """A GPU where a model computes, and one job of SLURM for short rules that follow one another; fetching stays on the login node."""
    found = jobs()
    assert {job["state"] for job in found} == {"COMPLETED"}
    models = {"train_backward", "train_forward", "write_instructions", "audit_judge", "rate_candidates", "evaluate_forward", "evaluate", "round_trip"}
    assert {job["rule"] for job in found if "gres/gpu=1" in job["alloctres"]} == models
    groups = {"seed_ingest_seed_reverse_seed", "corpus_deduplicate_corpus_sample_segments", "report_report_figures_report_funnel"}
    rules = {job["rule"] for job in found}
    assert groups <= rules and not {"fetch_model", "ingest_seed", "sample_segments", "report_figures"} & rules, rules


def test_the_profiles_example_asks_for_several_gpus_of_one_node(finished, tmp_path, monkeypatch):
    """What sbatch is called with; the cluster of the tests has no such node."""
    text = (ROOT / "profiles" / "slurm" / "profile.yaml").read_text()
    example = re.search(r"^# set-resources:\n(#   \w+: .*\n)+", text, re.MULTILINE).group()
    (tmp_path / "profile.yaml").write_text(text.replace(example, example.replace("# ", "", 1).replace("\n# ", "\n")))
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit 1\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    target = "results/tiny/backward/adapter/training.json"
    arguments = ["--workflow-profile", str(tmp_path), "--configfile", "my.yaml", "--retries", "0", "--forcerun", "train_backward"]
    code, printed = run_snakemake(finished.parents[1], target, *arguments, timeout=300)
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert code != 0 and "rule_train_backward" in asked, printed
    for option in ("-p gpu", "--gpus=a100:4", "--nodes=1", "--mem 64000", "-t 1440", "--cpus-per-task=2"):
        assert f" {option} " in asked, asked
