"""A changed setting reruns what depends on it and nothing else, as docs/resume.md says."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_snakemake
from walk_keys import leaves, pretend_finished


def test_every_key_reruns_what_the_table_says(tmp_path):
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|$", (ROOT / "docs" / "resume.md").read_text(), re.MULTILINE)
    told = {key: sorted(re.findall(r"`(\w+)`", rules)) for keys, rules in rows for key in re.findall(r"`([\w.]+)`", keys)}
    assert set(told) == {key for key, _ in leaves(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()))}
    printed = subprocess.run([sys.executable, ROOT / "tests" / "walk_keys.py"], cwd=tmp_path, check=True, capture_output=True, text=True)
    found = json.loads(printed.stdout)
    # Of rules that read the last iteration's files Snakemake gives now one reason and now another, in no fixed order.
    more = "curation.iterations"
    assert set(told[more]) <= set(found[more])
    assert {**found, more: told[more]} == told


def test_a_folder_that_was_moved_does_nothing_again(tmp_path, monkeypatch):
    """As docs/offline.md copies one to a cluster, with `resources/` and `.snakemake/`."""
    (tmp_path / "here").mkdir()
    for part in ("rules", "scripts", "config", "envs", "profiles"):
        shutil.copytree(ROOT / part, tmp_path / "here" / part)
    shutil.copy(ROOT / "Snakefile", tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    pretend_finished(lambda *arguments: run_snakemake(tmp_path / "here", "--snakefile", "Snakefile", "--cores", "1", *arguments)[1])
    (tmp_path / "here").rename(tmp_path / "there")
    code, printed = run_snakemake(tmp_path / "there", "--snakefile", "Snakefile", "--dry-run")
    assert code == 0 and "Nothing to be done" in printed, printed


@pytest.mark.parametrize(
    "target, lost, made",
    [
        ("proof", "proof/arm~random/n~20/seed~2/adapter/training.json", {"train_arm": "1", "measure_arm": "1"}),
        ("proof", "augment/shards/1-of-1.parquet", {"write_instructions": "1", "gate_candidates": "1", "train_arm": "12"}),
        ("all", "augment/shards/1-of-1.parquet", {"write_instructions": "1", "gate_candidates": "1", "train_forward": "1"}),
    ],
)
def test_what_a_failed_job_left_deleted_is_made_again_with_all_that_follows(tmp_path, monkeypatch, target, lost, made):
    monkeypatch.chdir(tmp_path)
    Path("config").symlink_to(ROOT / "config")
    configured = ("--cores", "1", "--configfile", "config/proof.yaml")
    pretend_finished(lambda *arguments: run_snakemake(tmp_path, *arguments, *configured)[1], target)
    code, printed = run_snakemake(tmp_path, target, *configured, "--dry-run")
    assert code == 0 and "Nothing to be done" in printed, printed
    Path("results/proof", lost).unlink()
    code, printed = run_snakemake(tmp_path, target, *configured, "--dry-run")
    assert code == 0 and made.items() <= dict(re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE)).items(), printed


def test_a_run_that_goes_part_of_the_way_says_nothing_of_the_end(snakemake):
    """As docs/offline.md has it fetch beforehand, and nothing else."""
    code, printed = snakemake("--until", "ingest_seed", "--cores", "1")
    assert code == 0 and "Finished jobid" in printed and "Done." not in printed, printed
