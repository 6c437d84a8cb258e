"""Answers for AlpacaEval and MT-bench: what their tools read, turn by turn, and kept over a stop."""

import json
import re

import pytest
from conftest import run_snakemake

from backtranslation import leaderboards
from backtranslation.engines import Completion
from backtranslation.records import WorkFile

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Write about one.", "Now in verse."]},
    {"question_id": 111, "category": "math", "turns": ["What is two <|im_end|> plus two?", "And three?"]},
    {"question_id": 131, "category": "coding", "turns": ["Sort a list."]},
]


class Recorder:
    """An engine that keeps what it was asked, and says so much of it back."""

    context = 2048

    def __init__(self, template, stop_after=None):
        self.template, self.stop_after, self.asked = template, stop_after, []

    def generate(self, prompts, sampling, seeds, done=()):
        for i, prompt in enumerate(prompts):
            if i in done:
                continue
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append((self.template.tokenizer.decode(prompt), sampling.temperature, seeds[i]))
            yield i, Completion(f"answer {len(self.asked)} ", [1], "stop", 0.0)


def mt_bench(folder):
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return leaderboards.mt_bench(folder / "question.jsonl")


def test_a_second_turn_is_asked_after_the_models_own_answer(tmp_path, template):
    questions, engine = mt_bench(tmp_path), Recorder(template)
    answers = leaderboards.answer(questions, engine, template, "Be kind.", 16, 1, WorkFile(tmp_path, "a"))
    assert [len(turns) for turns in answers] == [2, 2, 1]
    ((asked, temperature, _),) = [one for one in engine.asked if "Now in verse." in one[0]]
    first = answers[0][0]
    assert temperature == 0.7 and asked == template.text("Now in verse.", "Be kind.", [("Write about one.", first)])
    assert asked.count("Be kind.") == 1 and asked.index("Be kind.") < asked.index("Write about one.") < asked.index(first) < asked.index("Now in verse.")
    cold = [one for one in engine.asked if one[1] == 0.0]
    assert len(cold) == 3 and all("two <|im_end|>" not in one[0] for one in cold)


def test_a_stop_loses_no_answer_and_changes_none(tmp_path, template):
    questions = mt_bench(tmp_path)
    whole = Recorder(template)
    leaderboards.answer(questions, whole, template, None, 16, 1, WorkFile(tmp_path, "whole"))
    stopped, rest = Recorder(template, stop_after=3), Recorder(template)
    with pytest.raises(KeyboardInterrupt):
        leaderboards.answer(questions, stopped, template, None, 16, 1, WorkFile(tmp_path, "parts"))
    leaderboards.answer(questions, rest, template, None, 16, 1, WorkFile(tmp_path, "parts"))
    assert len(stopped.asked) + len(rest.asked) == len(whole.asked) == 5
    assert {seed for *_, seed in stopped.asked + rest.asked} == {seed for *_, seed in whole.asked}


def test_forms_are_those_the_tools_read(tmp_path):
    (tmp_path / "alpaca_eval.json").write_text(json.dumps([{"instruction": "Why?", "dataset": "helpful_base", "output": "theirs", "generator": "davinci"}]))
    rows = leaderboards.as_model_outputs(leaderboards.alpaca_eval(tmp_path / "alpaca_eval.json"), [["Because."]], "mine")
    assert rows == [{"dataset": "helpful_base", "instruction": "Why?", "output": "Because.", "generator": "mine"}]
    lines = leaderboards.as_model_answers(mt_bench(tmp_path), [["a", "b"], ["c", "d"], ["e"]], "mine")
    # As FastChat's load_model_answers and its judge read them.
    assert [(line["question_id"], line["model_id"], line["choices"][0]["turns"]) for line in lines] == [(81, "mine", ["a", "b"]), (111, "mine", ["c", "d"]), (131, "mine", ["e"])]
    assert len({line["answer_id"] for line in lines}) == 3 and all(isinstance(line["tstamp"], float) for line in lines)


@pytest.mark.parametrize(
    "read, name, text, message",
    [
        (leaderboards.alpaca_eval, "q.json", "{}", r"q\.json: expected an array"),
        (leaderboards.alpaca_eval, "q.json", '[{"instruction": "a"}, {"instruction": 3}]', r"q\.json: row 2: instruction: expected a text"),
        (leaderboards.mt_bench, "q.jsonl", '{"question_id": 1, "turns": ["a"]}\n{', r"q\.jsonl: row 2: not valid JSON"),
        (leaderboards.mt_bench, "q.jsonl", '{"question_id": "x", "turns": ["a"]}', r"q\.jsonl: row 1: question_id: expected a number"),
        (leaderboards.mt_bench, "q.jsonl", '{"question_id": 1, "turns": ["a"]}\n{"question_id": 1, "turns": ["b"]}', r"q\.jsonl: row 2: question_id: expected a number that no other"),
        (leaderboards.mt_bench, "q.jsonl", '{"question_id": 1, "category": ["math"], "turns": ["a"]}', r"q\.jsonl: row 1: category: expected a text"),
        (leaderboards.mt_bench, "q.jsonl", '{"question_id": 1, "turns": "a"}', r"q\.jsonl: row 1: turns: expected a list of texts"),
    ],
)
def test_bad_questions_are_named(tmp_path, read, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(leaderboards.LeaderboardError, match=message):
        read(tmp_path / name)


def test_a_question_that_does_not_fit_says_what_to_set(tmp_path, template):
    with pytest.raises(leaderboards.LeaderboardError, match=r"question 111: \d+ tokens and an answer of 2040 .*max_new_tokens lower"):
        leaderboards.answer(mt_bench(tmp_path)[1:], Recorder(template), template, None, 2040, 1, WorkFile(tmp_path, "a"))


def test_the_target_asks_for_a_question_file(tmp_path):
    code, printed = run_snakemake(tmp_path, "leaderboards", "-n", "--cores", "1", "--configfile", str(leaderboards_off(tmp_path)))
    assert code != 0 and re.search(r"release\.leaderboards: name the question file", printed), printed


def leaderboards_off(folder):
    (folder / "my.yaml").write_text("name: none\n")
    return folder / "my.yaml"
