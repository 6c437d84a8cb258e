"""What keeps the parts of the project from drifting apart."""

import json
import re
from collections import Counter

import yaml
from conftest import ROOT

from backtranslation import gate, settings


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\s*-?\s*([A-Za-z0-9_.-]+)(?:\[[a-z]+\])?==(\S+)$", text, re.MULTILINE))


def test_environments_pin_what_the_requirements_pin():
    wanted = pins((ROOT / "requirements.txt").read_text())
    for path in (ROOT / "envs").glob("*.yaml"):
        env = yaml.safe_load(path.read_text())
        packages = env["dependencies"][-1]["pip"]
        assert env["channels"] == ["conda-forge"] and all("==" in package for package in packages), path
        for name, version in pins("\n".join(packages)).items():
            assert wanted[name] == version, f"{path}: {name}"


def test_seed_pairs_are_a_broad_and_clean_set():
    rows = [json.loads(line) for line in (ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) >= 190 and len({row["instruction"] for row in rows}) == len(rows)
    kinds = Counter(row["category"] for row in rows)
    assert {"explain", "list", "rewrite", "classify", "code", "plan", "compare", "creative"} <= set(kinds)
    lengths = sorted(len(row["response"]) for row in rows)
    assert lengths[0] < 120 and lengths[-1] > 1000
    broken = [row["instruction"] for row in rows if gate.reason({"instruction": row["instruction"], "text": row["response"], "finish_reason": "stop"})]
    assert broken == []


def test_no_path_of_one_machine_and_no_unsafe_loading():
    files = [path for pattern in ("*.py", "*.smk", "*.yaml", "*.md", "Snakefile", "Makefile") for path in ROOT.rglob(pattern)]
    files = [path for path in files if not {".venv", ".snakemake", "results", "resources"} & set(path.relative_to(ROOT).parts[:-1])]
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(tmp|work|root|home)/", text), path
        if path.name != "test_project.py":
            assert "trust_remote_code=True" not in text and "import pickle" not in text, path


def test_settings_fill_defaults_of_sources():
    schema = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    settings.validate(config, schema)
    source = config["seed"]["sources"][0]
    assert (source["layout"], source["language"]) == ("columns", None)
