"""Training changes the adapter and nothing else, learns to stop, and repeats bit for bit."""

import copy

import pandas as pd
import pytest
import torch
from conftest import pair
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
    "epochs": 3,
}
PAIRS = [pair(n) for n in range(1, 13)]
HELDOUT = [pair(n) for n in range(20, 24)]
PROMPT = "{response}\n\nWrite the instruction."


def run(tiny, template, output, pairs=PAIRS, heldout=HELDOUT, **changes):
    settings = {**copy.deepcopy(SETTINGS), **changes}
    return training.train(reverse(pairs, PROMPT), reverse(heldout, PROMPT), tiny, template, settings, 42, output)


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


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"gradient_checkpointing": True}, {"quantization": "nf4"}])
def test_other_precisions_train_too(tiny, template, tmp_path, changes):
    run(tiny, template, tmp_path / "adapter", **changes)
    history = pd.read_csv(tmp_path / "adapter" / "history.tsv", sep="\t")["heldout_loss"].dropna()
    assert history.iloc[-1] < history.iloc[0]


@pytest.mark.parametrize("quantization", ["none", "nf4"])
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

    models.export(tiny, trained, template.jinja, tmp_path)
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ids = torch.tensor([template.prompt("What is the number 3?")])
    messages = [{"role": "user", "content": "What is the number 3?"}]
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids[0].tolist()
    with torch.inference_mode():
        expected = models.load(tiny, "float32", adapter=trained)(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
    assert merged.generation_config.eos_token_id == template.stop_id


def test_adapter_of_another_base_is_refused(trained, tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "other")
    with pytest.raises(models.ModelError, match="this adapter was trained on"):
        models.load(tmp_path / "other", adapter=trained)
