"""One small interface to a language model: generate, choice_logprobs, sequence_logprobs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backtranslation import models


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


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all prompts share, leaving each at least one of its own."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    count = 0
    while count < limit and first[count] == last[count]:
        count += 1
    return count


class TransformersEngine:
    """The reference engine, on CPU or CUDA."""

    def __init__(
        self,
        folder: Path,
        stop_id: int,
        adapter: Path | None = None,
        dtype: str = "auto",
        quantization: str = "none",
        batch_tokens: int = 8192,
    ):
        models.keep_memory()
        self.tokenizer = models.load_tokenizer(folder)
        self.model = models.load(folder, dtype, quantization, adapter)
        self.stop_id = stop_id
        self.batch_tokens = batch_tokens
        self.context: int = self.model.config.max_position_embeddings

    def _check(self, lengths: Sequence[int]) -> None:
        """Raises ValueError when a row does not fit the model's context; nothing is ever cut."""
        if max(lengths) > self.context:
            raise ValueError(f"a text takes {max(lengths)} tokens, the model reads at most {self.context}; leave it out")

    def _pad(self, rows: Sequence[Sequence[int]], before: int = 0):  # type: ignore[no-untyped-def]
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

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Completion]:
        """One completion per prompt, as one batch; the same prompts and seed give the same texts."""
        import torch
        from transformers import GenerationConfig

        self._check([len(prompt) + sampling.max_new_tokens for prompt in prompts])
        torch.manual_seed(seed)
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=sampling.temperature > 0,
            **(chosen if sampling.temperature > 0 else {}),
            eos_token_id=self.stop_id,
            pad_token_id=self.tokenizer.pad_token_id,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids, mask, _ = self._pad(prompts)
        with torch.inference_mode():
            out = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        new = out.sequences[:, ids.shape[1] :].cpu()
        logprobs = np.zeros(new.shape)
        for step, logits in enumerate(out.logits):
            picked = logits.float().log_softmax(-1).cpu().gather(1, new[:, step : step + 1])
            logprobs[:, step] = picked[:, 0].numpy()
        completions = []
        for row, values in zip(new.tolist(), logprobs, strict=True):
            stopped = self.stop_id in row
            length = row.index(self.stop_id) + 1 if stopped else len(row)
            tokens = row[: length - 1] if stopped else row
            text = self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
            reason = "stop" if stopped else "length"
            completions.append(Completion(text, tokens, reason, float(values[:length].mean())))
        return completions

    def choice_logprobs(self, prompts: Sequence[Sequence[int]], choices: Sequence[int]) -> np.ndarray:
        """log p(choice | prompt) of the next token, shape [n, k]; the prefix all prompts share is computed once."""
        import copy

        import torch

        self._check([len(prompt) for prompt in prompts])
        shared = shared_prefix(prompts)
        result = np.zeros((len(prompts), len(choices)))
        with torch.inference_mode():
            cache = None
            if shared:
                prefix = torch.tensor([prompts[0][:shared]], device=self.model.device)
                cache = self.model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
            tails = [prompt[shared:] for prompt in prompts]
            for batch in batches([len(prompt) for prompt in prompts], self.batch_tokens):
                ids, mask, positions = self._pad([tails[i] for i in batch], before=shared)
                past = copy.deepcopy(cache)
                if past is not None:
                    past.batch_repeat_interleave(len(batch))
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=past,
                    use_cache=past is not None,
                    logits_to_keep=1,
                ).logits[:, -1]
                result[batch] = logits.float().log_softmax(-1)[:, list(choices)].cpu().numpy()
        return result

    def sequence_logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> np.ndarray:
        """log p(completion | prompt), summed over the completion's tokens, shape [n]."""
        import torch

        result = np.zeros(len(prompts))
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        self._check([len(row) for row in rows])
        with torch.inference_mode():
            for batch in batches([len(row) for row in rows], self.batch_tokens):
                ids, mask, positions = self._pad([rows[i] for i in batch])
                keep = max(len(completions[i]) for i in batch) + 1
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=False,
                    logits_to_keep=keep,
                ).logits
                for at, i in enumerate(batch):
                    # Row by row: float32 logits of a whole batch over a large vocabulary are gigabytes.
                    count = len(completions[i])
                    scores = logits[at, -count - 1 : -1].float().log_softmax(-1)
                    target = torch.tensor(list(completions[i]), device=scores.device)
                    result[i] = float(scores.gather(1, target[:, None]).sum())
        return result
