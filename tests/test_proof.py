"""The proof: arms are what they are called, measures see what they should, and what is said follows from the figures."""

import json
import math
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import pair, run_snakemake, segment

from backtranslation import arms, audit, engines, evaluation, grid, labels, pairwise, plots, proof, records
from backtranslation.judge import JudgeError
from backtranslation.records import row_id

TAGS = {"seed": "as an assistant", "augmented": "from the web"}
RUN = ["--cores", "1", "--resources", "gpu=1", "--configfile", "proved.yaml"]
MADE = [f"results/proved/{name}" for name in ("arms.tsv", "summary.json", "proof/words.tsv", "proof/quality.svg", "proof/win_rates.svg")]
TRAIN = [pair(n) for n in range(1, 7)]


def rated(count: int = 10, candidates: int = 2) -> list[dict]:
    """Candidates with a rising combination; of each segment the second candidate is the better one."""
    rows = []
    for number in range(100, 100 + count):
        for n in range(candidates):
            row = {**segment(number), "segment": f"{number:016x}", "true_instruction": f"True question {number}?" if number % 2 else None}
            row |= {"id": row_id(f"{number:016x}", str(n)) if n else f"{number:016x}", "instruction": f"Question {number} of writer {n}?"}
            rows.append({**row, **dict.fromkeys(records.SIGNALS, math.nan), "combination": (number - 100) / count + n / 100, "rating": 3 + (number - 100) / count + n / 10})
    return rows


def made(arm: str, n: int | None = None, seed: int = 1) -> list[dict]:
    return arms.examples(arm, n, TRAIN, rated(), "combination", TAGS, None, seed)


def of(rows: list[dict], origin: str) -> dict[str, str]:
    return {row["completion"]: row["prompt"] for row in rows if row["origin"] == origin}


def test_arms_are_trained_on_what_they_are_called():
    true = {row["response"]: row["instruction"] for row in TRAIN}
    assert made("base") == [] and of(made("seed"), "seed") == true and not of(made("seed"), "augmented")
    curated = of(made("curated", 3), "augmented")
    assert set(curated.values()) == {f"Question {n} of writer 1?" for n in (107, 108, 109)}
    assert set(of(made("single", 3), "augmented").values()) == {f"Question {n} of writer 0?" for n in (107, 108, 109)}
    assert of(made("augmented", 3), "augmented") == curated and not of(made("augmented", 3), "seed")
    assert len([row for row in made("all") if row["origin"] == "augmented"]) == 20
    assert set(of(made("a4"), "augmented").values()) == {"Question 109 of writer 1?"}
    # Of two that are rated as high the better one; without its first candidate a segment is not single; random is not the best of two.
    both = [{**row, "rating": 4.6} for row in rated()]
    assert {row["instruction"] for row in arms.added("a5", None, both, "combination", 1)} == {f"Question {n} of writer 1?" for n in range(100, 110)}
    assert len(arms.added("single", None, [row for row in both if row["instruction"] != "Question 104 of writer 0?"], "combination", 1)) == 9
    drawn = arms.added("random", 10, both, "combination", 1)
    assert len({row["segment"] for row in drawn}) == 10 and len({row["instruction"][-2] for row in drawn}) == 2
    with pytest.raises(arms.ArmError, match=r"proof\.arms: a5: no candidate is rated 4\.5 or more"):
        made("a5")
    with pytest.raises(arms.ArmError, match=r"proof\.sizes: 11 candidates are asked for, and there are 10 for the arm random"):
        made("random", 11)
    with pytest.raises(arms.ArmError, match="there are 5 with a known true instruction for the arm oracle"):
        made("oracle", 6)


def test_draws_follow_the_seed_and_smaller_ones_are_part_of_larger_ones():
    assert made("random", 4) == made("random", 4) and made("random", 4) != made("random", 4, seed=2)
    assert of(made("random", 4), "augmented").items() <= of(made("random", 6), "augmented").items()
    assert made("curated", 4) == made("curated", 4, seed=2)


def test_controls_differ_in_their_instructions_alone():
    oracle, broken = (of(made(arm, 4), "augmented") for arm in ("oracle", "broken"))
    assert set(oracle) == set(broken)
    right = {row["text"]: row for row in rated()}
    assert all(prompt == right[text]["true_instruction"] for text, prompt in oracle.items())
    assert all(prompt.startswith("Question") and prompt.split()[1] not in text.split() for text, prompt in broken.items())
    true, shuffled = of(made("seed"), "seed"), of(made("seed_broken"), "seed")
    assert set(true) == set(shuffled) and sorted(true.values()) == sorted(shuffled.values())
    assert all(true[text] != shuffled[text] for text in true)


def test_grid_has_a_cell_for_every_size_and_seed_that_matter():
    cells = grid.cells(["base", "seed", "all", "random"], [20, 40], [1, 2], None)
    found = [(cell["arm"], cell["n"], cell["seed"]) for cell in cells]
    assert found[:5] == [("base", "0", "0"), ("seed", "0", "1"), ("seed", "0", "2"), ("all", "all", "1"), ("all", "all", "2")]
    assert found[5:] == [("random", "20", "1"), ("random", "20", "2"), ("random", "40", "1"), ("random", "40", "2")]


def test_search_tries_every_setting_that_makes_a_difference():
    cells = grid.cells(["base", "seed", "curated"], [20], [1], {"learning_rate": [1e-4, 0.001], "seed_share": [0.2, None]})
    assert [tuple(cell.values())[3:] for cell in cells] == [
        ("any", "any"),
        *[(rate, "any") for rate in ("0.0001", "0.001")],
        *[(rate, share) for rate in ("0.0001", "0.001") for share in ("0.2", "null")],
    ]
    assert [grid.setting(cell, "seed_share", 0.5) for cell in cells] == [0.5, 0.5, 0.5, 0.2, None, 0.2, None]
    assert grid.setting(cells[-1], "learning_rate", 0.1) == 0.001 and grid.setting(cells[-1], "steps", 100) == 100


def test_no_pair_is_measured_that_an_arm_was_trained_on():
    corpus = [{**segment(n, f"River {n} begins on {n} hills, and ends {n} miles on in sea {n}."), "true_instruction": f"Where does river {n} run?"} for n in range(1, 20)]
    sample = [corpus[0], {**segment(99, "One two three four five six seven eight nine ten eleven twelve."), "true_instruction": None}, segment(98, "x" * 400)]
    # A copy of a drawn text under another id, a text without an instruction, one that is far too long.
    copy = {**corpus[0], "id": "copy"}
    others = [{**segment(97, "A short text of unknown origin."), "true_instruction": None}, {**segment(96, "y" * 900), "true_instruction": "Why y?"}]
    heldout = [pair(50, "Is this a new question about the old town hall clock?", "It is."), pair(51, "What does it say: one two three four five six?", "Numbers."), pair(52, "And what else is there to see in that town?", "A bridge.")]
    kept, dropped = arms.heldout(heldout, TRAIN, [*corpus, copy, *others], sample, 12, 6, 42)
    assert {row["id"] for row in dropped} >= {heldout[1]["id"]} and {row["reason"] for row in dropped} == {"contaminated"}
    seed, rest = ([row for row in kept if row["set"] == name] for name in ("seed", "corpus"))
    assert [row["instruction"] for row in seed] == [heldout[0]["instruction"], heldout[2]["instruction"]]
    assert len(rest) == 12 and not {row["response"] for row in rest} & {row["text"] for row in [*sample, *others]}
    for part in (seed, rest):
        said = {row["instruction"] for row in part}
        assert all(row["other"] in said and row["near"] in said and row["instruction"] not in (row["other"], row["near"]) for row in part)


def test_of_a_corpus_only_what_has_a_true_instruction_is_held(tmp_path):
    corpus = [{**segment(n), "true_instruction": None if n % 3 else f"Question {n}?", "source_number": 0, "stratum": None} for n in range(1, 13000)]
    records.write(corpus, records.CORPUS, tmp_path / "segments.parquet")
    assert [(row["id"], row["true_instruction"]) for row in arms.known(tmp_path / "segments.parquet")] == [(row["id"], row["true_instruction"]) for row in corpus[2::3]]


def test_pairs_that_ask_for_the_same_are_not_each_others_wrong_instructions():
    sample = [segment(98, "x" * 400)]
    asked = [pair(50, "Is this new?", "It is."), pair(51, "Is this new?", "Hardly."), pair(52, "And what else?", "A bridge.")]
    kept, _ = arms.heldout(asked, TRAIN, [], sample, 12, 6, 42)
    assert [(row["other"], row["near"]) for row in kept] == [("And what else?",) * 2] * 2 + [("Is this new?",) * 2]
    with pytest.raises(arms.ArmError, match=r"of 2 held-out pairs, 0 of them .* not two that ask for different things .* raise seed\.heldout"):
        arms.heldout(asked[:2], TRAIN, [], sample, 12, 6, 42)


def test_contrast_is_what_the_instruction_adds(tiny, template):
    engine = engines.TransformersEngine(tiny, template.stop_id, dtype="float32")
    rows = [{"id": str(n), "set": "seed", **{name: f"{name} {n}?" for name in ("instruction", "other", "near")}, "response": f"The iterator {n} works."} for n in range(3)]
    found = proof.measure(rows, engine, template, "Be brief.").pivot(index="id", columns="measure", values="value")

    def loss(name: str) -> np.ndarray:
        asked = [{"id": row["id"], "prompt": row[name], "completion": row["response"], "system": "Be brief."} for row in rows]
        return evaluation.losses(asked, engine, template)

    assert found["seed_loss"].to_numpy() == pytest.approx(loss("instruction"), abs=1e-5)
    assert found["seed_contrast"].to_numpy() == pytest.approx(loss("other") - loss("instruction"), abs=1e-5)
    assert found["seed_contrast_near"].to_numpy() == pytest.approx(loss("near") - loss("instruction"), abs=1e-5)


def test_pairs_over_the_context_are_left_out_and_counted(tiny, template, caplog):
    engine = engines.TransformersEngine(tiny, template.stop_id, dtype="float32")
    rows = [{"id": str(n), "set": "seed", "instruction": f"Which {n}?", "other": "What?", "near": "Which?", "response": f"This {n}."} for n in range(4)]
    rows[1]["other"] = rows[2]["response"] = "word " * engine.context
    assert [row["id"] for row in proof.fitting(rows, engine, template, None, 0)] == ["0", "3"]
    assert "2 of 4 held-out pairs exceed the model's context" in caplog.text
    with pytest.raises(ValueError, match=rf"none of 4 held-out pairs fits the model's context of {engine.context} tokens"):
        proof.fitting(rows, engine, template, None, engine.context)
    # What fits is measured, and no more is said to exceed it.
    assert set(proof.measure([rows[0], rows[3]], engine, template, None)["id"]) == {"0", "3"}


def planted(effects: dict[str, float], noise: float, pairs: int = 40, seeds: int = 3, sizes: tuple[str, ...] = ("20", "80")) -> pd.DataFrame:
    """A loss that sees `effects` and one that sees nothing; pairs differ far more than arms do."""
    rng = np.random.default_rng(0)
    hard = rng.normal(2, 1, pairs)
    rows = []
    for arm, effect in effects.items():
        for size in sizes if arm in grid.SIZED else ("0",):
            for seed in range(1, seeds + 1) if arm != "base" else [0]:
                gain = effect * np.log(int(size) + 1) if arm == "curated" else effect
                for name, seen in (("seed_loss", gain), ("seed_contrast", 0)):
                    values = hard + seen + rng.normal(0, noise, pairs)
                    rows += [{"arm": arm, "size": size, "n": int(size), "seed": str(seed), "measure": name, "id": str(n), "value": v} for n, v in enumerate(values)]
    return pd.DataFrame(rows)


EFFECTS = {"base": 0.0, "seed": -0.1, "curated": -0.1, "random": -0.15, "oracle": -0.6, "broken": 0.0}


def test_planted_differences_are_found_and_no_others():
    values = planted(EFFECTS, 0.05)
    compared = proof.comparisons(values, 42)
    says = compared.set_index(["measure", "comparison"])["says"]
    assert says["seed_loss", "oracle_vs_broken"] == says["seed_loss", "curated_vs_random"] == says["seed_loss", "curated_vs_seed"] == "better"
    assert says["seed_loss", "oracle_vs_curated"] == "better"
    assert (says["seed_contrast"] == "no difference shown").sum() >= len(says["seed_contrast"]) - 1
    figures = proof.summary(values, compared, 42)
    assert figures["measure"] == "seed_loss" and figures["admitted"] == ["seed_loss"]
    assert figures["curated_vs_random_high"] < 0 and (figures["seeds"], figures["n_heldout"]) == (3, 40)
    # w is minus the loss, so it grows by 0.1 with log N (nearly: the plant has log(N + 1)).
    assert figures["alpha_low"] < figures["alpha"] < figures["alpha_high"] and figures["alpha"] == pytest.approx(0.1, abs=0.02)
    assert any("curated is better than random" in said for said in figures["words"])


def test_settings_are_chosen_on_pairs_that_they_are_not_measured_on():
    """One rate helps the curated arm alone; among rates that are all alike the best one is luck, which must not count."""
    rates = {"0.1": 0.0, "0.2": -0.2, "0.3": 0.0}
    values = pd.concat(planted({**EFFECTS, "curated": 0.0, "seed": 0.0}, 0.05, sizes=("20",)).assign(learning_rate=rate) for rate in rates)
    luck = np.random.default_rng(3).normal(0, 0.05, len(values))
    values["value"] += luck + (values["arm"] == "curated") * values["learning_rate"].map(rates)
    # What is best for one measure need not be for another.
    values["value"] += (values["measure"] == "seed_contrast") * values["learning_rate"].map({"0.1": 0.0, "0.2": -0.2, "0.3": 0.5})
    found, tried = proof.tuned(values, ["learning_rate"])
    assert set(found.columns) == set(values.columns) - {"learning_rate"} and len(found) * 3 == len(values)
    chosen = tried[tried["chosen"]].groupby(["measure", "arm"])["learning_rate"].agg(list)
    assert chosen["seed_loss", "curated"] == ["0.2", "0.2"] and len(tried) == 2 * 2 * 3 * len(EFFECTS)
    assert chosen["seed_contrast", "curated"] == ["0.3", "0.3"] == chosen["seed_contrast", "oracle"]
    compared = proof.comparisons(found, 42).set_index(["measure", "comparison"])
    assert compared.loc[("seed_loss", "curated_vs_seed"), "says"] == "better"
    assert compared.loc[("seed_loss", "seed_vs_base"), "says"] == "no difference shown"
    halves = [set(found.loc[found["arm"] == "curated", "id"]), set(values["id"])]
    assert halves[0] == halves[1]


def test_win_rates_touch_no_other_measure_and_count_as_much_as_their_judge():
    """Nobody judges the untouched model's answers against themselves, and of the pairs only some are answered."""
    values = planted(EFFECTS, 0.05, sizes=("20",))
    wins = planted({**EFFECTS, "oracle": 1.0}, 0.01, pairs=5, sizes=("20",)).query("measure == 'seed_loss' and arm != 'base'")
    values = pd.concat([values, wins.assign(measure="seed_win_rate")], ignore_index=True)
    good = {"low": 0.6, "on": "preferences of people", "agreement": 0.7, "high": 0.8, "n": 40, "always_longer": 0.5, "consistent": 0.9, "first": 0.5}
    found, tried = proof.tuned(values.assign(steps=np.where(values["arm"] == "base", "any", "8")), ["steps"])
    assert len(found) == len(values) and set(found["arm"]) == set(EFFECTS) and set(tried["measure"]) == set(values["measure"])
    figures = proof.summary(values, proof.comparisons(values, 42), 42, good)
    assert figures["measure"] == "seed_win_rate"
    # Against the untouched model it is one half that a win rate must be clear of.
    rate = values.loc[(values["arm"] == "curated") & (values["measure"] == "seed_win_rate"), "value"].mean()
    assert figures["curated_vs_base_diff"] == pytest.approx(0.5 - rate) and figures["curated_vs_base_low"] <= 0.5 - rate <= figures["curated_vs_base_high"]
    assert any(said.startswith("curated is ") and " base: " in said for said in figures["words"])
    # A judge that is not shown to agree with people decides nothing.
    bad = {**good, "agreement": 0.5, "low": 0.4}
    figures = proof.summary(values, proof.comparisons(values, 42), 42, bad)
    assert (figures["measure"], figures["fitted"]) == ("seed_loss", "seed_loss") and "seed_win_rate" not in figures["admitted"]
    assert "count for nothing" in figures["words"][-1]


def test_without_a_search_every_value_counts():
    values = planted(EFFECTS, 0.05)
    found, tried = proof.tuned(values, [])
    pd.testing.assert_frame_equal(found.sort_values([*found.columns], ignore_index=True), values.sort_values([*found.columns], ignore_index=True))
    assert tried["chosen"].all()


def test_a_measure_that_cannot_tell_right_from_wrong_judges_nothing():
    values = planted({**EFFECTS, "oracle": 0.0}, 0.3)
    figures = proof.summary(values, proof.comparisons(values, 42), 42)
    assert figures["admitted"] == [] and "nothing below can judge curation" in figures["words"][0]
    # What comes nearest does so in any unit; answers that are all alike, which no judge can tell apart, do not.
    values.loc[values["measure"] == "seed_loss", "value"] *= 1000
    ties = values[values["measure"] == "seed_loss"].assign(measure="seed_win_rate", value=0.5)
    values = pd.concat([values, ties], ignore_index=True)
    assert proof.summary(values, proof.comparisons(values, 42), 42)["measure"] == figures["measure"]


def test_without_true_instructions_the_seed_is_the_control():
    values = planted({"base": 0.0, "seed": -0.3, "seed_broken": 0.0, "curated": -0.1}, 0.05, sizes=("20",))
    figures = proof.summary(values, proof.comparisons(values, 42), 42)
    assert figures["controls"] == ["seed", "seed_broken"] and figures["oracle_vs_broken_high"] < 0
    assert figures["curated_vs_random_diff"] is None and figures["alpha"] is None
    alone = values[values["arm"] == "base"]
    figures = proof.summary(alone, proof.comparisons(alone, 42), 42)
    assert figures["admitted"] == [] and "no measure is admitted" in figures["words"][0]


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hit = 0
    for n in range(200):
        values = rng.normal(0, 0.3, (8, 1)) + rng.normal(0, 1, (1, 40)) + rng.normal(0, 0.5, (8, 40))
        _, low, high = proof.interval(values, n, draws=500)
        hit += low <= 0 <= high
    assert 0.88 <= hit / 200 <= 0.99


def test_figures_are_drawn_of_what_was_measured_alone(tmp_path):
    values = planted({**EFFECTS, "augmented": 0.0}, 0.05)
    figures = proof.summary(values, proof.comparisons(values, 42), 42)
    plots.quality(proof.table(values, 42), figures, "seed_contrast", tmp_path / "quality.svg")
    drawn = (tmp_path / "quality.svg").read_text()
    assert all(f">{text}<" in drawn for text in (*EFFECTS, "augmented", "seed contrast, nats a token", "scaling fit, 3 training seeds"))
    with pytest.raises(ValueError, match=r"proof\.drawn: corpus_loss was not measured; there are seed_loss, seed_contrast"):
        plots.quality(proof.table(values, 42), figures, "corpus_loss", tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()
    compared = proof.comparisons(values, 42)
    plots.differences(compared, figures, tmp_path / "differences.svg")
    drawn = (tmp_path / "differences.svg").read_text()
    assert all(f">{text}<" in drawn for text in ("oracle against broken", "curated against random", "seed loss, nats a token", "n = 40 pairs"))
    assert ">seed contrast, nats a token<" not in drawn
    plots.differences(compared[:0], figures, tmp_path / "none.svg")
    assert ">no arms to compare<" in (tmp_path / "none.svg").read_text()


def test_one_size_is_drawn_without_a_slope(tmp_path):
    values = planted(EFFECTS, 0.05)
    values = values[values["n"].isin([0, values["n"].max()])]
    figures = proof.summary(values, proof.comparisons(values, 42), 42)
    assert figures["alpha"] is None
    plots.quality(proof.table(values, 42), figures, "seed_contrast", tmp_path / "quality.svg")
    drawn = (tmp_path / "quality.svg").read_text()
    assert f">{values['n'].max()}<" in drawn and ">curated<" in drawn and "scaling fit" not in drawn


def test_table_has_every_cell_and_all_seeds_together():
    values = planted(EFFECTS, 0.05)
    table = proof.table(values, 42)
    assert list(table.columns) == ["arm", "n", "seed", "measure", "value", "low", "high"]
    assert ((table["low"] <= table["value"]) & (table["value"] <= table["high"])).all()
    curated = table[(table["arm"] == "curated") & (table["measure"] == "seed_loss") & (table["n"] == 80)].set_index("seed")["value"]
    assert set(curated.index) == {"1", "2", "3", "all"} and curated["all"] == pytest.approx(curated.drop("all").mean())


class Reader:
    """A judge that scores an answer by `score(place, text)` and believes it fully."""

    context, batch_tokens = 2048, 32768

    def __init__(self, template, score):
        self.template, self.score = template, score

    def choice_logprobs(self, prompts, choices):
        found = []
        for ids in prompts:
            text = self.template.tokenizer.decode(ids)
            answers = re.search(r"Answer 1:\n(.*?)\n\nAnswer 2:\n(.*?)\n\nWhich", text, re.DOTALL).groups()
            found.append([self.score(place, answer) for place, answer in enumerate(answers)])
        return np.array(found, dtype=float)


PREFERENCES = [{"instruction": f"What is {n}?", "chosen": "a b c d"[: 7 - 4 * (n % 4 == 0)], "rejected": "a b c"} for n in range(20)]


def test_audit_of_the_pairwise_judge_sees_position_and_length(template):
    longer = pairwise.audited(PREFERENCES, pairwise.ModelJudge(Reader(template, lambda place, text: len(text)), template), 42)
    assert longer["agreement"] == longer["always_longer"] == 0.75 and longer["low"] < 0.75 < longer["high"]
    assert (longer["consistent"], longer["longer"], longer["people_longer"], longer["n"]) == (1, 1, 0.75, 20)
    assert longer["first"] == pytest.approx(0.5)
    first = pairwise.audited(PREFERENCES, pairwise.ModelJudge(Reader(template, lambda place, text: -9 * place), template), 42)
    assert first["first"] > 0.99 and first["consistent"] == 0 and first["agreement"] == 0.5
    undecided = pairwise.audited(PREFERENCES, pairwise.ModelJudge(Reader(template, lambda place, text: 0), template), 42)
    assert (undecided["consistent"], undecided["agreement"]) == (0, 0.5)
    # Preferences of one instruction say little more than one.
    same = [{**row, "instruction": f"What is {n // 10}?"} for n, row in enumerate(PREFERENCES)]
    assert pairwise.audited(same, pairwise.ModelJudge(Reader(template, lambda place, text: len(text)), template), 42)["low"] != longer["low"]


def test_a_real_model_judges_alike_whoever_is_named_first(tiny, template):
    judge = pairwise.ModelJudge(engines.TransformersEngine(tiny, template.stop_id, dtype="float32"), template)
    rows = [{"id": str(n), "instruction": f"What is {n}?", "own": f"It is {n * 7}.", "other": f"The number {n}."} for n in range(4)]
    rows.append({**rows[0], "id": "4", "other": rows[0]["own"]})
    wins = pairwise.compare(rows, judge)["win"]
    swapped = pairwise.compare([{**row, "own": row["other"], "other": row["own"]} for row in rows], judge)["win"]
    assert (wins + swapped == 1).all() and wins.iloc[-1] == 0.5
    long = {"instruction": "word " * 3000, "own": "a", "other": "b"}
    assert np.isnan(pairwise.prefer([long], judge)).all()


@pytest.fixture
def served(monkeypatch):
    """A server that speaks OpenAI's protocol and prefers the longer answer; `asked` has what it was sent."""

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            token = self.headers["Authorization"].removeprefix("Bearer ")
            text = sent["messages"][0]["content"]
            asked.append((self.path, sent["model"], sent["temperature"], token))
            first, second = re.search(r"Answer 1:\n(.*?)\n\nAnswer 2:\n(.*?)\n\nWhich", text, re.DOTALL).groups()
            won = 1 if len(first) > len(second) else 2
            verdict = "I cannot say." if "?" in first + second else f'I write "Score: {3 - won}" or "Score: {won}". It is **Score: {won}**'
            # The first two questions meet a server that is busy.
            status = 401 if token == "wrong" else 503 if len(asked) <= 2 else 200
            body = {"error": {"message": f"Incorrect API key provided: {token}"}} if status != 200 else {
                "id": "1", "object": "chat.completion", "created": 0, "model": sent["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": verdict}}],
            }
            kind, written = "application/json", json.dumps(body)
            if odd := re.search(r"\bodd (\w+)", text):
                status, kind, written = {
                    "long": (400, kind, '{"error": {"message": "This model has a context of 8 tokens"}}'),
                    "silent": (200, kind, json.dumps({**body, "choices": []})),
                    "page": (200, "text/html", "<html>Welcome</html>"),
                    "broken": (200, kind, '{"id": "1", "cho'),
                    "other": (200, kind, '{"error": "no such path"}'),
                    "bare": (200, kind, json.dumps({**body, "choices": [{"index": 0}]})),
                    "parts": (200, kind, json.dumps({**body, "choices": [{"index": 0, "message": {"role": "assistant", "content": [{"text": "Score: 1"}]}}]})),
                    "text": (200, kind, json.dumps({**body, "choices": "Score: 1"})),
                }[odd[1]]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(written.encode())

        def log_message(self, *arguments):
            pass

    asked: list[tuple] = []
    monkeypatch.setenv("OPENAI_API_KEY", "planted-token")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(address=f"http://127.0.0.1:{server.server_port}/v1", asked=asked)
    server.shutdown()


@pytest.mark.parametrize("odd", ["page", "broken", "other", "bare", "parts", "text"])
def test_what_is_no_verdict_of_a_judge_is_said_in_a_sentence(served, odd):
    rows = [{"id": odd, "instruction": f"odd {odd}", "own": "a", "other": "bb"}]
    with pytest.raises(JudgeError, match=rf"proof\.judge: {served.address}, model judge-1: what it answered is no (JSON|chat completion)"):
        pairwise.compare(rows, pairwise.ServedJudge(served.address, "judge-1"))


def test_a_pair_without_a_verdict_is_a_tie_and_ends_nothing(served):
    """Too long for the judge's context, or refused: the others are judged all the same."""
    rows = [{"id": odd, "instruction": f"odd {odd}", "own": "a", "other": "bb"} for odd in ("long", "silent")]
    rows.append({"id": "x", "instruction": "Why?", "own": "a", "other": "bb"})
    assert pairwise.compare(rows, pairwise.ServedJudge(served.address, "judge-1"))["win"].to_list() == [0.5, 0.5, 0]


def test_a_judge_can_be_served_elsewhere(served, tmp_path, monkeypatch):
    judge = pairwise.ServedJudge(served.address, "judge-1")
    rows = [{"id": str(n), "instruction": "Why?", "own": "a" * (5 + n), "other": "b" * 7} for n in range(12)]
    rows.append({"id": "x", "instruction": "Why?", "own": "What?", "other": "b"})
    wins = pairwise.compare(rows, judge, records.WorkFile(tmp_path, "once"))["win"].to_list()
    assert wins == [0, 0, 0.5, *[1] * 9, 0.5]
    assert set(served.asked) == {("/v1/chat/completions", "judge-1", 0, "planted-token")} and len(served.asked) == 2 * len(rows) + 2
    # What it has said is paid for, and not asked again.
    assert pairwise.compare(rows, judge, records.WorkFile(tmp_path, "once"))["win"].to_list() == wins and len(served.asked) == 2 * len(rows) + 2
    audited = pairwise.audited(PREFERENCES, judge, 42)
    assert audited["agreement"] == audited["always_longer"] == 0.75 and audited["consistent"] == 1
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(JudgeError, match=rf"^proof\.judge: {served.address}, model judge-1: no verdict: it refused the token in OPENAI_API_KEY$"):
        pairwise.prefer(rows, pairwise.ServedJudge(served.address, "judge-1"))


def test_length_control_takes_away_what_length_explains():
    rng = np.random.default_rng(0)
    parts = []
    for arm, mean in (("short", -20), ("long", 20)):
        longer = rng.normal(mean, 20, 4000)
        win = (rng.random(4000) < 0.5 + 0.3 * np.tanh(longer / 28)).astype(float)
        parts.append(pd.DataFrame({"id": range(4000), "arm": arm, "size": "20", "seed": "1", "win": win, "longer": longer}))
    rates = pairwise.win_rates(pd.concat(parts)).groupby(["measure", "arm"])["value"].mean()
    assert rates["seed_win_rate", "long"] - rates["seed_win_rate", "short"] > 0.2
    assert rates["seed_win_rate_lc", "long"] - rates["seed_win_rate_lc", "short"] == pytest.approx(0, abs=0.05)


def test_without_preferences_of_people_true_responses_stand_against_those_to_other_instructions():
    pairs = [{"instruction": f"Ask {n // 2}", "response": f"Answer {n}"} for n in range(6)]
    found = pairwise.true_against_others(pairs)
    asked = {pair["response"]: pair["instruction"] for pair in pairs}
    assert [(row["instruction"], row["chosen"]) for row in found] == [(pair["instruction"], pair["response"]) for pair in pairs]
    assert all(asked[row["rejected"]] != row["instruction"] for row in found)


def test_preferences_come_from_rows_and_from_trees(tmp_path):
    replies = [{"text": "good", "rank": 0}, {"text": "bad", "rank": 2}, {"text": "so so", "rank": 1}, {"text": "new", "rank": None}]
    records.write_jsonl([{"prompt": {"text": "Why?", "replies": replies}}], tmp_path / "trees.jsonl")
    found = labels.read_preferences(tmp_path / "trees.jsonl")
    assert [(row["chosen"], row["rejected"]) for row in found] == [("good", "so so"), ("good", "bad"), ("so so", "bad")]
    records.write_jsonl(PREFERENCES, tmp_path / "rows.jsonl")
    assert labels.read_preferences(tmp_path / "rows.jsonl") == PREFERENCES


@pytest.mark.parametrize(
    "row, problem",
    [
        ("{", "row 2: no JSON"),
        ("[1]", "row 2: neither a preference nor a message tree"),
        ('{"instruction": "Why?", "chosen": "x"}', "row 2: the field rejected is missing"),
        ('{"prompt": {"text": "Why?"}}', "row 2: the field prompt is no message with replies"),
        ('{"prompt": {"replies": [{"text": "x", "rank": 0}]}}', "row 2: prompt: the field text is missing"),
        ('{"prompt": {"text": "Why?", "replies": [{"text": "x"}, {"rank": 0}]}}', "row 2: ranked reply 1: the field text is missing"),
        ('{"prompt": {"text": "Why?", "replies": [{"text": "x", "rank": "best"}]}}', "row 2: ranked reply 1: the field rank is 'best'"),
    ],
)
def test_bad_preferences_are_refused_by_row_and_field(tmp_path, row, problem):
    (tmp_path / "broken.jsonl").write_text(json.dumps(PREFERENCES[0]) + f"\n{row}\n")
    with pytest.raises(audit.AuditError, match=rf"broken\.jsonl: {problem}"):
        labels.read_preferences(tmp_path / "broken.jsonl")


def test_a_file_without_preferences_is_refused(tmp_path):
    records.write_jsonl([{"prompt": {"text": "Why?", "replies": [{"text": "x", "rank": 0}, {"text": "y", "rank": 0}]}}], tmp_path / "trees.jsonl")
    with pytest.raises(audit.AuditError, match=r"trees\.jsonl: no preferences"):
        labels.read_preferences(tmp_path / "trees.jsonl")


@pytest.fixture(scope="module")
def proved(tmp_path_factory, tiny):
    """A folder in which the grid was run on a tiny model, from candidates and ratings that were there."""
    folder = tmp_path_factory.mktemp("proved")
    results = folder / "results" / "proved"
    model = {"kind": "path", "name": str(tiny), "revision": None, "file": None, "sha256": None, "template": "auto"}
    grid = {"arms": ["base", "oracle"], "sizes": [4], "seeds": [1], "steps": 2, "search": {"learning_rate": [1e-4, 0.001], "seed_share": [None]}, "corpus_pairs": 5, "answers": 2}
    config = {"name": "proved", "model": model, "proof": grid, "decontamination": {"words": 12}, "precision": {"dtype": "float32"}}
    (folder / "proved.yaml").write_text(yaml.safe_dump(config))
    # The model first, so that it is older than what is said to have been made with it.
    code, printed = run_snakemake(folder, *MADE, "--until", "fetch_model", *RUN)
    assert code == 0, printed
    corpus = [{**segment(n), "true_instruction": f"True question {n}?", "source_number": 0, "stratum": None} for n in range(100, 120)]
    for rows, schema, name in (
        (TRAIN, records.PAIRS, "seed/train"),
        ([pair(n) for n in range(50, 54)], records.PAIRS, "seed/heldout"),
        (corpus, records.CORPUS, "corpus/segments"),
        (corpus[:10], records.SEGMENTS, "corpus/sample"),
        (rated(), records.RATED, "curation/rated"),
    ):
        records.write(rows, schema, results / f"{name}.parquet")
    code, printed = run_snakemake(folder, *MADE, *RUN)
    assert code == 0, printed
    assert "rule ingest_seed" not in printed and "rule rate_candidates" not in printed
    return folder


def test_grid_runs_from_what_a_run_has_made(proved):
    results = proved / "results" / "proved"
    arms_made = pd.read_csv(results / "arms.tsv", sep="\t")
    assert {(line.arm, line.n) for line in arms_made.itertuples()} == {("base", 0), ("oracle", 4)}
    measured = {f"{part}_{name}" for part in ("seed", "corpus") for name in ("loss", "contrast", "contrast_near")}
    assert set(arms_made["measure"]) == measured | {"seed_win_rate", "seed_win_rate_lc"}
    rates = arms_made[arms_made["measure"] == "seed_win_rate"]
    assert set(rates["arm"]) == {"oracle"} and rates["value"].between(0, 1).all()
    trained = [records.read_json(path) for path in results.glob("proof/arm~oracle/n~4/seed~1/*/*/adapter/training.json")]
    assert sorted((made["learning_rate"], made["steps"]) for made in trained) == [(1e-4, 2), (0.001, 2)]
    settings = pd.read_csv(results / "proof" / "settings.tsv", sep="\t")
    # Of each measure in both halves two learning rates; the share null is a setting as others are.
    oracle = settings[settings["arm"] == "oracle"]
    assert len(oracle) == 8 * 2 * 2 and settings.groupby(["measure", "arm", "chosen_on"])["chosen"].sum().eq(1).all()
    figures = records.read_json(results / "summary.json")
    # Without a control no measure is admitted, and the summary says so.
    assert figures["oracle_vs_broken_diff"] is None and figures["admitted"] == [] and "no measure is admitted" in figures["words"][0]
    assert {"measure", "seeds", "n_heldout", "alpha", "curated_vs_random_diff"} <= set(figures) and figures["words"]
    assert figures["judge"]["n"] == 4 and any("pairwise judge agrees" in said for said in figures["words"])
    assert "oracle" in (results / "proof" / "quality.svg").read_text()
    drawn, judge = (results / "proof" / "win_rates.svg").read_text(), pd.read_csv(results / "proof" / "pairwise.tsv", sep="\t", index_col="what")["value"]
    assert "oracle, 4 added" in drawn and "length-controlled" in drawn and f"{figures['judge']['agreement']:.0%}" in drawn
    assert judge["n"] == "4" and float(judge["agreement"]) == figures["judge"]["agreement"]


def test_another_plot_setting_trains_nothing(proved):
    code, printed = run_snakemake(proved, *MADE, *RUN, "--dry-run", "--config", "proof={drawn: corpus_contrast}")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE))
    assert code == 0 and jobs == {"draw_proof": "1", "total": "1"}, printed
    (proved / "longer.yaml").write_text("proof: {steps: 3}")
    code, printed = run_snakemake(proved, *MADE, *RUN, "longer.yaml", "--dry-run")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", printed, re.MULTILINE))
    assert code == 0 and (jobs["train_arm"], jobs["measure_arm"]) == ("2", "2") and "mix_arm" not in jobs, printed


def test_a_served_judge_judges_the_grid_and_its_token_stays_in_the_environment(proved, served):
    (proved / "served.yaml").write_text(yaml.safe_dump({"proof": {"judge": {"server": served.address, "model": "judge-1"}}}))
    code, printed = run_snakemake(proved, *MADE, *RUN, "served.yaml")
    assert code == 0 and "planted-token" not in printed, printed
    # Two cells with two answers each and four preferences, both ways round, and the two to which it was busy.
    assert len(served.asked) == 2 * (2 * 2 + 4) + 2
    judge = records.read_json(proved / "results" / "proved" / "proof" / "pairwise.json")
    assert (judge["n"], judge["agreement"]) == (4, judge["always_longer"])
    left = [path for part in ("results", ".snakemake") for path in (proved / part).rglob("*") if path.is_file()]
    assert len(left) > 50 and not [path for path in left if b"planted-token" in path.read_bytes()]
