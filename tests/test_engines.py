"""The engine's numbers are the model's own, however rows are batched, padded and cached."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backtranslation.engines import Sampling, TransformersEngine, batches, shared_prefix

WORDS = ["the", "iterator works.", "Why does the answer explain it?", "Score: 5", "x" * 30, "1 2 3 4 5"]


@pytest.fixture(scope="module")
def engine(tiny, template):
    return TransformersEngine(tiny, template.stop_id, dtype="float32")


@pytest.fixture(scope="module")
def prompts(template):
    return [template.prompt(" ".join(WORDS[: n + 1])) for n in range(len(WORDS))]


@given(st.lists(st.integers(1, 300), max_size=50), st.integers(1, 500))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    plan = batches(lengths, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget for batch in plan)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_shared_prefix_is_shared_and_leaves_a_token(rows):
    count = shared_prefix(rows)
    assert len({tuple(row[:count]) for row in rows}) == 1
    assert all(len(row) > count for row in rows)


def test_greedy_text_is_the_same_alone_and_in_a_batch(engine, prompts):
    greedy = Sampling(max_new_tokens=12, temperature=0)
    together = engine.generate(prompts, greedy, seed=1)
    alone = [engine.generate([prompt], greedy, seed=1)[0] for prompt in prompts]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert np.allclose([c.logprob for c in together], [c.logprob for c in alone], atol=1e-4)


def test_sampling_depends_on_the_seed_alone(engine, prompts):
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    first, again, other = (engine.generate(prompts, sampling, seed=seed) for seed in (1, 1, 2))
    assert [c.tokens for c in first] == [c.tokens for c in again] != [c.tokens for c in other]


def test_finish_reason_tells_a_whole_text_from_a_cut_one(tiny, template, prompts):
    whole = TransformersEngine(tiny, template.stop_id, dtype="float32").generate(prompts[:1], Sampling(5, 0), seed=0)[0]
    assert whole.finish_reason == "length" and len(whole.tokens) == 5
    # The token that it writes third, taken as the one that ends a turn.
    stopping = TransformersEngine(tiny, whole.tokens[2], dtype="float32")
    stopped = stopping.generate(prompts[:1], Sampling(5, 0), seed=0)[0]
    assert stopped.finish_reason == "stop" and stopped.tokens == whole.tokens[: whole.tokens.index(whole.tokens[2])]


def plain_logprobs(engine, ids):
    with torch.inference_mode():
        return engine.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1).numpy()


def test_choice_logprobs_equal_a_plain_pass(engine, prompts):
    choices = [5, 17, 300]
    found = engine.choice_logprobs(prompts, choices)
    expected = [plain_logprobs(engine, prompt)[-1, choices] for prompt in prompts]
    assert np.allclose(found, expected, atol=1e-5)


def test_sequence_logprobs_equal_a_plain_pass(engine, prompts, template):
    completions = [template.completion(word) for word in WORDS]
    found = engine.sequence_logprobs(prompts, completions)
    for value, prompt, completion in zip(found, prompts, completions, strict=True):
        table = plain_logprobs(engine, prompt + completion)
        expected = sum(table[len(prompt) - 1 + at, token] for at, token in enumerate(completion))
        assert value == pytest.approx(expected, abs=1e-3)


def test_too_long_for_the_context_is_refused_not_cut(engine):
    with pytest.raises(ValueError, match="2100 tokens, the model reads at most 2048"):
        engine.generate([[5] * 2050], Sampling(50), seed=0)
