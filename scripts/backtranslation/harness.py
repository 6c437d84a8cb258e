"""The untouched and the forward model on tasks of lm-evaluation-harness (EleutherAI, lm_eval 0.4.13), without a network.

The harness lets a task file name functions of Python, metrics that are programs, and templates that reach into the process.
Here a folder of tasks is data: its files are read by us and may hold a few keys alone, and templates run in jinja's sandbox.
"""

import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import yaml

from backtranslation import models
from backtranslation.logs import computing, logger
from backtranslation.records import Row, WorkFile
from backtranslation.templates import Template

KEYS = frozenset(
    [
        "task", "task_alias", "tag", "metadata", "dataset_path", "dataset_kwargs", "training_split", "validation_split", "test_split", "fewshot_split",
        "num_fewshot", "description", "doc_to_text", "doc_to_target", "doc_to_choice", "gen_prefix", "target_delimiter", "fewshot_delimiter",
        "output_type", "generation_kwargs", "repeats", "filter_list", "metric_list",
    ]
)
"""What a task file may hold. Left out is what runs code (class, process_docs, use_prompt, unsafe_code, ...) or reads more files (include)."""
DATA = ("csv", "json", "parquet", "text")
"""Kinds of data files; datasets has others that are read as pickles."""
GENERATION = frozenset({"until", "do_sample", "temperature", "top_p", "top_k", "max_gen_toks"})
"""Settings of writing; transformers has others, such as custom_generate, that load code."""


class HarnessError(ValueError):
    """Tasks that cannot be measured; the message names file and key."""


def read_tasks(folder: Path) -> dict[str, Row]:
    """The tasks that the *.yaml files of `folder` describe, by name, with whole paths of their data files.

    Raises HarnessError when a file is no task, or would have code run.
    """
    if not folder.is_dir():
        raise HarnessError(f"release.harness.tasks: {folder}: no such folder")
    found: dict[str, Row] = {}
    for path in sorted(folder.rglob("*.yaml")):
        task = _read_task(path)
        if task["task"] in found:
            raise HarnessError(f"{path}: task: another file has a task {task['task']} too")
        found[task["task"]] = task
    if not found:
        raise HarnessError(f"release.harness.tasks: {folder}: holds no task files (*.yaml)")
    return found


def files_of(folder: str) -> list[str]:
    """All files of a folder of tasks that can be read, so that new data are measured anew."""
    return sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())


def _read_task(path: Path) -> Row:
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HarnessError(f"{path}: cannot be read as plain YAML, without functions ({' '.join(str(error).split())})") from error
    _check_keys(path, "the file", task, KEYS)
    if not re.fullmatch(r"\w[\w.-]*", str(task.get("task"))):
        raise HarnessError(f"{path}: task: expected a name of letters, digits, dots and dashes")
    if task.get("dataset_path") not in DATA:
        raise HarnessError(f"{path}: dataset_path: expected one of {', '.join(DATA)}, with the files in dataset_kwargs.data_files")
    given = task.get("dataset_kwargs")
    _check_keys(path, "dataset_kwargs", given, frozenset({"data_files"}))
    splits = given.get("data_files")
    if not isinstance(splits, dict) or not splits:
        raise HarnessError(f"{path}: dataset_kwargs.data_files: expected a mapping of splits to files, such as {{test: rows.jsonl}}")
    for split, name in splits.items():
        if not isinstance(name, str) or not (path.parent / name).is_file():
            raise HarnessError(f"{path}: dataset_kwargs.data_files.{split}: {name}: no such file beside the task")
    task["dataset_kwargs"] = {"data_files": {split: str((path.parent / name).resolve()) for split, name in splits.items()}}
    if "generation_kwargs" in task:
        _check_keys(path, "generation_kwargs", task["generation_kwargs"], GENERATION)
    metrics = task.get("metric_list", [])
    if not isinstance(metrics, list) or not all(isinstance(entry, dict) and isinstance(entry.get("metric"), str) for entry in metrics):
        raise HarnessError(f"{path}: metric_list: expected a list of mappings, each with the name of a metric")
    return task


def _check_keys(path: Path, where: str, value: Any, allowed: frozenset[str]) -> None:
    if not isinstance(value, dict):
        raise HarnessError(f"{path}: {where}: expected a mapping")
    if unknown := sorted(set(map(str, value)) - allowed):
        raise HarnessError(f"{path}: {where}: {', '.join(unknown)} cannot be used here; what can: {', '.join(sorted(allowed))}")


def load(folder: Path | None, names: list[str], cache: Path) -> dict[str, Any]:
    """By name, what is to be measured with its data, as `lm_eval.evaluate` takes it; the data of `folder` are kept in `cache` meanwhile.

    `names` are tasks of `folder`, or the harness's own tasks and groups; none are all of `folder`. Raises HarnessError when one
    is not to be had.
    """
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from lm_eval.api import metrics  # noqa: F401 - the registries are filled by it
    from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
    from lm_eval.tasks import TaskManager

    # In place of its own, in which a template may call anything.
    utils.env = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters["regex_replace"] = utils.regex_replace
    own = read_tasks(folder) if folder else {}
    names = names or list(own)
    # Looking through the harness's own takes seconds.
    manager = TaskManager(include_defaults=not set(names) <= set(own))
    found = {}
    for name in names:
        if name in own:
            for entry in own[name].get("metric_list", []):
                # What it does not know it would look for as a program.
                if entry["metric"] not in METRIC_REGISTRY or entry.get("aggregation", "mean") not in AGGREGATION_REGISTRY or "hf_evaluate" in entry:
                    raise HarnessError(f"{name}: metric_list: {entry}: not a metric of the harness's own, which are {', '.join(sorted(METRIC_REGISTRY))}")
            own[name]["dataset_kwargs"]["cache_dir"] = str(cache)
            _check_rows(own[name])
        elif name not in manager.all_tasks:
            raise HarnessError(f"release.harness.names: {name}: no such task in the folder ({', '.join(own) or 'none is named'}), and none of the harness's own")
        try:
            found[name] = manager.load(own.get(name, name))
        except Exception as error:  # whatever its parts find wrong with task or data, each in its own way
            raise HarnessError(f"{name}: the task cannot be used ({type(error).__name__}: {' '.join(str(error.__cause__ or error).split())})") from error
    return found


def _check_rows(task: Row) -> None:
    """The harness asks for the word "None" where a field has no value, and finds a missing answer when all rows are measured."""
    from datasets import load_dataset

    kind, given = task["dataset_path"], task["dataset_kwargs"]
    for split, path in given["data_files"].items():
        try:
            rows = load_dataset(kind, data_files={split: path}, split=split, cache_dir=given["cache_dir"])
        except Exception as error:  # as below
            raise HarnessError(f"{path}: cannot be read as {kind} ({' '.join(str(error.__cause__ or error).split())})") from error
        for number, row in enumerate(rows, start=1):
            for field, value in row.items():
                if value is None:
                    raise HarnessError(f"{path}: row {number}: the field {field} is missing")


def measure(
    tasks: dict[str, Any], folder: Path, adapter: Path | None, template: Template, system: str | None, batch_tokens: int, precision: dict[str, str], limit: int | None, random_seed: int, work: WorkFile
) -> dict[str, Any]:
    """The harness's results by name of task for the model in `folder` with `adapter`, asked by `template` with the system text `system`.

    `tasks` come from `load`; of each the first `limit` rows. Prompts are the template's, so they begin with one BOS where
    the model has one, and special tokens in rows are broken up. Tasks that `work` holds are not measured again.
    """
    import torch
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.utils import handle_non_serializable

    class Asked(HFLM):
        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return super().apply_chat_template([{**turn, "content": template.neutral(turn["content"])} for turn in chat_history], add_generation_prompt)

    # Which prints the first prompt of each task.
    logging.getLogger("lm_eval").setLevel(logging.INFO)
    template.tokenizer.chat_template = template.jinja
    model = models.load(folder, precision["dtype"], precision["quantization"], adapter)
    batch = max(1, batch_tokens // model.config.max_position_embeddings)
    asked = Asked(pretrained=model, tokenizer=template.tokenizer, batch_size=batch, softmax_dtype="float32")
    options = {"bootstrap_iters": 1000, "write_out": True, "log_samples": False, "apply_chat_template": True, "fewshot_as_multiturn": True}
    for name, loaded in tasks.items():
        if name in work.done:
            continue
        logger.info("%s: %s", adapter or folder, name)
        random.seed(random_seed)
        torch.manual_seed(random_seed)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(random_seed)
        with computing():
            found = evaluate(asked, loaded, limit=limit, system_instruction=system, **options)
        for described in found["configs"].values():
            # Paths of this machine and this job.
            described.pop("dataset_kwargs", None)
        work.add(name, json.loads(json.dumps(found, default=handle_non_serializable)))
    return {name: work.done[name] for name in tasks}


def table(results: dict[str, dict[str, Any]]) -> list[Row]:
    """Lines of model, task (or group), metric, value, its standard error (None where there is none) and n, from the results by model and name.

    A metric is followed by its filter where the task has filters.
    """
    rows = []
    for model, measured in results.items():
        for task, values in [pair for found in measured.values() for pair in found["results"].items()]:
            for key, value in values.items():
                metric, _, filtered = key.partition(",")
                if not filtered or metric.endswith("_stderr"):
                    continue
                error = values.get(f"{metric}_stderr,{filtered}")
                error = error if isinstance(error, float) else None
                rows.append({"model": model, "task": task, "metric": metric if filtered == "none" else key, "value": value, "stderr": error, "n": values["sample_len"]})
    return rows
