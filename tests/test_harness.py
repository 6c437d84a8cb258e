"""Tasks of lm-evaluation-harness: what a folder of them may hold, and what the harness makes of a tiny model."""

import json
import shutil
from importlib.util import find_spec

import pytest
import yaml
from conftest import run_snakemake, tiny_llama

from backtranslation import engines, harness, models
from backtranslation.records import WorkFile
from backtranslation.templates import Template

installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed; `pip install lm_eval==0.4.13`")
TASK = {
    "task": "numbers",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "numbers.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}
ROWS = [{"question": f"What comes after {n}? <|im_end|>", "choices": [str(n - 1), str(n + 1), "text"], "answer": n % 3} for n in range(10, 18)]
PRECISION = {"dtype": "float32", "quantization": "none"}


def write(folder, text="", **changes):
    folder.mkdir(exist_ok=True)
    (folder / "numbers.yaml").write_text(text or yaml.safe_dump({**TASK, **changes}))
    (folder / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.mark.parametrize(
    "text, message",
    [
        ("task: !function code.run", r"plain YAML, without functions .*!function"),
        ("task: [", r"cannot be read as plain YAML"),
        ("- numbers", r"expected a mapping"),
        ("task: numbers\ninclude: other.yaml", r"include cannot be used here"),
        ("task: numbers\nclass: code.Task\nunsafe_code: true", r"class, unsafe_code cannot be used here"),
        ("task: =cmd\ndataset_path: json", r"task: expected a name"),
        ("task: numbers\ndataset_path: pandas", r"dataset_path: expected one of csv"),
        ("task: numbers\ndataset_path: json\ndataset_kwargs: {trust_remote_code: true}", r"trust_remote_code cannot be used here"),
        ("task: numbers\ndataset_path: json\ndataset_kwargs: {data_files: 'https://a.b/c.jsonl'}", r"expected a mapping of splits"),
        ("task: numbers\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}", r"data_files\.test: none\.jsonl: no such file"),
    ],
)
def test_what_would_run_code_or_cannot_be_read_is_refused(tmp_path, text, message):
    with pytest.raises(harness.HarnessError, match=rf"numbers\.yaml: .*{message}"):
        harness.read_tasks(write(tmp_path / "tasks", text))


def test_settings_that_load_code_in_places_below_are_refused(tmp_path):
    for changes, message in (
        ({"generation_kwargs": {"custom_generate": "folder"}}, "custom_generate cannot be used"),
        ({"metric_list": ["acc"]}, "metric_list: expected a list of mappings"),
        ({"dataset_kwargs": {"data_files": {"test": "numbers.jsonl"}, "streaming": True}}, "streaming cannot be used"),
    ):
        with pytest.raises(harness.HarnessError, match=message):
            harness.read_tasks(write(tmp_path / "tasks", **changes))
    shutil.copy(tmp_path / "tasks" / "numbers.jsonl", tmp_path)
    (write(tmp_path / "tasks") / "again.yaml").write_text(yaml.safe_dump(TASK))
    with pytest.raises(harness.HarnessError, match="another file has a task numbers too"):
        harness.read_tasks(tmp_path / "tasks")


def test_the_target_says_what_is_missing_and_shows_its_rule(tmp_path):
    write(tmp_path / "tasks")
    for asked, message in (
        ({}, "release.harness: name a folder of tasks, or names"),
        ({"tasks": "none"}, "release.harness.tasks: none: no such folder"),
        ({"tasks": "tasks"}, "Measuring the models on tasks of lm-evaluation-harness" if find_spec("lm_eval") else "`pip install lm_eval==0.4.13`"),
    ):
        (tmp_path / "my.yaml").write_text(yaml.safe_dump({"release": {"harness": asked}}))
        code, printed = run_snakemake(tmp_path, "harness", "-n", "--cores", "1", "--configfile", "my.yaml")
        assert message in printed, printed
        assert not asked or "Traceback" not in printed, printed
        assert code == (0 if "Measuring" in message else 1)


@installed
@pytest.mark.parametrize("tokenizer, name", [("chatml_tokenizer", "auto"), ("llama_tokenizer", "llama2"), ("llama_tokenizer", "plain")])
def test_a_model_is_asked_as_in_training_and_scored_by_its_own_likelihoods(tmp_path, request, tokenizer, name, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    folder = tiny_llama(tmp_path / "model", request.getfixturevalue(tokenizer))
    template = Template(models.load_tokenizer(folder), name)
    seen, answered = [], HFLM._loglikelihood_tokens
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", lambda self, asked, **rest: seen.extend(context + answer for _, context, answer in asked) or answered(self, asked, **rest))
    tasks = harness.load(write(tmp_path / "tasks"), [], tmp_path / "cache")
    work = WorkFile(tmp_path / "work", name)
    results = harness.measure(tasks, folder, None, template, "Be kind.", 4096, PRECISION, None, 1, work)

    # The harness asks for every choice of every row, in the order of rows.
    prompts = [template.prompt(row["question"], "Be kind.") for row in ROWS for _ in row["choices"]]
    assert [ids[: len(prompt)] for ids, prompt in zip(seen, prompts, strict=True)] == prompts
    assert all(ids[0] == template.tokenizer.bos_token_id != ids[1] for ids in seen)
    engine = engines.TransformersEngine(folder, template.stop_id, dtype="float32")
    answers = [ids[len(prompt) :] for ids, prompt in zip(seen, prompts, strict=True)]
    sums = [values.sum() for values in engine.sequence_logprobs(prompts, answers)]
    right = [max(range(3), key=lambda k: sums[3 * n + k]) == row["answer"] for n, row in enumerate(ROWS)]
    share = sum(right) / len(right)
    rows = {row["metric"]: row for row in harness.table({"base": results})}
    assert rows["acc"]["value"] == pytest.approx(share) and rows["acc"]["n"] == len(ROWS)
    assert rows["acc"]["stderr"] == pytest.approx((share * (1 - share) / (len(ROWS) - 1)) ** 0.5)
    # What was measured is not measured again.
    seen.clear()
    assert harness.measure(tasks, folder, None, template, "Be kind.", 4096, PRECISION, None, 1, WorkFile(tmp_path / "work", name)) == results and not seen


@installed
def test_templates_reach_nothing_and_metrics_are_the_harness_s_own(tmp_path):
    for changes, message in (
        ({"doc_to_text": "{{ question.__class__.__mro__ }}"}, "numbers: the task cannot be used .*unsafe"),
        ({"doc_to_text": "{{ asked }}"}, "numbers: the task cannot be used .*'asked' is undefined"),
        ({"test_split": "rest"}, "numbers: the task cannot be used .*rest"),
        ({"metric_list": [{"metric": "./metric.py"}]}, r"numbers: metric_list: .*\./metric\.py"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "numbers: metric_list: .*hf_evaluate"),
    ):
        with pytest.raises(harness.HarnessError, match=message):
            harness.load(write(tmp_path / "tasks", **changes), [], tmp_path / "cache")
    for row, message in (('{"question": "And then?", "choices": ["a", "b"]}', r"row 9: the field answer is missing"), ('{"question', "cannot be read as json")):
        folder = write(tmp_path / "tasks")
        with open(folder / "numbers.jsonl", "a") as stream:
            stream.write(row + "\n")
        with pytest.raises(harness.HarnessError, match=rf"numbers\.jsonl: {message}"):
            harness.load(folder, [], tmp_path / "cache")
    with pytest.raises(harness.HarnessError, match=r"release\.harness\.names: nothing: no such task in the folder \(numbers\)"):
        harness.load(write(tmp_path / "tasks"), ["nothing"], tmp_path / "cache")
