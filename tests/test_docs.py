"""The documentation's site: its reference of the configuration, and links that lead nowhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, present

from backtranslation import gate, settings

sys.path.insert(0, str(ROOT / "docs"))
import configuration

CONFIG = ROOT / "config"
PAGES = [ROOT / "README.md", CONFIG / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_reference_has_every_setting_with_its_default():
    page = configuration.reference(CONFIG / "schema.yaml", CONFIG / "config.yaml")
    sections = dict(re.findall(r"^###? (\S+)\n\n(.*?)(?=^###? |\Z)", page, re.MULTILINE | re.DOTALL))
    for key in present(yaml.safe_load((CONFIG / "config.yaml").read_text())):
        above, _, name = key.rpartition(".")
        # Keys that share a line have one section.
        assert key in sections or f"| `{name}` |" in sections[above], key
    assert "above 0, below 1" in sections["seed.heldout"] and "default `0.15`" in sections["seed.heldout"]


def test_reference_says_what_the_manual_says(tmp_path):
    (tmp_path / "schema.yaml").write_text("properties: {how: {enum: [fast, slow, null]}, where: {type: string, description: a folder}}")
    (tmp_path / "config.yaml").write_text("# The *way*.\n# fast: with\n#   haste; see docs/judge.md.\n# slow: as in `a*b`\n# Now: chosen\nhow: slow\nwhere: results/<name>\n")
    how, where = configuration.reference(tmp_path / "schema.yaml", tmp_path / "config.yaml").split("\n## ")[1:]
    assert how.splitlines() == [
        "how",
        "",
        "*one of `fast`, `slow`, `null`*; default `slow`",
        "",
        r"The \*way\*.",
        "- `fast`: with",
        "  haste; see [judge](../judge.md).",
        "- `slow`: as in `a*b`",
        "",
        "Now: chosen",
    ]
    assert where.splitlines() == ["where", "", "*a text*; default `results/<name>`", "", "A folder."]


def test_links_that_lead_nowhere_fail_the_build(tmp_path):
    (tmp_path / "index.md").write_text("# Start\n\n[1](missing.md) [2](missing.yaml) [3](#missing-here) [4](other.md#missing-there) [5](other.md#a-heading)\n\n## Pages\n\n- [Other](other.md)\n")
    (tmp_path / "other.md").write_text("# Other\n\n## A heading\n")
    environment = Path(sys.executable).parents[1]
    # What is installed here will do.
    command = ["make", f"--old-file={environment}/.installed-dev", "docs", f"VENV={environment}", f"SOURCE={tmp_path}", f"SITE={tmp_path / 'site'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    found = re.findall(r"WARNING: .*?'([^']+)' \[myst\.xref_missing\]", done.stderr)
    assert found == ["missing.md", "missing.yaml", "missing-here", "missing-there"], done.stderr


@pytest.mark.parametrize("page", ["README.md", "config/README.md", "results/README.md"])
def test_links_of_pages_that_are_not_on_the_site_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", (ROOT / page).read_text()) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_configurations_on_pages_are_accepted(page):
    schema = yaml.safe_load((CONFIG / "schema.yaml").read_text())
    for block in re.findall(r"^ *```yaml\n(.*?)^ *```$", page.read_text(), re.MULTILINE | re.DOTALL):
        found = yaml.safe_load(block)
        # The others are of other tools.
        if set(found) & set(schema["properties"]):
            settings.validate(settings.merge(yaml.safe_load((CONFIG / "config.yaml").read_text()), found), schema)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_pages_name_their_targets_where_snakemake_finds_them(page):
    text = page.read_text()
    # An option that takes several values takes a target that follows for one more.
    assert re.findall(r"(?:--configfile|--resources) [\w./=<>-]+ +[\w./<>]+", text) == []
    wanted = set(re.findall(r"^ *(?:PIP\S+ )*make ([a-z.][\w./-]*)", text, re.MULTILINE)) - {".venv/.installed"}
    assert wanted <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_reason_of_a_dropped_row_is_explained():
    code = "\n".join(path.read_text() for path in (ROOT / "scripts" / "backtranslation").glob("*.py"))
    given = re.findall(r'(?:Problem|_Damaged)\("(\w+)"|PageError\(f?"(\w+): |drop\(\w+, "\w+", "(\w+)"|reason, detail = "(\w+)"', code)
    reasons = {reason for found in given for reason in found if reason} | set(gate.REASONS)
    assert {"too_short", "too_deep", "not_best", "length_tokens", "low_"} <= reasons
    explained = (ROOT / "docs" / "corpus.md").read_text()
    assert [reason for reason in sorted(reasons) if f"`{reason}`" not in explained] == []


def test_files_that_captions_name_are_made_by_a_rule():
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    named = [path for caption in (CONFIG / "captions").glob("*.rst") for path in re.findall(r'results/\{\{ snakemake\.config\["name"\] \}\}/([^`\n]+)', caption.read_text())]
    assert len(named) >= 9
    # An iteration and a question stand there as a number.
    made = {re.sub(r"(?<=/)(1|\{\{ snakemake\.params\.best \}\})(?=/)", "{iteration}", re.sub(r"\d(?=\.html)", "{question}", path)) for path in named}
    assert [path for path in sorted(made) if f'"<results>/{path}"' not in rules] == []
