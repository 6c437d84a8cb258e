"""The whole loop with the real SmolLM2, as a user runs it, on a few rows."""

import html
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from types import SimpleNamespace

import nbformat
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, TOKEN, files_with_token, promised_but_missing, run_snakemake
from nbclient import NotebookClient

from backtranslation import audit, funnel, gate, judge
from backtranslation.records import WorkFile, read, read_json, read_jsonl, write_jsonl

# Few rows and steps: what is checked here is that everything fits together, not that it is good.
SMALL = {
    "name": "small",
    "seed": {"heldout": 0.25, "sources": [{"path": "seed.jsonl", "columns": {"instruction": "instruction", "response": "response"}}]},
    "corpus": {"sample": 10},
    "generation": {"shards": 2},
    "curation": {"iterations": 2, "keep": {"signal": "combination", "rule": "top_fraction", "value": 0.5}},
    "report": {"examples": 2, "labelling": 6},
}
RUN = ["--cores", "1", "--resources", "gpu=1", "--configfile", "small.yaml"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    pairs = (ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines()
    # Short ones, so that training takes a minute.
    (folder / "seed.jsonl").write_text("\n".join(line for line in pairs if len(line) < 450) + "\n")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    # The base model is fetched once for all runs.
    (ROOT / "resources").mkdir(exist_ok=True)
    (folder / "resources").symlink_to(ROOT / "resources")
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_TOKEN", TOKEN)
        code, printed = run_snakemake(folder, *RUN)
    assert code == 0 and TOKEN not in printed, printed
    (folder / "printed.txt").write_text(printed)
    return folder / "results" / "small"


def test_last_lines_say_where_everything_is(finished, folder):
    last = "\n".join((folder / "printed.txt").read_text().splitlines()[-10:])
    for named in ("results/small/curation/curated.jsonl", "results/small/forward/model", "README.md"):
        assert named in last and (folder / named if named.startswith("results") else ROOT / named).exists()
    # The command as it is, with the same configuration; that it works is the report's own test.
    assert re.search(r"/snakemake --report report\.html --configfile small\.yaml$", last, re.MULTILINE), last


def test_every_promised_file_is_there(finished):
    assert promised_but_missing(finished) == []


def test_funnel_adds_up_from_the_files_alone(finished):
    table = pd.read_csv(finished / "report" / "funnel.tsv", sep="\t")
    assert (table["rows_in"] == table["dropped"] + table["rows_out"]).all()
    segments, sample = read(finished / "corpus" / "segments.parquet"), read(finished / "corpus" / "sample.parquet")
    ends = [read(finished / path) for path in ("corpus/not_sampled.parquet", "augment/dropped.parquet", "curation/dropped.parquet", "curation/curated.parquet")]
    assert sorted(row["id"] for row in segments) == sorted(row["id"] for end in ends for row in end)
    assert len(sample) == 10
    assert all(row["stage"] and row["reason"] for end in ends[:3] for row in end)


def test_words_say_what_is_in_the_files(finished):
    page = html.unescape(re.sub("<[^>]+>", "", (finished / "report" / "words.html").read_text()))
    rated, curated = read(finished / "curation" / "rated.parquet"), read(finished / "curation" / "curated.parquet")
    assert f"{len(curated)} of {len(rated)} candidates were kept" in page
    means = [sum(row["combination"] for row in rows) / len(rows) for rows in (curated, rated)]
    assert f"Their mean combination is {means[0]:.3f}, that of all {means[1]:.3f}" in page
    for name, change in (("train", "for training"), ("heldout", "held out")):
        assert re.search(rf"\b{len(read(finished / 'seed' / f'{name}.parquet'))} (are )?{change}", page), page
    # Of the judge that rated what was kept, which the figures beside are not of.
    figures = read_json(finished / "audit" / "2" / "audit.json")
    assert "That is the judge of iteration 2" in page
    assert f"On {figures['rows']} labelled pairs combination, which decides, has AUROC {figures['signals']['combination']['all']['auroc']:.3f}" in page
    losses = pd.read_csv(finished / "evaluation" / "pairs.tsv", sep="\t")
    said = re.search(r"of M_2 minus that of M_0 on (\d+) held-out pairs: ([+-][\d.]+) nats", page)
    assert int(said[1]) == len(losses) and float(said[2]) == pytest.approx((losses["M_2"] - losses["M_0"]).mean(), abs=1e-3)


def test_curated_set_is_what_was_kept_and_what_was_trained_on(finished):
    lines = [json.loads(line) for line in (finished / "curation" / "curated.jsonl").read_text().splitlines()]
    curated = read(finished / "curation" / "curated.parquet")
    assert [line["id"] for line in lines] == [row["id"] for row in curated]
    examples = read(finished / "forward" / "2" / "train_examples.parquet")
    augmented = {row["id"] for row in examples if row["origin"] == "augmented"}
    assert augmented == {line["id"] for line in lines}
    rated = pq.read_table(finished / "curation" / "rated.parquet").to_pandas()
    valued = ["rating", "instruction_gain", "opening_gain", "ending_logprob", "backward_gain", "combination"]
    assert rated[valued].notna().all(axis=None) and rated["rating"].between(1, 5).all() and rated["rating_generated"].isna().all()


def test_audit_says_what_each_signal_is_worth(finished):
    figures = read_json(finished / "audit" / "audit.json")
    assert figures == read_json(finished / "audit" / "1" / "audit.json")
    heldout = read(finished / "seed" / "heldout.parquet")
    assert (figures["pairs"], figures["rows"]) == (len(heldout), 7 * len(heldout))
    assert set(figures["without_value"].values()) == {0}
    assert figures["injection"]["variants"] == 20 and figures["injection"]["breaking_the_template"] == 0
    gain = figures["signals"]["instruction_gain"]
    assert gain["shuffled"]["auroc"] > 0.8 and gain["shuffled"]["low"] <= gain["shuffled"]["auroc"] <= gain["shuffled"]["high"]
    assert set(figures["length_baseline"]) == {"all", *audit.KINDS}
    weights = read_json(finished / "audit" / "1" / "combination.json")
    assert {"rating", "instruction_gain", "backward_gain"} <= set(weights["signals"])


def test_round_trip_compares_base_and_backward(finished):
    table = pd.read_csv(finished / "evaluation" / "round_trip.tsv", sep="\t")
    means = table.pivot(index="model", columns="measure", values="mean")
    assert means.loc["backward", "true_loss"] < means.loc["base", "true_loss"] and means["chrf"].between(0, 100).all()
    assert (table["n"] == len(read_jsonl(finished / "evaluation" / "round_trip.jsonl"))).all() and (table["low"] <= table["high"]).all()


def test_planted_broken_candidates_are_dropped(finished, folder):
    """Twenty broken pairs among good ones: gate and curation with the default's judge drop most, and say why."""
    # Pairs that no part of the run has seen.
    seen = (folder / "seed.jsonl").read_text()
    unseen = [line for line in (ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines() if len(line) < 1000 and line not in seen]
    heldout = [{"id": f"{n:016x}", **json.loads(line)} for n, line in enumerate(unseen[:40])]
    kinds = list(audit.KINDS)
    broken = [row for row in audit.pairs(heldout[20:], 20, 7) if row["kind"] != "true"]
    # One fault per pair, all kinds in turn; the good ones are other pairs, or the gate would see duplicates.
    planted = [row for n, row in enumerate(broken) if row["kind"] == kinds[(n // len(kinds)) % len(kinds)]]
    good = [row for row in audit.pairs(heldout[:20], 20, 7) if row["kind"] == "true"]
    assert len(planted) == len(good) == 20
    rows = [
        {**row, "source": row["kind"], "row": n, "segment": row["id"], "finish_reason": "stop"} for n, row in enumerate([*good, *planted])
    ]
    passed, gated = gate.gate(rows)
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    settings = {
        **{key: config["judge"][key] for key in ("signals", "generated")},
        **{"prompt": config["backward"]["prompt"], "template": "auto", "backward_template": "auto", "tags": None},
        **{"engine": "transformers", "precision": config["precision"], "batch_tokens": 32768, "random_seed": 42},
    }
    manifest = next((folder / "resources" / "models").glob("*/manifest.json"))
    adapter = finished / "backward/adapter/adapter_model.safetensors"
    given = SimpleNamespace(judge=manifest, judge_adapter=None, manifest=manifest, adapter=adapter, rubric=ROOT / config["judge"]["rubric"])
    asked, _ = judge.configured(given, settings, 1)
    rated = judge.rate(passed, asked, WorkFile(folder / "planted", "x"))
    combined = judge.combine(rated, read_json(finished / "audit" / "1" / "combination.json"))
    rated = [{**row, "combination": float(p)} for row, p in zip(rated, combined, strict=True)]
    keep = config["curation"]["keep"]
    kept, low = judge.keep(rated, keep["signal"], keep["rule"], keep["value"])
    wrong = [row for row in kept if not row["label"]]
    dropped = funnel.reasons(Counter((row["stage"], row["reason"]) for row in [*gated, *low]))
    print(dropped, [row["kind"] for row in wrong])
    assert len(wrong) <= 4
    assert {"gate", "curate"} == set(dropped["stage"]) and "low_combination" in set(dropped["reason"])


def test_labels_of_ones_own_audit_the_judge_without_a_forward_model(finished, folder):
    rows = [row for row in read(finished / "audit" / "1" / "rated.parquet") if row["kind"] in ("true", "shuffled")]
    write_jsonl([{"instruction": row["instruction"], "response": row["text"], "label": row["label"]} for row in rows], folder / "labels.jsonl")
    lines = read_jsonl(folder / "labels.jsonl")
    # One label is wrong, as people's are, so that no signal can be perfect.
    write_jsonl([{**lines[0], "label": 1 - lines[0]["label"]}, *lines[1:]], folder / "labels.jsonl")
    config = {**SMALL, "audit": {"labels": "labels.jsonl", "on_fail": "stop", "floor": 1.0}, "judge": {"signals": ["instruction_gain"]}}
    (folder / "labelled.yaml").write_text(yaml.safe_dump(config))
    # What the finished run has made so far, but for the audit and what came after it.
    labelled = folder / "results" / "labelled"
    shutil.copytree(finished, labelled, ignore=shutil.ignore_patterns("audit", "report", "forward", "curation", "evaluation"))
    code, printed = run_snakemake(folder, "audit", *RUN[:4], "--configfile", "labelled.yaml", "--config", "name=labelled")
    assert code != 0 and re.search(r"ERROR: audit: the judge is not to be believed, combination: AUROC 0\.\d+ \(floor 1, length alone", printed), printed
    assert not (labelled / "audit" / "verdict.json").exists()
    config["audit"]["floor"] = 0.5
    (folder / "labelled.yaml").write_text(yaml.safe_dump(config))
    code, printed = run_snakemake(folder, "audit", *RUN[:4], "--configfile", "labelled.yaml", "--config", "name=labelled")
    assert code == 0 and "rule audit_judge" not in printed, printed
    figures = read_json(labelled / "audit" / "audit.json")
    assert figures["rows"] == len(rows) and figures["signals"]["instruction_gain"]["all"]["auroc"] > 0.8
    assert not (labelled / "forward").exists()


def test_held_out_pairs_are_in_no_training_set(finished):
    heldout = {row["id"] for row in read(finished / "seed" / "heldout.parquet")}
    for path in ("backward", "forward/0", "forward/1", "forward/2"):
        assert not heldout & {row["id"] for row in read(finished / path / "train_examples.parquet")}
    table = pd.read_csv(finished / "evaluation" / "heldout.tsv", sep="\t")
    assert list(zip(table["model"], table["against"], strict=True)) == [
        *[("backward", "base"), ("M_0", "base"), ("M_1", "base"), ("M_1", "M_0")],
        *[("M_2", "base"), ("M_2", "M_0"), ("M_2", "M_1")],
    ]
    assert (table["n"] == len(heldout)).all()


def test_each_iteration_rates_one_pool_with_the_model_before(finished):
    pools = [read(finished / "curation" / t / "rated.parquet") for t in "12"]
    assert [row["id"] for row in pools[0]] == [row["id"] for row in pools[1]]
    # M_1 judges otherwise than the untouched model; the backward model is the same.
    assert [row["rating"] for row in pools[0]] != [row["rating"] for row in pools[1]]
    assert [row["backward_gain"] for row in pools[0]] == [row["backward_gain"] for row in pools[1]]
    seed = {row["id"] for row in read(finished / "seed" / "train.parquet")}
    for t in "012":
        trained = {row["id"] for row in read(finished / "forward" / t / "train_examples.parquet")}
        kept = {row["id"] for row in read(finished / "curation" / t / "curated.parquet")} if t != "0" else set()
        assert trained == seed | kept
        # From the base model again, not on top of the model before.
        assert read_json(finished / "forward" / t / "adapter" / "training.json")["base"].endswith("weights")
    table = pd.read_csv(finished / "report" / "iterations.tsv", sep="\t", index_col=0)
    assert list(table) == ["1", "2"] and table.loc["ends_with"].tolist() == ["False", "True"]
    assert 0 <= float(table.loc["jaccard", "2"]) <= 1 and -1 <= float(table.loc["rank_correlation", "2"]) <= 1
    assert (finished / "curation" / "curated.parquet").read_bytes() == (finished / "curation" / "2" / "curated.parquet").read_bytes()


def test_iterations_end_when_nothing_gets_better(finished, folder):
    """With a patience of one, what is there already decides whether the second iteration is made."""
    losses = [pd.read_csv(finished / "evaluation" / "forward" / f"{t}.tsv", sep="\t")["loss"].mean() for t in range(3)]
    stopping = folder / "results" / "stopping"
    shutil.copytree(finished, stopping, ignore=shutil.ignore_patterns("report"))
    # As if curation had made things worse.
    worse = pd.read_csv(stopping / "evaluation" / "forward" / "1.tsv", sep="\t")
    worse["loss"] += 1
    worse.to_csv(stopping / "evaluation" / "forward" / "1.tsv", sep="\t", index=False)
    config = {**SMALL, "curation": {**SMALL["curation"], "stop": {"signal": "heldout_loss", "patience": 1}}}
    (folder / "stopping.yaml").write_text(yaml.safe_dump(config))
    asked = ["results/stopping/report/iterations.tsv", "--configfile", "stopping.yaml", "--config", "name=stopping", "--rerun-triggers", "mtime", *RUN[:4]]
    code, printed = run_snakemake(folder, *asked)
    assert code == 0, printed
    decision = read_json(stopping / "curation" / "1" / "decision.json")
    assert decision["stop"] and decision["best"] == 1 and decision["values"][0] == pytest.approx(losses[0])
    table = pd.read_csv(stopping / "report" / "iterations.tsv", sep="\t", index_col=0)
    assert table.loc["ends_with"].to_dict() == {"1": "True"}
    assert not (stopping / "curation" / "2" / "decision.json").exists()


def test_backward_model_learned(finished):
    backward = pd.read_csv(finished / "evaluation" / "heldout.tsv", sep="\t").iloc[0]
    assert backward["loss"] < backward["other_loss"]


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
        assert {"train_backward", "audit_judge", "write_instructions", "rate_candidates", "train_forward", "evaluate", "report_figures"} <= names
    measured = pd.read_csv(finished / "report" / "costs.tsv", sep="\t", index_col="rule")
    assert {"train_backward", "train_forward", "write_instructions", "evaluate"} <= set(measured.index)
    assert measured.loc["train_forward", "jobs"] == 3 and measured.loc["train_backward", ["minutes", "memory_gb", "tokens_read"]].gt(0).all()
    assert measured.loc[["write_instructions", "evaluate"], ["tokens_read", "tokens_written"]].gt(0).all(axis=None) and pd.isna(measured.loc["reverse_seed", "tokens_read"])
    assert re.search(r"training steps: \d+ of \d+, .* left", (finished / "logs" / "train_backward.log").read_text())
    assert not list(finished.rglob("shards/.work/*"))


def test_a_second_run_finds_nothing_to_do(finished, folder):
    code, printed = run_snakemake(folder, *RUN)
    assert code == 0 and "Nothing to be done" in printed


def test_report_shows_tables_figures_and_examples(finished, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, printed = run_snakemake(folder, *RUN[4:], "--report", "report.html")
    assert code == 0, printed
    page = (folder / "report.html").read_text()
    questions = ("In short", "What went in?", "What was thrown away, and why?", "Can the judge be trusted?", "What was kept?", "Did training work?", "Is the model better?", "What did it cost?")
    for question in questions:
        assert question in page
    # The first page leads to each.
    assert page.count("javascript:app.showCategory(") >= len(questions)
    # Captions begin with the numbers in words; the page of words itself is packed.
    for number in range(1, 8):
        assert json.dumps((finished / "report" / "words" / f"{number}.html").read_text().strip())[1:-1] in page, number
    assert "Loss of the true instruction" in page and "iterations side by side" in page and "Receiver operating characteristic" in page and "Content-Security-Policy" in (finished / "report" / "examples.html").read_text()


def test_notebook_clones_runs_shows_and_talks(finished, folder, tmp_path):
    """From an empty folder, as on a hosted machine, where an earlier run was stopped before its last job."""
    project = tmp_path / "repository" / "backtranslation"
    for name in ("Snakefile", "requirements.txt", "profiles", "rules", "scripts", "config", "envs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        project.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, project / name)
    for command in (["init", "--quiet"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a", "commit", "--quiet", "-m", "all"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    notebook = nbformat.read(ROOT / "notebooks" / "backtranslation.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parameters = f"REPOSITORY = {project.as_uri()!r}\nCONFIG = '{finished.name}.yaml'"
    # What the earlier run left; its inputs are older, as they were.
    left = f"""
import shutil
for path in ("{finished.name}.yaml", *Path("{folder}").glob("*.jsonl")):
    shutil.copy(Path("{folder}", path), ".")
for path in Path().rglob("*"):
    os.utime(path, (0, 0))
os.symlink("{folder}/resources", "resources")
copy = lambda source, target: (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)
shutil.copytree("{finished}", "results/{finished.name}", copy_function=copy)
for name in ("costs.tsv", "costs.svg"):
    Path("results/{finished.name}/report", name).unlink()
"""
    assert code[0].metadata.tags == ["parameters"] and "git" in code[1].source
    given, there = nbformat.v4.new_code_cell(parameters), nbformat.v4.new_code_cell(left)
    notebook.cells = [cell for one in notebook.cells for cell in {code[0].id: [one, given], code[1].id: [one, there]}.get(one.id, [one])]
    (tmp_path / "hosted").mkdir()
    # The notebook's own Python, not one that the machine has registered.
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path / "hosted"}}).execute()
    clone = tmp_path / "hosted" / "backtranslation"
    printed = ["".join(out.get("text", "") for out in cell.outputs) for cell in code]
    assert "Adding up time and memory" in printed[3] and "3 of 3 steps (100%) done" in printed[3], printed
    assert "report.html: " in printed[4] and "Is the model better?" in (clone / "report.html").read_text()
    shown = [out.data for out in code[4].outputs if "data" in out]
    assert "candidates were kept" in html.unescape(shown[0]["text/html"])
    assert len(shown) == 6 and all("<svg" in data["image/svg+xml"] for data in shown[1:])
    kept = read_jsonl(finished / "curation" / "curated.jsonl")
    assert f"{len(kept)} pairs were kept" in printed[5]
    (table,) = (pd.read_html(io.StringIO(out.data["text/html"]))[0] for out in code[5].outputs if "data" in out)
    assert len(table) == min(10, len(kept)) and " ".join(table["instruction"][0].split())[:100] == " ".join(kept[0]["instruction"].split())[:100]
    assert code[7].source.startswith("ask(") and printed[7].strip()


def test_a_token_of_the_environment_is_in_nothing_that_a_run_leaves(finished, folder):
    """Results, logs, report, Snakemake's own records and the scripts it wrote."""
    for part in ("results/small/logs", "results/small/curation", ".snakemake/metadata", ".snakemake/log", "report.html"):
        assert (folder / part).exists(), part
    assert files_with_token(folder) == []


def test_none_above_the_threshold_ends_in_one_sentence(finished, folder):
    config = {**SMALL, "curation": {"keep": {"signal": "rating", "rule": "threshold", "value": 5.1}}}
    (folder / "strict.yaml").write_text(yaml.safe_dump(config))
    rated = (finished / "curation" / "1" / "shards" / "1-of-2.parquet").read_bytes()
    code, printed = run_snakemake(folder, *RUN[:4], "--configfile", "strict.yaml")
    assert code != 0
    assert re.search(r"ERROR: curation\.keep: none of \d+ candidates is kept by rating with threshold 5\.1; the best is", printed)
    # What was computed before stays.
    assert (finished / "curation" / "1" / "shards" / "1-of-2.parquet").read_bytes() == rated
    # And the job that failed is made up for, with whatever setting comes next.
    for path in ("small.yaml", "strict.yaml"):
        code, printed = run_snakemake(folder, "--dry-run", "--configfile", path)
        assert code == 0 and re.search(r"^filter_candidates +\d", printed, re.MULTILINE), printed
