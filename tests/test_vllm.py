"""Both engines say the same: run with `make test-vllm`, in the environment that has vllm."""

import numpy as np
import pytest
from conftest import ROOT, pair

from backtranslation.engines import Sampling, TransformersEngine, VllmEngine

pytest.importorskip("vllm", reason="vllm has an environment of its own: make test-vllm")

TEXTS = ["the", "iterator works.", "Why does the answer explain it?", "Score: 5", "x" * 30, "1 2 3 4 5"]


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory):
    import torch
    from peft import LoraConfig, get_peft_model

    from backtranslation import models

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("adapter")
    lora = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(models.load(tiny, "float32"), lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reference(tiny, adapter, template):
    return TransformersEngine(tiny, template.stop_id, adapter, dtype="float32")


@pytest.fixture(scope="module")
def engine(tiny, adapter, template):
    return VllmEngine(tiny, template.stop_id, adapter, dtype="float32")


@pytest.fixture(scope="module")
def prompts(template):
    return [template.prompt(" ".join(TEXTS[: n + 1])) for n in range(len(TEXTS))]


def generated(engine, prompts, sampling):
    found = dict(engine.generate(prompts, sampling, range(len(prompts))))
    return [found[i] for i in range(len(prompts))]


def test_greedy_text_is_that_of_transformers(engine, reference, prompts):
    greedy = Sampling(24, temperature=0)
    ours, theirs = generated(engine, prompts, greedy), generated(reference, prompts, greedy)
    assert [(c.text, c.tokens, c.finish_reason) for c in ours] == [(c.text, c.tokens, c.finish_reason) for c in theirs]
    assert np.allclose([c.logprob for c in ours], [c.logprob for c in theirs], atol=1e-3)


def test_sampled_text_depends_on_the_rows_seed(engine, prompts):
    sampling = Sampling(12, temperature=1.0)
    texts = [c.tokens for c in generated(engine, prompts, sampling)]
    alone = [next(engine.generate([prompt], sampling, [i]))[1].tokens for i, prompt in enumerate(prompts)]
    assert texts == alone


def test_log_probabilities_are_those_of_transformers(engine, reference, prompts, template):
    digits = [template.tokenizer.convert_tokens_to_ids(digit) for digit in "12345"]
    assert np.allclose(engine.choice_logprobs(prompts, digits), reference.choice_logprobs(prompts, digits), atol=1e-3)
    completions = [template.completion(text) for text in TEXTS]
    ours, theirs = engine.sequence_logprobs(prompts, completions), reference.sequence_logprobs(prompts, completions)
    assert all(np.allclose(mine, other, atol=1e-3) for mine, other in zip(ours, theirs, strict=True))


def test_context_is_the_models(engine, reference):
    assert engine.context == reference.context


def test_a_whole_model_takes_the_place_of_the_base(tiny, template, prompts, tmp_path):
    """Where all weights were trained there is no adapter, and the folder has no tokenizer of its own."""
    from backtranslation import settings, training
    from backtranslation.augment import reverse

    chosen = {**settings.load(ROOT / "config")["training"], "lora": None, "dtype": "float32", "quantization": "none", "epochs": 1, "steps": 3}
    training.train(reverse([pair(n) for n in range(1, 13)], "{response}\n\nWrite the instruction."), [], tiny, template, chosen, 42, tmp_path)
    ours, theirs = (kind(tiny, template.stop_id, tmp_path, dtype="float32") for kind in (VllmEngine, TransformersEngine))
    completions = [template.completion(text) for text in TEXTS]
    trained = theirs.sequence_logprobs(prompts, completions)
    assert all(np.allclose(mine, other, atol=1e-3) for mine, other in zip(ours.sequence_logprobs(prompts, completions), trained, strict=True))
    untrained = TransformersEngine(tiny, template.stop_id, dtype="float32").sequence_logprobs(prompts, completions)
    assert not any(np.allclose(mine, other, atol=1e-2) for mine, other in zip(untrained, trained, strict=True))
