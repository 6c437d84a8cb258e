"""The whole loop with the real SmolLM2, as a user runs it, on a few rows."""

import json
import re

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, run_snakemake

from backtranslation.records import read

# Few rows and steps: what is checked here is that everything fits together, not that it is good.
SMALL = {
    "name": "small",
    "seed": {"heldout": 0.2, "sources": [{"path": "seed.jsonl", "columns": {"instruction": "instruction", "response": "response"}}]},
    "corpus": {"sample": 10},
    "generation": {"shards": 2},
    "curation": {"keep": {"signal": "instruction_gain", "rule": "top_fraction", "value": 0.5}},
    "report": {"examples": 2},
}
RUN = ["--cores", "2", "--resources", "gpu=1", "--configfile", "small.yaml"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pairs = (ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines()
    # Every ninth pair that is short, so that all kinds of pairs occur and training takes a minute.
    short = [line for line in pairs if len(line) < 700]
    (folder / "seed.jsonl").write_text("\n".join(short[:: max(1, len(short) // 30)]) + "\n")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    # The base model is fetched once for all runs.
    (ROOT / "resources").mkdir(exist_ok=True)
    (folder / "resources").symlink_to(ROOT / "resources")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    code, printed = run_snakemake(folder, *RUN)
    assert code == 0, printed
    return folder / "results" / "small"


def test_every_promised_file_is_there(finished):
    wanted = re.findall(r"^\| `([^`]+)`", (ROOT / "results" / "README.md").read_text(), re.MULTILINE)
    assert wanted
    for name in wanted:
        assert list(finished.glob(name)), name


def test_funnel_adds_up_from_the_files_alone(finished):
    table = pd.read_csv(finished / "report" / "funnel.tsv", sep="\t")
    assert (table["rows_in"] == table["dropped"] + table["rows_out"]).all()
    segments, sample = read(finished / "corpus" / "segments.parquet"), read(finished / "corpus" / "sample.parquet")
    ends = [read(finished / path) for path in ("corpus/not_sampled.parquet", "augment/dropped.parquet", "curation/dropped.parquet", "curation/curated.parquet")]
    assert sorted(row["id"] for row in segments) == sorted(row["id"] for end in ends for row in end)
    assert len(sample) == 10
    assert all(row["stage"] and row["reason"] for end in ends[:3] for row in end)


def test_curated_set_is_what_was_kept_and_what_was_trained_on(finished):
    lines = [json.loads(line) for line in (finished / "curation" / "curated.jsonl").read_text().splitlines()]
    curated = read(finished / "curation" / "curated.parquet")
    assert [line["id"] for line in lines] == [row["id"] for row in curated]
    examples = read(finished / "forward" / "train_examples.parquet")
    augmented = {row["id"] for row in examples if row["origin"] == "augmented"}
    assert augmented == {line["id"] for line in lines}
    rated = pq.read_table(finished / "curation" / "rated.parquet").to_pandas()
    assert rated[["rating", "instruction_gain"]].notna().all(axis=None) and rated["rating"].between(1, 5).all()


def test_held_out_pairs_are_in_no_training_set(finished):
    heldout = {row["id"] for row in read(finished / "seed" / "heldout.parquet")}
    for path in ("backward/train_examples.parquet", "forward/train_examples.parquet"):
        assert not heldout & {row["id"] for row in read(finished / path)}
    table = pd.read_csv(finished / "evaluation" / "heldout.tsv", sep="\t")
    assert table["model"].tolist() == ["backward", "forward"] and (table["n"] == len(heldout)).all()


def test_backward_model_learned(finished):
    backward = pd.read_csv(finished / "evaluation" / "heldout.tsv", sep="\t").iloc[0]
    assert backward["tuned_loss"] < backward["base_loss"]


def test_forward_model_loads_alone_and_answers(finished):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = finished / "forward" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "What is a list?"}], add_generation_prompt=True, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**chat, max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(answer[0, chat["input_ids"].shape[1] :]).strip()
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())


def test_every_job_left_a_log_and_a_benchmark(finished):
    for kind in ("logs", "benchmarks"):
        names = {path.relative_to(finished / kind).parts[0].split(".")[0] for path in (finished / kind).rglob("*.*")}
        assert {"train_backward", "write_instructions", "rate_candidates", "train_forward", "evaluate", "report_figures"} <= names
    assert re.search(r"training steps: \d+ of \d+, .* left", (finished / "logs" / "train_backward.log").read_text())
    assert not list(finished.rglob("shards/.work/*"))


def test_a_second_run_finds_nothing_to_do(finished, folder):
    code, printed = run_snakemake(folder, *RUN)
    assert code == 0 and "Nothing to be done" in printed


def test_report_shows_tables_figures_and_examples(finished, folder):
    code, printed = run_snakemake(folder, *RUN[4:], "--report", "report.html")
    assert code == 0, printed
    page = (folder / "report.html").read_text()
    for question in ("What was kept, and why?", "How were candidates rated?", "Did it help?", "What does it look like?"):
        assert question in page
    assert "loss of the true instruction" in page and "Content-Security-Policy" in (finished / "report" / "examples.html").read_text()


def test_none_above_the_threshold_ends_in_one_sentence(finished, folder):
    config = {**SMALL, "curation": {"keep": {"signal": "rating", "rule": "threshold", "value": 5.1}}}
    (folder / "strict.yaml").write_text(yaml.safe_dump(config))
    rated = (finished / "curation" / "shards" / "1-of-2.parquet").read_bytes()
    code, printed = run_snakemake(folder, *RUN[:4], "--configfile", "strict.yaml")
    assert code != 0
    assert re.search(r"ERROR: curation\.keep: none of \d+ candidates is kept by rating with threshold 5\.1; the best is", printed)
    # What was computed before stays.
    assert (finished / "curation" / "shards" / "1-of-2.parquet").read_bytes() == rated
