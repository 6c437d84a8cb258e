"""One small interface to a language model: generate, choice_logprobs, sequence_logprobs."""

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from backtranslation import models
from backtranslation.logs import computing, count_tokens, logger

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import DynamicCache, PreTrainedTokenizerBase
    from vllm import RequestOutput, SamplingParams


@dataclass(frozen=True)
class Sampling:
    """Nucleus sampling; temperature 0 is greedy (paper: 0.7 and 0.9)."""

    max_new_tokens: int
    temperature: float = 0.7
    top_p: float = 0.9


@dataclass(frozen=True)
class Completion:
    """One generated text; `finish_reason` is `stop` or `length`, `logprob` the mean per token."""

    text: str
    tokens: list[int]
    finish_reason: str
    logprob: float


def completed(tokens: list[int], logprobs: Sequence[float], stop_id: int, tokenizer: "PreTrainedTokenizerBase") -> Completion:
    """The completion of generated tokens with the log-probability of each; the token that ends the turn counts in `logprob` alone."""
    stopped = tokens[-1] == stop_id
    kept = tokens[:-1] if stopped else tokens
    text = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return Completion(text, kept, "stop" if stopped else "length", float(np.mean(logprobs)))


class Engine(Protocol):
    """What generation and rating need of a model; prompts and completions are token ids."""

    context: int
    """Longest prompt with its completion, in tokens."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """(index, completion) of every prompt, in the order in which they are made.

        Those of `done`, made before a stop, are left out where that changes nothing for the others.
        """

    def choice_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> np.ndarray:
        """log p(choice | prompt) of single tokens, shape [n, k]."""

    def sequence_logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """log p of each token of each completion, given its prompt and the tokens before it."""


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped by length, so that longest row times number of rows stays within `budget` tokens.

    The plan depends on the lengths alone; a single row over the budget forms its own batch.
    """
    plan: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # Sorted upwards, so this row is the longest of its batch.
        if plan and lengths[index] * (len(plan[-1]) + 1) <= budget:
            plan[-1].append(index)
        else:
            plan.append([index])
    return plan


def pieces(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Consecutive indices, so that longest row times number of rows stays within `budget` tokens."""
    plan: list[list[int]] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if plan and longest * (len(plan[-1]) + 1) <= budget:
            plan[-1].append(index)
        else:
            plan.append([index])
            longest = length
    return plan


def piece_tokens(batch_tokens: int, gpu: bool) -> int:
    """Tokens that a model reads at once, at most a batch of them."""
    return min(batch_tokens, 8192 if gpu else 2048)


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all prompts share, leaving each at least one of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    count = 0
    while count < limit and first[count] == last[count]:
        count += 1
    return count


def choose(scores: "Tensor", sampling: Sampling, luck: "Tensor") -> "Tensor":
    """Next tokens [n] from log-probabilities [n, vocabulary]: greedy, or the nucleus at random numbers `luck` [n].

    The nucleus is the smallest set of tokens whose probability exceeds `top_p`; within it, the token
    is read off at `luck` (in [0, 1)) along the cumulated probabilities.
    """
    import torch

    if sampling.temperature == 0:
        return scores.argmax(-1)
    p = (scores / sampling.temperature).softmax(-1)

    def pick(p: "Tensor", order: "Tensor", luck: "Tensor") -> "Tensor":
        p = p.masked_fill(p.cumsum(-1) - p > sampling.top_p, 0)
        cumulated = p.cumsum(-1)
        at = torch.searchsorted(cumulated, luck[:, None] * cumulated[:, -1:], right=True)
        # Rounding may point one past the last token with probability.
        last = (p > 0).sum(-1, keepdim=True) - 1
        return order.gather(1, at.minimum(last))[:, 0]

    # Sorting the whole vocabulary takes longer than the model itself; few nuclei are that large.
    top, order = p.topk(min(256, p.shape[-1]))
    chosen = pick(top, order, luck)
    large = top.sum(-1) <= sampling.top_p
    if large.any():
        sorted_p, sorted_order = p[large].sort(dim=-1, descending=True, stable=True)
        chosen[large] = pick(sorted_p, sorted_order, luck[large])
    return chosen


def guess(tokens: Sequence[int], most: int) -> list[int]:
    """`most` tokens, as they followed where the two newest stood last and over again (prompt lookup); often none."""
    for at in range(len(tokens) - 1, 1, -1):
        if tokens[at - 2] == tokens[-2] and tokens[at - 1] == tokens[-1]:
            return (list(tokens[at:]) * most)[:most]
    return []


def halving(rows: Sequence[Any], run: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
    """`run(rows)`, in two halves, each again in halves, as long as memory runs out (GPU or host).

    Raises the error itself when a single row does not fit.
    """
    import torch

    try:
        return run(rows)
    except (MemoryError, RuntimeError) as error:
        full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full or len(rows) == 1:
            raise
    # Outside the handler: the error's traceback would keep the tensors of the failed batch alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.info("out of memory with %d rows; going on with %d", len(rows), len(rows) // 2)
    middle = len(rows) // 2
    return halving(rows[:middle], run) + halving(rows[middle:], run)


def load(
    name: str,
    folder: Path,
    stop_id: int,
    adapter: Path | None = None,
    dtype: str = "auto",
    quantization: str = "none",
    batch_tokens: int = 32768,
    gpus: int = 1,
) -> Engine:
    """The engine of the configuration's `engine`; `quantization` and `batch_tokens` are for transformers, `gpus` for vllm."""
    if name == "vllm":
        return VllmEngine(folder, stop_id, adapter, dtype, gpus)
    return TransformersEngine(folder, stop_id, adapter, dtype, quantization, batch_tokens)


class TransformersEngine:
    """The reference engine, on CPU or CUDA."""

    def __init__(
        self,
        folder: Path,
        stop_id: int,
        adapter: Path | None = None,
        dtype: str = "auto",
        quantization: str = "none",
        batch_tokens: int = 32768,
    ):
        import torch

        self.tokenizer = models.load_tokenizer(folder)
        self.model = models.load(folder, dtype, quantization, adapter)
        if self.model.device.type == "cpu" and quantization == "none":
            models.pack(self.model)
        self.stop_id = stop_id
        self.batch_tokens = batch_tokens
        # Passes over whole texts: more at once is no faster, and their activations and logits would be gigabytes.
        self.piece_tokens = piece_tokens(batch_tokens, self.model.device.type != "cpu")
        # Fewer still where every token has a logit for each word of the vocabulary.
        self.scored_tokens = self.piece_tokens // 4
        # As an index, since a slice of hidden states makes torch copy the output matrix for every row.
        self.last = torch.tensor([-1], device=self.model.device)
        self.context: int = self.model.config.max_position_embeddings
        self.window: int = getattr(self.model.config, "sliding_window", None) or self.context

    def _check(self, lengths: Sequence[int]) -> None:
        """Raises ValueError when a row does not fit the model's context; nothing is ever cut."""
        if max(lengths) > self.context:
            raise ValueError(f"a text takes {max(lengths)} tokens, the model reads at most {self.context}; leave it out")

    def _pad(self, rows: Sequence[Sequence[int]], before: int = 0) -> "tuple[Tensor, Tensor, Tensor]":
        """Left-padded ids [n, longest], mask [n, before + longest] and positions of the ids [n, longest].

        `before` counts tokens of a cached prefix that all rows continue.
        """
        import torch

        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), before + longest), dtype=torch.long)
        mask[:, :before] = 1
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, before + longest - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, before:]
        where = self.model.device
        return ids.to(where), mask.to(where), positions.to(where)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """(index, completion) of every prompt, as batches finish; in order of length.

        Row i draws from a generator of its own, seeded with `seeds[i]`, so that in float32 its text
        depends neither on the rows beside it nor on the size of the batch. In other types it may, and the
        log-probabilities always do in their last bits: so a batch is left out only if all of it is `done`.

        Raises ValueError when a prompt and its completion may not fit the model's context.
        """
        lengths = [len(prompt) + sampling.max_new_tokens for prompt in prompts]
        self._check(lengths)
        prefix = self._prefix(prompts, max(lengths))
        for batch in batches(lengths, self.batch_tokens):
            if all(i in done for i in batch):
                continue
            rows = [(prompts[i][prefix.get_seq_length() :], seeds[i]) for i in batch]
            completions = halving(rows, lambda part: self._decode(prefix, part, sampling))
            models.release_memory()
            count_tokens(sum(len(prompts[i]) for i in batch), sum(len(completion.tokens) for completion in completions))
            yield from zip(batch, completions, strict=True)

    def _prefix(self, prompts: Sequence[Sequence[int]], longest: int) -> "DynamicCache":
        """Cache of what all prompts begin with, one row of keys and values; `longest` is how long a row may become.

        Empty where that is more than a sliding window (Gemma, Mistral): padding stands behind the prefix, and the window
        would count it.
        """
        import torch
        from transformers import DynamicCache

        cache = DynamicCache()
        if (shared := shared_prefix(prompts)) and longest <= self.window:
            ids = torch.tensor([prompts[0][:shared]], device=self.model.device)
            with torch.inference_mode():
                self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=self.last)
        return cache

    def _prefill(
        self, prefix: "DynamicCache", prompts: Sequence[Sequence[int]], room: int
    ) -> "tuple[Tensor, DynamicCache]":
        """Logits after each prompt that continues `prefix`, [n, vocabulary], and the cache with room for `room` more."""
        import torch

        from backtranslation import caching

        logits, caches = [], []
        for piece in pieces([len(prompt) for prompt in prompts], self.piece_tokens):
            ids, mask, positions = self._pad([prompts[i] for i in piece], prefix.get_seq_length())
            caches.append(caching.repeat(prefix, len(piece), ids.shape[1]))
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=caches[-1],
                use_cache=True,
                logits_to_keep=self.last,
            )
            logits.append(out.logits[:, -1])
        return torch.cat(logits), caching.join(caches, prefix.get_seq_length(), room)

    @computing()
    def _decode(
        self, prefix: "DynamicCache", rows: Sequence[tuple[Sequence[int], int]], sampling: Sampling
    ) -> list[Completion]:
        """Completions of one batch, sorted by length; rows that have ended leave it, so that the others go on faster."""
        import torch

        prompts = [prompt for prompt, _ in rows]
        _, mask, positions = self._pad(prompts, prefix.get_seq_length())
        positions = positions[:, -1:]
        # Drawn at once, so that a row uses the same numbers however long the others go on.
        luck = torch.stack(
            [torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed)) for _, seed in rows]
        ).to(mask.device)
        tokens: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        batch = list(range(len(rows)))
        with torch.inference_mode():
            logits, cache = self._prefill(prefix, prompts, sampling.max_new_tokens)
            for step in range(sampling.max_new_tokens):
                scores = logits.float().log_softmax(-1)
                chosen = choose(scores, sampling, luck[batch, step])
                picked = scores.gather(1, chosen[:, None])[:, 0].tolist()
                going = []
                for at, (row, token) in enumerate(zip(batch, chosen.tolist(), strict=True)):
                    if tokens[row] and tokens[row][-1] == self.stop_id:
                        continue
                    tokens[row].append(token)
                    logprobs[row].append(picked[at])
                    if token != self.stop_id:
                        going.append(at)
                if not going or step + 1 == sampling.max_new_tokens:
                    break
                # Leaving copies the cache of those that stay, so a quarter leaves at once.
                if len(going) <= 0.75 * len(batch):
                    index = torch.tensor(going, device=mask.device)
                    cache.batch_select_indices(index)
                    mask, positions, chosen = mask[index], positions[index], chosen[index]
                    batch = [batch[at] for at in going]
                if len(batch) == 1:
                    row = batch[0]
                    self._finish(cache, mask, prompts[row], tokens[row], logprobs[row], sampling, luck[row])
                    break
                mask = torch.cat([mask, mask.new_ones(len(batch), 1)], 1)
                positions = positions + 1
                logits = self.model(
                    input_ids=chosen[:, None],
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=self.last,
                ).logits[:, -1]
        return [completed(found, values, self.stop_id, self.tokenizer) for found, values in zip(tokens, logprobs, strict=True)]

    def _finish(
        self,
        cache: "DynamicCache",
        mask: "Tensor",
        prompt: Sequence[int],
        tokens: list[int],
        logprobs: list[float],
        sampling: Sampling,
        luck: "Tensor",
    ) -> None:
        """Go on with the last row of a batch, whose `tokens` and `logprobs` grow.

        The last to end mostly repeats itself, so what followed last time is tried at once. Each token
        is still the model's choice at the random number of its step; a guess only saves a pass.
        """
        import torch

        while tokens[-1] != self.stop_id and (left := sampling.max_new_tokens - len(tokens)):
            ids = [tokens[-1], *guess([*prompt, *tokens], min(8, left - 1))]
            cached = mask.shape[1]
            mask = torch.cat([mask, mask.new_ones(1, len(ids))], 1)
            logits = self.model(
                input_ids=torch.tensor([ids], device=mask.device),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1)[:, cached:],
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
            scores = logits.float().log_softmax(-1)
            chosen = choose(scores, sampling, luck[len(tokens) : len(tokens) + len(ids)])
            picked = scores.gather(1, chosen[:, None])[:, 0].tolist()
            for count, token in enumerate(chosen.tolist(), 1):
                tokens.append(token)
                logprobs.append(picked[count - 1])
                if token == self.stop_id or ids[count : count + 1] != [token]:
                    break
            mask = mask[:, : cached + count]
            cache.crop(cached + count)

    @computing()
    def choice_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> np.ndarray:
        """log p(choice | prompt) of the next token, shape [n, k]; the prefix all prompts share is computed once."""
        import torch

        from backtranslation import caching

        longest = max(len(prompt) for prompt in prompts)
        self._check([longest])
        prefix = self._prefix(prompts, longest)
        shared = prefix.get_seq_length()

        def run(batch: Sequence[int]) -> list[np.ndarray]:
            ids, mask, positions = self._pad([prompts[i][shared:] for i in batch], shared)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=caching.repeat(prefix, len(batch), ids.shape[1]),
                    use_cache=True,
                    logits_to_keep=self.last,
                ).logits[:, -1]
            return list(logits.float().log_softmax(-1)[:, list(choices)].cpu().numpy())

        result = np.zeros((len(prompts), len(choices)))
        for batch in batches([len(prompt) - shared for prompt in prompts], self.piece_tokens):
            result[batch] = halving(batch, run)
            models.release_memory()
        count_tokens(sum(map(len, prompts)))
        return result

    @computing()
    def sequence_logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """log p of each token of each completion, given its prompt and the tokens before it."""
        import torch

        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        self._check([len(row) for row in rows])

        def run(batch: Sequence[int]) -> list[np.ndarray]:
            ids, mask, positions = self._pad([rows[i] for i in batch])
            keep = torch.arange(-max(len(completions[i]) for i in batch) - 1, 0, device=ids.device)
            found = []
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
                ).logits
                for at, i in enumerate(batch):
                    # Row by row: float32 logits of a whole batch over a large vocabulary are gigabytes.
                    count = len(completions[i])
                    scores = logits[at, -count - 1 : -1].float().log_softmax(-1)
                    target = torch.tensor(list(completions[i]), device=scores.device)
                    found.append(scores.gather(1, target[:, None])[:, 0].cpu().numpy())
            return found

        result = [np.zeros(0)] * len(rows)
        for batch in batches([len(row) for row in rows], self.scored_tokens):
            for i, values in zip(batch, halving(batch, run), strict=True):
                result[i] = values
            models.release_memory()
        count_tokens(sum(map(len, rows)))
        return result


class VllmEngine:
    """vLLM inside this process, for throughput, on CUDA or with its CPU build.

    On CUDA the adapter goes along as a LoRA request. On the CPU it is merged for the time of the
    job: there a LoRA request is seven times slower, and log-probabilities of a prompt end the engine.

    Raises ValueError for what this machine cannot do, before anything is loaded.
    """

    def __init__(
        self,
        folder: Path,
        stop_id: int,
        adapter: Path | None = None,
        dtype: str = "auto",
        gpus: int = 1,
    ):
        import torch

        # In this process: no second one that could outlive it, and errors arrive as what they are.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if gpus == 1 else "1"
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
        self.tokenizer = models.load_tokenizer(folder)
        self.stop_id = stop_id
        # On a CPU compiling would take two minutes of every job for a sixth more rows per second.
        options: dict[str, Any] = {"enforce_eager": not torch.cuda.is_available()}
        folder, adapter = models.resolve(folder, adapter)
        if torch.cuda.is_available():
            models.check_parallel(folder, gpus)
            options["tensor_parallel_size"] = gpus
            if adapter is not None:
                # vLLM takes these alone; a smaller rank fits a larger one's place.
                rank = next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= models.rank_of(adapter))
                options |= {"enable_lora": True, "max_lora_rank": rank}
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        resolved = models.resolve_dtype(dtype)
        with tempfile.TemporaryDirectory() as merged:
            weights, self.lora = folder, None
            if adapter is not None and torch.cuda.is_available():
                self.lora = LoRARequest(adapter.name, 1, str(adapter))
            elif adapter is not None:
                models.merge(folder, adapter, resolved, Path(merged))
                weights = Path(merged)
            llm = LLM(
                model=str(weights),
                skip_tokenizer_init=True,
                dtype=str(resolved).removeprefix("torch."),
                enable_prefix_caching=True,
                # The model's own defaults (temperature and such) would change what was asked for.
                generation_config="vllm",
                # The whole context, or as much of it as there is memory for.
                max_model_len=-1,
                disable_log_stats=True,
                **options,
            )
        self.engine = llm.llm_engine
        self.context: int = self.engine.model_config.max_model_len

    def _run(
        self, prompts: Sequence[Sequence[int]], params: "Sequence[SamplingParams]", done: Collection[int] = ()
    ) -> "Iterator[tuple[int, RequestOutput]]":
        """(index, output) of every request that is not `done`, as soon as it is."""
        for i, (prompt, chosen) in enumerate(zip(prompts, params, strict=True)):
            if i in done:
                continue
            self.engine.add_request(str(i), {"prompt_token_ids": list(prompt)}, chosen, lora_request=self.lora)
        while self.engine.has_unfinished_requests():
            with computing():
                outputs = self.engine.step()
            for output in outputs:
                if output.finished:
                    count_tokens(len(output.prompt_token_ids))
                    yield int(output.request_id), output

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int], done: Collection[int] = ()
    ) -> Iterator[tuple[int, Completion]]:
        """(index, completion) of every prompt that is not `done`, as they are made; row i is drawn with `seeds[i]`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = [
            SamplingParams(
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=seed,
                logprobs=0,
                stop_token_ids=[self.stop_id],
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for seed in seeds
        ]
        for i, output in self._run(prompts, params, done):
            found = output.outputs[0]
            ids = list(found.token_ids)
            picked = [entry[token].logprob for token, entry in zip(ids, found.logprobs, strict=True)]
            completion = completed(ids, picked, self.stop_id, self.tokenizer)
            count_tokens(0, len(completion.tokens))
            yield i, completion

    def choice_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> np.ndarray:
        """log p(choice | prompt) of single tokens, shape [n, k]; what prompts share is cached by vLLM."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=list(choices), detokenize=False)
        result = np.zeros((len(prompts), len(choices)))
        for i, output in self._run(prompts, [params] * len(prompts)):
            entry = output.outputs[0].logprobs[0]
            result[i] = [entry[choice].logprob for choice in choices]
        return result

    def sequence_logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """log p of each token of each completion, given its prompt and the tokens before it."""
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        result = [np.zeros(0)] * len(rows)
        for i, output in self._run(rows, [params] * len(rows)):
            start = len(prompts[i])
            tokens = zip(rows[i][start:], output.prompt_logprobs[start:], strict=True)
            result[i] = np.array([entry[token].logprob for token, entry in tokens])
        return result
