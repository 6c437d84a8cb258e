"""A changed setting reruns what depends on it and nothing else, as docs/resume.md says."""

import json
import re
import subprocess
import sys

import yaml
from conftest import ROOT
from walk_keys import leaves


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
