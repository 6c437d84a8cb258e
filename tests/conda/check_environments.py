"""`make test-conda`: the environments are made from nothing, each has all that its rules import, and the whole workflow runs in them.

Not among the tests of `make test`: it installs torch twice, which takes minutes and gigabytes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, write_tiny_run
from test_project import closure, environments_of_scripts, pins

# Snakemake in an environment of its own that has hardly more than it needs to read the Snakefile: it lends
# scripts its packages, and so would hide what an environment lacks.
BIN = ROOT / ".venv-conda" / "bin"
STAND_IN = ROOT / "tests" / "conda"
ENVIRONMENTS = BIN.parent / "environments"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("conda")
    channel = folder / "channel"
    subprocess.run([BIN / "python", STAND_IN / "make_channel.py", sys.executable, channel], check=True)
    write_tiny_run(folder, tiny)
    (folder / "config").symlink_to(ROOT / "config")
    path = os.pathsep.join([str(STAND_IN / "bin"), str(BIN), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "CONDA_TEST_CHANNEL": str(channel), "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [
        BIN / "snakemake",
        "--snakefile",
        ROOT / "Snakefile",
        "--configfile",
        "my.yaml",
        "--cores",
        "2",
        "--resources",
        "gpu=1",
    ]
    command += ["--sdm", "conda", "--conda-prefix", ENVIRONMENTS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results" / "tiny"


def test_the_whole_workflow_ran(finished):
    for name in (
        "curation/curated.jsonl",
        "forward/model/model.safetensors",
        "evaluation/heldout.tsv",
        "report/scores.svg",
        "report/examples.html",
    ):
        assert (finished / name).stat().st_size > 0, name


@pytest.mark.parametrize("name", ["training", "inference", "data"])
def test_environment_has_what_its_rules_import(finished, name):
    text = (ROOT / "envs" / f"{name}.yaml").read_text()
    (made,) = [path.with_suffix("") for path in ENVIRONMENTS.glob("*.yaml") if path.read_text() == text]
    modules = {
        module
        for env, script in environments_of_scripts()
        if env == f"envs/{name}.yaml"
        for module in closure(ROOT / script)[0]
    }
    program = (
        "import importlib, importlib.metadata as metadata, json, sys\n"
        "pinned, modules = json.loads(sys.argv[1])\n"
        "for package, version in pinned.items():\n"
        "    assert metadata.version(package).split('+')[0] == version, package\n"
        "    importlib.import_module({'scikit-learn': 'sklearn'}.get(package, package))\n"
        "for module in modules:\n"
        "    importlib.import_module(f'backtranslation.{module}')\n"
    )
    given = json.dumps([pins(text), sorted(modules)])
    subprocess.run(
        [made / "bin" / "python", "-c", program, given],
        check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "scripts")},
    )
