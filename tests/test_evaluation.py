"""What the evaluation holds in memory, and what it says of pairs that do not fit."""

import weakref

import pytest
from conftest import pair

from backtranslation import augment, engines, evaluation, models


def test_round_trip_lets_go_of_a_model_before_it_loads_the_next(tiny, template, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(models.load(tiny, "float32"), lora).save_pretrained(tmp_path)
    alive, loaded = weakref.WeakSet(), []

    class Watched(engines.TransformersEngine):
        def __init__(self, folder, stop_id, adapter=None, **options):
            loaded.append((adapter, len(alive)))
            super().__init__(folder, stop_id, adapter, **options)
            alive.add(self.model)

    monkeypatch.setattr(engines, "TransformersEngine", Watched)
    precision = {"dtype": "float32", "quantization": "none"}
    prompt = "{response}\n\nWrite the instruction."
    # One long pair leaves out no other, and a set of long ones alone is none.
    sets = {"seed": [pair(1), pair(2), pair(3, instruction="Why? " * 2000)], "corpus": [pair(4, response="So. " * 2000)]}
    table, written = evaluation.round_trip(sets, tiny, tmp_path, template, prompt, 4, 2048, precision, 42)
    assert loaded == [(tmp_path, 0), (None, 0)]
    assert {(line["model"], line["n"]) for line in table} == {("base", 2), ("backward", 2)} and {line["set"] for line in table} == {"seed"} and len(written) == 2


def test_a_held_out_pair_over_the_context_is_named(tiny, template):
    engine = engines.TransformersEngine(tiny, template.stop_id, dtype="float32")
    long = pair(2, response="So. " * 2000)
    examples = augment.for_inference([pair(1), long], {"seed": None, "augmented": None})
    with pytest.raises(ValueError, match=rf"held-out pair {long['id']}: \d+ tokens, the model reads at most 2048; leave this pair out of the seed"):
        evaluation.losses(examples, engine, template)
