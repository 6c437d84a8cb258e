"""Training changes the adapter and nothing else, learns to stop, and repeats bit for bit."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from conftest import ROOT, pair
from safetensors.torch import load_file

from backtranslation import models, training
from backtranslation.augment import for_inference, mix, reverse
from backtranslation.records import read_json, settle, sha256_of

SETTINGS = {
    "learning_rate": 0.01,
    "schedule": "cosine",
    "warmup": 0.1,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "batch_size": 2,
    "gradient_accumulation": 2,
    "max_tokens": 200,
    "gradient_checkpointing": False,
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.1, "target_modules": "all-linear"},
    "dtype": "float32",
    "quantization": "none",
    "final_learning_rate": 0.0,
    "packing": False,
    "optimizer": "adamw",
    "epochs": 3,
    "steps": None,
}
PAIRS = [pair(n) for n in range(1, 13)]
HELDOUT = [pair(n) for n in range(20, 24)]
PROMPT = "{response}\n\nWrite the instruction."


def run(tiny, template, output, pairs=PAIRS, heldout=HELDOUT, options=None, **changes):
    settings = {**copy.deepcopy(SETTINGS), **changes}
    return training.train(reverse(pairs, PROMPT), reverse(heldout, PROMPT), tiny, template, settings, 42, output, **(options or {}))


def losses_of(folder) -> list[float]:
    return pd.read_csv(folder / "history.tsv", sep="\t")["loss"].dropna().tolist()


def whole_checkpoints(folder) -> set[str]:
    # Not with rglob, which fails when a folder vanishes under it.
    return {place for place, _, names in os.walk(folder) if "whole.json" in names}


def files_of(folder) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def trained(tiny, template, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "adapter"
    before = sha256_of(tiny / "model.safetensors")
    kept, dropped = run(tiny, template, output)
    assert len(kept) == 12 and not dropped
    assert sha256_of(tiny / "model.safetensors") == before
    return output


def test_adapter_is_on_all_linear_layers_and_changed(trained):
    weights = load_file(trained / "adapter_model.safetensors")
    layers = {name.split(".")[-3] for name in weights}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # B starts at zero, so anything else was learned.
    assert all(value.abs().max() > 0 for name, value in weights.items() if "lora_B" in name)
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_history_and_settings_are_recorded(trained):
    history = pd.read_csv(trained / "history.tsv", sep="\t")
    losses = history["heldout_loss"].dropna()
    assert len(losses) == 1 + SETTINGS["epochs"] and losses.iloc[-1] < losses.iloc[0]
    recorded = read_json(trained / "training.json")
    assert (recorded["dtype"], recorded["examples"], recorded["steps"]) == ("float32", 12, 9)
    assert sorted(path.name for path in trained.parent.iterdir()) == ["adapter"]


def test_same_seed_same_adapter_bit_for_bit(trained, tiny, template, tmp_path):
    run(tiny, template, tmp_path / "again")
    assert sha256_of(tmp_path / "again" / "adapter_model.safetensors") == sha256_of(trained / "adapter_model.safetensors")


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}, {"quantization": "nf4"}, {"quantization": "nf4_double"}])
def test_other_precisions_train_too(tiny, template, tmp_path, changes):
    run(tiny, template, tmp_path / "adapter", **changes)
    history = pd.read_csv(tmp_path / "adapter" / "history.tsv", sep="\t")["heldout_loss"].dropna()
    assert history.iloc[-1] < history.iloc[0]


@pytest.mark.parametrize("quantization", ["none", "nf4_double"])
def test_gradient_is_the_same_after_an_evaluation(tiny, quantization):
    """bitsandbytes loses it on some CPUs, unless it is kept from repacking the weights."""
    model = models.load(tiny, "bfloat16", quantization, train=True)
    embedded = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8]])).detach().requires_grad_()

    def gradient():
        model.train()
        loss = model(inputs_embeds=embedded, labels=torch.tensor([[5, 6, 7, 8]])).loss
        return torch.autograd.grad(loss, embedded)[0]

    before = gradient()
    with torch.no_grad():
        model.eval()(torch.tensor([[5, 6, 7, 8]]))
    assert torch.equal(gradient(), before) and before.abs().max() > 0


def test_the_model_learns_to_stop(tiny, template, tmp_path):
    """With EOS outside the loss, or pad == EOS, a model runs on; here it must learn to end the turn."""
    same = [pair(n, "Why?", "Because.") for n in range(1, 13)]
    run(tiny, template, tmp_path / "adapter", pairs=same, epochs=15, learning_rate=0.02)
    from backtranslation.engines import Sampling, TransformersEngine

    engine = TransformersEngine(tiny, template.stop_id, tmp_path / "adapter", dtype="float32")
    prompt = template.prompt("Because.\n\nWrite the instruction.")
    ((_, completion),) = engine.generate([prompt], Sampling(20, 0), [0])
    assert (completion.text, completion.finish_reason) == ("Why?", "stop")


def test_the_output_layer_sees_completions_alone(tiny, template, tmp_path, monkeypatch):
    """On a CPU too, where trl would have it see prompts and padding."""
    from trl.trainer.utils import _ChunkedLogProbFunction as head

    seen, plain = [], head.apply
    monkeypatch.setattr(head, "apply", lambda hidden, *args: (seen.append(len(hidden)), plain(hidden, *args))[1])
    run(tiny, template, tmp_path, heldout=[], epochs=1)
    rows = training.encode(reverse(PAIRS, PROMPT), template, SETTINGS["max_tokens"])[0]
    assert sum(seen) == sum(label != -100 for row in rows for label in row["labels"])


def test_long_examples_are_dropped_and_never_cut(tiny, template, tmp_path):
    long = pair(99, response="too long " * 400)
    examples = reverse([*PAIRS, long], PROMPT)
    kept, dropped = run(tiny, template, tmp_path / "adapter", pairs=[*PAIRS, long], epochs=0.1)
    settle("train", examples, kept, dropped)
    assert [(row["id"], row["reason"]) for row in dropped] == [(long["id"], "over_max_tokens")]


def test_nothing_left_to_train_on(tiny, template, tmp_path):
    with pytest.raises(ValueError, match=r"nothing to train on: all 12 examples are over training\.max_tokens"):
        run(tiny, template, tmp_path / "adapter", max_tokens=16)
    assert not (tmp_path / "adapter").exists()


def test_tags_tell_seed_from_augmented_and_both_serve_at_inference():
    tags = {"seed": "A.", "augmented": "B."}
    curated = [{"id": "c", "instruction": "Ask.", "text": "Text."}]
    examples = mix(PAIRS[:1], curated, tags)
    assert [(e["origin"], e["system"], e["completion"]) for e in examples] == [
        ("seed", "A.", PAIRS[0]["response"]),
        ("augmented", "B.", "Text."),
    ]
    assert for_inference(PAIRS[:1], tags)[0]["system"] == "A. B."
    assert for_inference(PAIRS[:1], {"seed": None, "augmented": None})[0]["system"] is None


def test_merged_model_stands_alone_and_agrees(trained, tiny, template, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models.export(tiny, trained, template, tmp_path)
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([template.prompt("What is the number 3?")])
    messages = [{"role": "user", "content": "What is the number 3?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids[0].tolist()
    with torch.inference_mode():
        expected = models.load(tiny, "float32", adapter=trained)(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    assert merged.generation_config.eos_token_id == template.stop_id


def test_merged_model_stops_where_it_was_trained_to(tiny, tmp_path):
    """A base model whose text ends with another token than a turn of the template."""
    from conftest import byte_tokenizer, tiny_llama
    from transformers import GenerationConfig

    from backtranslation.templates import Template

    base = tiny_llama(tmp_path / "base", byte_tokenizer(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"], eos_token="<|endoftext|>", pad_token="<|pad|>"))
    template = Template(models.load_tokenizer(base), "chatml")
    run(base, template, tmp_path / "adapter", steps=1)
    models.export(base, tmp_path / "adapter", template, tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [template.stop_id, 0] != [0, 0]


def test_a_model_too_large_for_float16_is_refused_by_name(tiny, template, tmp_path):
    from transformers import AutoModelForCausalLM

    from backtranslation.engines import Sampling, TransformersEngine

    # On a CPU without instructions for it too.
    engine = TransformersEngine(tiny, template.stop_id, dtype="float16")
    assert len(list(engine.generate([template.prompt("Why?")], Sampling(4, 0), [0]))) == 1
    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.lm_head.weight.data.mul_(1e5)
    model.save_pretrained(tmp_path)
    models.load_tokenizer(tiny).save_pretrained(tmp_path)
    assert models.load(tmp_path, "float32")
    with pytest.raises(models.ModelError, match=r"precision\.dtype: float16, .* too narrow for this model's activations; set float32"):
        models.load(tmp_path, "float16")


def test_a_merged_model_too_large_for_the_gpu_is_not_measured(trained, tiny, template, tmp_path, monkeypatch):
    from backtranslation import engines
    from backtranslation.evaluation import cost_of_merging

    merge = models.export(tiny, trained, template, tmp_path)
    assert cost_of_merging(reverse(PAIRS[:2], PROMPT), tiny, trained, tmp_path, template, merge, 2048)["change"] == pytest.approx(0, abs=1e-3)
    load = engines.models.load

    def full(folder, *arguments, **options):
        if folder == tmp_path:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(folder, *arguments, **options)

    monkeypatch.setattr(engines.models, "load", full)
    found = cost_of_merging(reverse(PAIRS[:2], PROMPT), tiny, trained, tmp_path, template, merge, 2048)
    assert found["unmerged_loss"] > 0 and found["merged_loss"] is found["change"] is None


def test_adapter_of_another_base_is_refused(trained, tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "other")
    with pytest.raises(models.ModelError, match="this adapter was trained on"):
        models.load(tmp_path / "other", adapter=trained)


# A stand-in for a job: prints a line per step, so that a test knows when to end it.
JOB = """
import json, sys
from pathlib import Path
from backtranslation import models, training
from backtranslation.templates import Template
task = json.loads(Path(sys.argv[1]).read_text())
base = Path(task["base"])
training.train(task["examples"], task["heldout"], base, Template(models.load_tokenizer(base)), task["settings"], 42, Path(sys.argv[2]), checkpoint_steps=2)
"""


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tiny, template, tmp_path):
    """With dropout, several epochs, evaluations and an order drawn per epoch: all of that must come back."""
    settings = {**copy.deepcopy(SETTINGS), "epochs": 4}
    task = {"base": str(tiny), "examples": reverse(PAIRS, PROMPT), "heldout": reverse(HELDOUT, PROMPT), "settings": settings}
    (tmp_path / "task.json").write_text(json.dumps(task))
    run(tiny, template, tmp_path / "whole", epochs=4)
    output = tmp_path / "killed"
    command = [sys.executable, "-c", JOB, tmp_path / "task.json", output]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    dice, kills, seen = random.Random(7), 0, set()
    for _ in range(5):
        job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        before = whole_checkpoints(output)
        # Killed soon after its first new checkpoint, or before it when one takes too long.
        limit = time.monotonic() + 60
        while job.poll() is None and time.monotonic() < limit and whole_checkpoints(output) <= before:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.15))
        job.send_signal(signal.SIGKILL)
        kills += job.wait() == -signal.SIGKILL
        seen |= {int(place.rpartition("-")[2]) for place in whole_checkpoints(output)}
    assert kills >= 3 and len(seen) >= 3
    subprocess.run(command, env=environment, check=True)
    assert files_of(output) == files_of(tmp_path / "whole")
    assert not (output / ".work").exists()


class Killed(Exception):
    pass


@pytest.fixture
def interrupted(tiny, template, tmp_path, monkeypatch):
    """Folder of a run that got as far as step 7 of 9, with checkpoints after 2, 4 and 6 steps."""
    steps = []

    def stop(losses):
        steps.append(len(losses))
        if len(losses) == 7:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(training, "diverging", stop)
        with pytest.raises(Killed):
            run(tiny, template, tmp_path / "adapter", options={"checkpoint_steps": 2})
    assert steps[-1] == 7
    return tmp_path / "adapter"


def damage_newest(output):
    newest = max(output.rglob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert newest.name == "checkpoint-6"
    content = bytearray((newest / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "optimizer.pt").write_bytes(content)


def half_write_newest(output):
    newest = max(output.rglob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (newest / "whole.json").unlink()


@pytest.mark.parametrize("harm, from_step", [(lambda output: None, 6), (damage_newest, 4), (half_write_newest, 4)])
def test_goes_on_from_the_newest_whole_checkpoint(interrupted, trained, tiny, template, caplog, harm, from_step):
    assert {path.name for path in interrupted.rglob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    harm(interrupted)
    with caplog.at_level("INFO", "backtranslation"):
        run(tiny, template, interrupted, options={"checkpoint_steps": 2})
    assert f"going on after step {from_step}" in caplog.text
    assert files_of(interrupted) == files_of(trained)


@pytest.mark.parametrize("changes", [{"learning_rate": 0.02}, {"pairs": [*PAIRS[:-1], pair(77)]}, {"options": {"identity": "other weights"}}])
def test_another_setting_begins_afresh(interrupted, tiny, template, caplog, changes):
    with caplog.at_level("INFO", "backtranslation"):
        run(tiny, template, interrupted, epochs=3, **changes)
    assert "going on" not in caplog.text


def test_training_without_room_for_a_checkpoint_stops_and_goes_on_from_the_one_before(trained, tiny, template, tmp_path, monkeypatch, caplog):
    import transformers

    save = transformers.Trainer._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step == 4:
            raise OSError(28, "No space left on device")
        save(self, folder)

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"the checkpoint of step 4 could not be written: \[Errno 28\] No space left"):
        patched.setattr(transformers.Trainer, "_save_optimizer_and_scheduler", full)
        run(tiny, template, tmp_path / "adapter", options={"checkpoint_steps": 2})
    with caplog.at_level("INFO", "backtranslation"):
        run(tiny, template, tmp_path / "adapter", options={"checkpoint_steps": 2})
    assert "going on after step 2" in caplog.text
    assert files_of(tmp_path / "adapter") == files_of(trained)


def test_loss_that_is_no_number_stops_with_step_and_examples(tiny, template, tmp_path):
    with pytest.raises(training.TrainingError, match=r"the loss is nan at step 3, examples [0-9a-f]{16}, [0-9a-f]{16}; look at these, or lower") as stopped:
        run(tiny, template, tmp_path / "adapter", learning_rate=1e30, max_grad_norm=1e30)
    named = set(str(stopped.value).split("examples ")[1].split(";")[0].split(", "))
    assert named <= {row["id"] for row in PAIRS}
    assert list((tmp_path / "adapter").rglob("*.*")) == [tmp_path / "adapter" / ".work"]


def test_diverging_loss_stops(tiny, template, tmp_path, monkeypatch):
    assert training.diverging([3.0, 2.5] * 10) is None
    assert training.diverging([0.01] * 10 + [0.9] * 5) is None
    assert training.diverging([10.0] + [2.0] * 20 + [30.0]) is None
    assert training.diverging([3.0] * 7 + [9.0] * 5) == "the loss diverges, from 3.00 to 9.00 (means of five steps),"
    diverging = training.diverging
    monkeypatch.setattr(training, "diverging", lambda losses: diverging([0.1] * 5 + [50.0] * 5) if len(losses) == 4 else None)
    with pytest.raises(training.TrainingError, match=r"the loss diverges, from 0\.10 to 50\.00 \(means of five steps\), at step 4, examples \w{16}, \w{16};"):
        run(tiny, template, tmp_path / "adapter")


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_ends_at_its_end_value(tiny, template, tmp_path, schedule):
    """1e-5 -> 9e-6 in the paper is a value; taken as a multiplier, training would end at 9e-11."""
    run(tiny, template, tmp_path / "adapter", schedule=schedule, learning_rate=1e-5, final_learning_rate=9e-6, warmup=0.0, steps=10, heldout=[])
    rates = pd.read_csv(tmp_path / "adapter" / "history.tsv", sep="\t")["learning_rate"].tolist()
    assert rates[0] == 1e-5 and rates == sorted(rates, reverse=True)
    if schedule == "linear":
        assert rates == pytest.approx([1e-5 - 1e-6 * step / 10 for step in range(10)])
    assert (9e-6 < rates[-1] < 9.2e-6) if schedule != "constant" else rates[-1] == 1e-5


@pytest.mark.parametrize("steps", [2, 7])
def test_steps_override_epochs(tiny, template, tmp_path, steps):
    run(tiny, template, tmp_path / "adapter", steps=steps, epochs=3)
    assert read_json(tmp_path / "adapter" / "training.json")["steps"] == steps == len(losses_of(tmp_path / "adapter"))
    assert pd.read_csv(tmp_path / "adapter" / "history.tsv", sep="\t")["heldout_loss"].notna().sum() >= 2


def test_named_layers_alone_are_trained(tiny, template, tmp_path):
    run(tiny, template, tmp_path / "adapter", steps=1, lora={**SETTINGS["lora"], "target_modules": ["q_proj", "v_proj"]})
    assert {name.split(".")[-3] for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")} == {"q_proj", "v_proj"}


@pytest.fixture(scope="module")
def whole(tiny, template, tmp_path_factory):
    """All weights trained, in bfloat16."""
    output = tmp_path_factory.mktemp("whole") / "adapter"
    run(tiny, template, output, lora=None, dtype="bfloat16", learning_rate=1e-3)
    return output


def test_all_weights_are_trained_without_an_adapter(whole, tiny):
    assert {path.name for path in whole.iterdir()} == {*models.MODEL_FILES, "training.json", "history.tsv"}
    before, after = load_file(tiny / "model.safetensors"), load_file(whole / "model.safetensors")
    assert set(before) == set(after) and {value.dtype for value in after.values()} == {torch.bfloat16}
    # Not even bfloat16's rounding hides the change.
    assert all((after[name] != value.to(torch.bfloat16)).any() for name, value in before.items() if "layernorm" not in name)
    losses = pd.read_csv(whole / "history.tsv", sep="\t")["heldout_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]


def test_a_whole_model_serves_wherever_an_adapter_does(whole, trained, tiny, template, tmp_path):
    from transformers import AutoModelForCausalLM

    from backtranslation.engines import Sampling, TransformersEngine

    prompt = template.prompt("What is the number 3?")
    direct = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        expected = direct(input_ids=ids).logits
        assert torch.equal(models.load(tiny, "float32", adapter=whole)(input_ids=ids).logits, expected)
        assert not torch.allclose(models.load(tiny, "float32")(input_ids=ids).logits, expected, atol=1e-2)
    engine = TransformersEngine(tiny, template.stop_id, whole, dtype="float32")
    ((_, completion),) = engine.generate([prompt], Sampling(5, 0), [0])
    assert completion.tokens[0] == expected[0, -1].argmax()
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}}))
    assert models.identity(tmp_path / "manifest.json", whole)[1] == sha256_of(whole / "model.safetensors")
    models.export(tiny, whole, template, tmp_path)
    merged = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(merged[name], value) for name, value in load_file(whole / "model.safetensors").items())
    with pytest.raises(models.ModelError, match="this adapter was trained on"):
        models.load(whole, adapter=whole)


def test_an_adapter_takes_the_place_of_a_whole_model(whole, tiny, template, tmp_path):
    import shutil

    shutil.copytree(whole, tmp_path / "adapter")
    run(tiny, template, tmp_path / "adapter", steps=1)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {*models.ADAPTER_FILES, "training.json", "history.tsv"}


@pytest.fixture(params=["tiny", "smollm2"])
def base(request):
    return request.getfixturevalue(request.param)


def test_qlora_trains_the_adapter_and_leaves_the_4_bit_weights(base, tmp_path, monkeypatch):
    """And the model that is merged from both is as good as both, on pairs it was not trained on."""
    from backtranslation.evaluation import cost_of_merging
    from backtranslation.templates import Template

    frozen, load = [], models.load

    def watched(*arguments, **options):
        model = load(*arguments, **options)
        frozen.extend((parameter, parameter.data.clone()) for parameter in model.parameters())
        return model

    # Pairs that people wrote: on sentences of one pattern a few steps bring the loss so near to 0 that
    # bitsandbytes' two kernels for a CPU alone differ by a hundredth of it.
    written = [json.loads(line) for line in (ROOT / "config" / "seed" / "pairs.jsonl").read_text().splitlines()]
    short = [{"id": f"{n:016x}", **row} for n, row in enumerate(written) if len(row["response"]) < 200]
    template = Template(models.load_tokenizer(base))
    with monkeypatch.context() as patched:
        patched.setattr(models, "load", watched)
        run(base, template, tmp_path / "adapter", dtype="auto", quantization="nf4_double", steps=3, pairs=short[8:20], heldout=[], learning_rate=1e-3, max_tokens=2048)
    assert frozen and all(torch.equal(parameter.data, before) and parameter.grad is None for parameter, before in frozen)
    assert any(parameter.dtype == torch.uint8 for parameter, _ in frozen)
    learned = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for name, value in learned.items() if "lora_B" in name)
    costs = {}
    for into in ("dequantized", "original"):
        merge = models.export(base, tmp_path / "adapter", template, tmp_path / into, into)
        costs[into] = cost_of_merging(reverse(short[:8], PROMPT), base, tmp_path / "adapter", tmp_path / into, template, merge, 2048)
        print(base.parent.name, into, costs[into])
    assert abs(costs["dequantized"]["change"]) < 0.01
    assert costs["dequantized"]["change"] != costs["original"]["change"]


def test_packing_changes_no_loss_and_lets_no_example_see_another(tiny, template, tmp_path):
    """One step over all examples: packed or padded, the gradient is the same up to rounding."""
    settings = {"steps": 1, "batch_size": 12, "gradient_accumulation": 1, "lora": {**SETTINGS["lora"], "dropout": 0.0}, "warmup": 0.0, "schedule": "constant"}
    run(tiny, template, tmp_path / "padded", **settings)
    run(tiny, template, tmp_path / "packed", packing=True, **settings)
    assert losses_of(tmp_path / "packed") == pytest.approx(losses_of(tmp_path / "padded"), abs=1e-5)
    padded, packed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("padded", "packed"))
    norms = [pd.read_csv(tmp_path / name / "history.tsv", sep="\t")["grad_norm"].dropna().iloc[0] for name in ("padded", "packed")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and set(padded) == set(packed)
    assert read_json(tmp_path / "packed" / "training.json")["examples"] == 12


def test_packing_puts_several_examples_into_a_row(tiny, template, tmp_path):
    run(tiny, template, tmp_path / "packed", packing=True, batch_size=1, gradient_accumulation=1, epochs=1)
    assert 1 < len(losses_of(tmp_path / "packed")) < len(PAIRS)


def test_two_processes_take_the_same_way_as_one_with_twice_the_accumulation(tiny, template, tmp_path):
    settings = {"lora": {**SETTINGS["lora"], "dropout": 0.0}, "epochs": 2}
    run(tiny, template, tmp_path / "one", gradient_accumulation=2, **settings)
    run(tiny, template, tmp_path / "two", gradient_accumulation=1, options={"processes": 2}, **settings)
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    print("largest difference", max(abs(a - b) for a, b in zip(one, two, strict=True)))
    assert len(one) == 6 and two == pytest.approx(one, abs=2e-4)
    assert read_json(tmp_path / "two" / "training.json")["processes"] == 2
    assert not (tmp_path / "two" / ".work").exists()


def test_an_error_in_one_of_several_processes_is_one_sentence(tiny, template, tmp_path):
    with pytest.raises(training.TrainingError, match=r"^training: the loss is nan at step 3, examples"):
        run(tiny, template, tmp_path / "adapter", learning_rate=1e30, max_grad_norm=1e30, options={"processes": 2})


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only where there is no GPU")
def test_paged_optimiser_without_a_gpu_is_refused(tiny, template, tmp_path):
    with pytest.raises(training.TrainingError, match=r"training\.optimizer: paged_adamw_8bit needs a CUDA GPU, and here is none; set adamw"):
        run(tiny, template, tmp_path / "adapter", optimizer="paged_adamw_8bit")
    assert not (tmp_path / "adapter").exists()
