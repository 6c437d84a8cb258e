"""The engine's numbers are the model's own, however rows are batched, padded and cached."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from backtranslation.engines import Sampling, TransformersEngine, batches, choose, guess, halving, shared_prefix

WORDS = ["the", "iterator works.", "Why does the answer explain it?", "Score: 5", "x" * 30, "1 2 3 4 5"]


@pytest.fixture(scope="module")
def engine(tiny, template):
    return TransformersEngine(tiny, template.stop_id, dtype="float32")


@pytest.fixture(scope="module")
def prompts(template):
    return [template.prompt(" ".join(WORDS[: n + 1])) for n in range(len(WORDS))]


def generated(engine, prompts, sampling, seed=0):
    found = dict(engine.generate(prompts, sampling, [seed + i for i in range(len(prompts))]))
    return [found[i] for i in range(len(prompts))]


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
    together = generated(engine, prompts, greedy)
    alone = [generated(engine, [prompt], greedy)[0] for prompt in prompts]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert np.allclose([c.logprob for c in together], [c.logprob for c in alone], atol=1e-4)


def test_sampled_text_depends_on_the_rows_seed_alone(engine, prompts):
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    together = generated(engine, prompts, sampling, seed=7)
    alone = [next(engine.generate([prompt], sampling, [7 + i]))[1] for i, prompt in enumerate(prompts)]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert [c.tokens for c in together] != [c.tokens for c in generated(engine, prompts, sampling, seed=8)]


def test_greedy_text_is_that_of_transformers(engine, prompts):
    ours = generated(engine, prompts, Sampling(12, temperature=0))
    for prompt, completion in zip(prompts, ours, strict=True):
        out = engine.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=engine.stop_id)
        assert out[0, len(prompt) :].tolist()[: len(completion.tokens)] == completion.tokens


def test_a_sliding_window_sees_what_it_would_of_a_row_alone(tiny, template, tmp_path):
    """Mistral and Gemma look back at so many tokens; padding between a shared prefix and a row's end must not count."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=len(template.tokenizer), sliding_window=24, max_position_embeddings=512, **sizes))
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(tmp_path)
    template.tokenizer.save_pretrained(tmp_path)
    engine = TransformersEngine(tmp_path, template.stop_id, dtype="float32")
    prompts = [template.prompt("The answer explains how the iterator works. " + word * n) for n, word in enumerate(WORDS, 1)]
    test_greedy_text_is_that_of_transformers(engine, prompts)
    with torch.inference_mode():
        alone = [engine.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[[5, 6]].tolist() for prompt in prompts]
    assert np.allclose(engine.choice_logprobs(prompts, [5, 6]), alone, atol=1e-5)


def test_nucleus_holds_the_smallest_set_of_tokens():
    p = torch.tensor([[0.1, 0.5, 0.4]] * 4)
    luck = torch.tensor([0.0, 0.5, 0.56, 0.999])
    # 0.5 + 0.4 reaches 0.8, so the third token can never come; 0.5 of 0.9 goes to token 1.
    assert choose(p.log(), Sampling(1, 1.0, 0.8), luck).tolist() == [1, 1, 2, 2]
    assert choose(p.log(), Sampling(1, 1.0, 1.0), luck).tolist() == [1, 2, 2, 0]
    assert choose(p.log(), Sampling(1, 0.0), luck).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_batch_is_halved_when_memory_runs_out(error):
    sizes = []

    def run(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return [row * 10 for row in rows]

    assert halving([1, 2, 3, 4, 5], run) == [10, 20, 30, 40, 50]
    assert sizes == [5, 2, 3, 1, 2]


def test_other_errors_and_a_single_row_that_does_not_fit_are_not_hidden():
    def run(rows):
        raise torch.OutOfMemoryError("one row too many")

    with pytest.raises(torch.OutOfMemoryError, match="one row"):
        halving([1, 2], run)
    with pytest.raises(RuntimeError, match="shape"):
        halving([1, 2], lambda rows: (_ for _ in ()).throw(RuntimeError("shape")))


def test_finish_reason_tells_a_whole_text_from_a_cut_one(tiny, template, prompts):
    whole = generated(TransformersEngine(tiny, template.stop_id, dtype="float32"), prompts[:1], Sampling(5, 0))[0]
    assert whole.finish_reason == "length" and len(whole.tokens) == 5
    # The token that it writes third, taken as the one that ends a turn.
    stopping = TransformersEngine(tiny, whole.tokens[2], dtype="float32")
    stopped = generated(stopping, prompts[:1], Sampling(5, 0))[0]
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
    for values, prompt, completion in zip(found, prompts, completions, strict=True):
        table = plain_logprobs(engine, prompt + completion)
        expected = [table[len(prompt) - 1 + at, token] for at, token in enumerate(completion)]
        assert np.allclose(values, expected, atol=1e-4)


def test_too_long_for_the_context_is_refused_not_cut(engine):
    with pytest.raises(ValueError, match="2100 tokens, the model reads at most 2048"):
        next(engine.generate([[5] * 2050], Sampling(50), [0]))


def test_a_row_that_repeats_itself_takes_fewer_passes_for_the_same_text(engine, prompts):
    greedy = Sampling(max_new_tokens=40, temperature=0)
    passes = []
    hook = engine.model.register_forward_pre_hook(lambda *_: passes.append(1))
    alone = [generated(engine, [prompt], greedy)[0] for prompt in prompts]
    hook.remove()
    for prompt, completion in zip(prompts, alone, strict=True):
        out = engine.model.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=engine.stop_id)
        assert out[0, len(prompt) :].tolist()[: len(completion.tokens)] == completion.tokens
    assert len(passes) < sum(len(completion.tokens) for completion in alone)


def test_guess_is_what_followed_where_the_newest_tokens_stood_last():
    assert guess([1, 2, 3, 4, 1, 2, 5, 6, 1, 2], 3) == [5, 6, 1]
    assert guess([5, 7, 7, 7], 4) == [7, 7, 7, 7]
    assert guess([4, 8, 9, 8, 9], 4) == [8, 9, 8, 9]
    assert guess([1, 2, 3], 8) == [] and guess([1, 2, 1, 2], 0) == []
