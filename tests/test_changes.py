"""A changed setting reruns what depends on it and nothing else, as docs/resume.md says."""

import json
import re
import shutil
import subprocess
import sys

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


def test_a_run_that_goes_part_of_the_way_says_nothing_of_the_end(snakemake):
    """As docs/offline.md has it fetch beforehand, and nothing else."""
    code, printed = snakemake("--until", "ingest_seed", "--cores", "1")
    assert code == 0 and "Finished jobid" in printed and "Done." not in printed, printed
