"""Whole runs as jobs of a real SLURM on this machine, of two nodes with a pretended GPU each: a tiny model's, and the embedded default's."""

import os
import re

import pandas as pd
import pytest
import slurm_cluster
import yaml
from conftest import ROOT, TOKEN, files_with_token, promised_but_missing, run_snakemake, write_tiny_run
from safetensors.torch import load_file
from slurm_cluster import jobs

from backtranslation.records import read, read_json

# The embedded default with as few pairs, segments and steps as go through all of it.
FEW = {
    "name": "few",
    "seed": {"heldout": 0.34, "sources": [{"path": "seed.jsonl"}]},
    "corpus": {"token_quantiles": [0.0, 0.05], "sample": 12},
    "training": {"batch_size": 1, "gradient_accumulation": 1},
    "backward": {"steps": 3},
    "forward": {"steps": 3},
    "generation": {"max_new_tokens": 64},
    "audit": {"pairs": 3},
    "report": {"examples": 2, "labelling": 4},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


def run(folder, *until):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_TOKEN", TOKEN)
        # Also of jobs that succeed, since what they print is looked into.
        kept = "--slurm-keep-successful-logs"
        code, printed = run_snakemake(folder, *slurm_cluster.PROFILE, kept, "--configfile", "my.yaml", *until, timeout=1800)
    assert code == 0 and TOKEN not in printed, printed


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("run")
    write_tiny_run(folder, tiny)
    # Up to the shards first, so that no other job holds one of the two GPUs when they are due.
    for until in (["--until", "write_instructions"], ["--until", "rate_candidates"], []):
        run(folder, *until)
    return folder / "results" / "tiny"


@pytest.fixture(scope="module")
def default(cluster, tmp_path_factory):
    """Folder of a finished run of the embedded default on a few rows."""
    folder = tmp_path_factory.mktemp("default")
    shortest = sorted((ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines(), key=len)[:12]
    (folder / "seed.jsonl").write_text("\n".join(shortest) + "\n")
    (folder / "my.yaml").write_text(yaml.safe_dump(FEW))
    # The base model is fetched once for all runs.
    (ROOT / "resources").mkdir(exist_ok=True)
    (folder / "resources").symlink_to(ROOT / "resources")
    run(folder)
    return folder


def test_every_promised_file_is_there(finished):
    assert promised_but_missing(finished) == []


def test_shards_run_side_by_side_on_both_nodes(finished):
    for rule in ("write_instructions", "rate_candidates"):
        first, second = [job for job in jobs(finished.parents[1]) if job["rule"] == rule]
        assert {first["nodelist"], second["nodelist"]} == {"n1", "n2"}
        assert max(first["start"], second["start"]) < min(first["end"], second["end"]), (first, second)


def check_jobs(folder):
    """A GPU where a model computes, and one job of SLURM for short rules that follow one another; fetching stays on the login node."""
    found = jobs(folder)
    assert {job["state"] for job in found} == {"COMPLETED"}
    models = {"train_backward", "train_forward", "write_instructions", "audit_judge", "rate_candidates", "evaluate_forward", "evaluate", "round_trip"}
    assert {job["rule"] for job in found if "gres/gpu=1" in job["alloctres"]} == models
    groups = {"seed_ingest_seed_reverse_seed", "corpus_deduplicate_corpus_sample_segments", "report_report_figures_report_funnel"}
    rules = {job["rule"] for job in found}
    assert groups <= rules and not {"fetch_model", "ingest_seed", "sample_segments", "report_figures"} & rules, rules


def test_jobs_ask_for_what_they_use(finished):
    check_jobs(finished.parents[1])


def test_the_embedded_default_makes_its_set_and_its_model(default):
    check_jobs(default)
    results = default / "results" / "few"
    assert promised_but_missing(results) == []
    table = pd.read_csv(results / "report" / "funnel.tsv", sep="\t")
    assert (table["rows_in"] == table["dropped"] + table["rows_out"]).all()
    ends = ("corpus/not_sampled.parquet", "augment/dropped.parquet", "curation/dropped.parquet", "curation/curated.parquet")
    assert sorted(row["id"] for row in read(results / "corpus" / "segments.parquet")) == sorted(row["id"] for end in ends for row in read(results / end))
    kept, rated = read(results / "curation" / "curated.parquet"), read(results / "curation" / "rated.parquet")
    assert 0 < len(kept) <= len(rated) <= FEW["corpus"]["sample"]
    weights = [load_file(results / path / "adapter" / "adapter_model.safetensors") for path in ("backward", "forward/0", "forward/1")]
    for trained in weights:
        assert all(value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name)
    assert any((value != weights[2][name]).any() for name, value in weights[1].items())
    layer = "model.layers.0.self_attn.q_proj.weight"
    base = read_json(results / "forward" / "1" / "adapter" / "training.json")["base"]
    merged, untouched = (load_file(default / folder / "model.safetensors")[layer] for folder in ("results/few/forward/model", base))
    assert (merged.float() != untouched.float()).any()


def test_a_token_of_the_login_nodes_environment_is_in_nothing_that_jobs_leave(default):
    """What sbatch was told and jobs printed included."""
    assert list(default.glob(".snakemake/slurm_logs/**/*.log")) and files_with_token(default) == []


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
