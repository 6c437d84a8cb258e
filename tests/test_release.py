"""What is released: the curated set for other tools."""

import html
import json
import re

import datasets
import pandas as pd
import pytest
import yaml
from conftest import ROOT, segment

from backtranslation import cards, exports, settings, sources
from backtranslation.records import RATED, SIGNALS, write, write_json

TAG = "Answer with knowledge from web search."
# What breaks careless writers: Markdown, HTML, JSON, YAML and chat markers, other scripts, several lines, half a surrogate pair's escape.
NASTY = '"}]\n---\nlicense: mit\n| <script>alert(1)</script> `x` [a](javascript:b) ![c](http://d) <|im_end|> \\ud800 ünï 漢字 \u2028 end'


def curated(count: int = 3) -> list[dict]:
    rows = [
        {**segment(n), "instruction": f"What is text {n}?", **dict.fromkeys(SIGNALS, float("nan")), "combination": n / 10}
        for n in range(1, count + 1)
    ]
    rows[0]["source"] = "pages/one.html"
    rows[1] |= {"text": NASTY, "instruction": NASTY, "source": NASTY}
    return rows


@pytest.mark.parametrize("system", [TAG, None])
def test_every_form_loads_with_every_row_as_it_is(tmp_path, system):
    rows = curated()
    exports.write_all([rows[0], rows[1], {**rows[2], "source": "/somewhere/corpus.txt"}], system, tmp_path)
    loaded = {}
    for name, file in exports.FILES.items():
        kind = "parquet" if file.endswith("parquet") else "json"
        loaded[name] = datasets.load_dataset(kind, data_files=str(tmp_path / file), split="train", cache_dir=str(tmp_path / "cache"))
        assert [(row["id"], row["source"]) for row in loaded[name]] == [(row["id"], row["source"]) for row in rows], name
    for at, row in enumerate(rows):
        turns = [*([("system", system)] if system else []), ("user", row["instruction"]), ("assistant", row["text"])]
        assert [(turn["role"], turn["content"]) for turn in loaded["messages"][at]["messages"]] == turns
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        assert [(turn["from"], turn["value"]) for turn in loaded["sharegpt"][at]["conversations"]] == [(names[role], text) for role, text in turns]
        found = loaded["alpaca"][at]
        assert (found["instruction"], found["input"], found["output"], found["system"]) == (row["instruction"], "", row["text"], system or "")
        found = loaded["parquet"][at]
        assert (found["system"], found["instruction"], found["response"]) == (system, row["instruction"], row["text"])
        assert (found["rating"], found["combination"]) == (None, row["combination"])


def test_trl_reads_the_conversations_and_they_are_the_same(tmp_path):
    from trl.data_utils import is_conversational, maybe_convert_to_chatml

    exports.write_all(curated(), TAG, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "messages.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    others = json.loads((tmp_path / "sharegpt.json").read_text(encoding="utf-8"))
    for line, other in zip(lines, others, strict=True):
        assert is_conversational({"messages": line["messages"]})
        converted = maybe_convert_to_chatml({"conversations": other["conversations"]})["messages"]
        # trl keeps the names of the roles that the tool before it gave them.
        roles = {"human": "user", "gpt": "assistant"}
        assert [{**turn, "role": roles.get(turn["role"], turn["role"])} for turn in converted] == line["messages"]


def test_llama_factory_is_told_of_columns_that_are_there(tmp_path):
    exports.write_all(curated(), TAG, tmp_path)
    told = json.loads((tmp_path / "dataset_info.json").read_text())
    for name, entry in told.items():
        assert entry["file_name"] == exports.FILES[name]
        text = (tmp_path / entry["file_name"]).read_text(encoding="utf-8")
        row = json.loads(text.split("\n")[0]) if entry["file_name"].endswith("jsonl") else json.loads(text)[0]
        assert set(entry["columns"].values()) <= set(row)
        if entry.get("formatting") == "sharegpt":
            (turns,) = (row[column] for column in entry["columns"].values())
            # The defaults where nothing is told (data/README.md of LLaMA-Factory).
            tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"} | entry.get("tags", {})
            roles = [tags[f"{role}_tag"] for role in ("system", "user", "assistant")]
            assert [turn[tags["role_tag"]] for turn in turns] == roles and all(turn[tags["content_tag"]] for turn in turns)


CONFIG = {
    "name": "made",
    "curation": {"keep": {"signal": "combination", "rule": "top_fraction", "value": 0.5}},
    "corpus": {"filters": {"mask_personal_data": False}},
    # In the order in which the workflow has them.
    "forward": {"tags": {"augmented": TAG, "seed": "Be an assistant."}},
}
MANIFEST = {"kind": "hub", "name": "owner/base", "revision": "0123abc"}
AUDIT, VERDICT = {"pairs": 30, "rows": 210}, {"signal": "combination", "measure": "AUROC", "value": 0.9312, "floor": 0.75, "length": 0.604, "passed": True}
FUNNEL = pd.DataFrame({"branch": ["candidates"], "stage": ["curate"], "rows_in": [83], "dropped": [42], "rows_out": [41]})
HELDOUT = pd.DataFrame({"model": ["backward", "M_1"], "against": ["base", "base"], "n": [30, 30], "loss": [2.1313, 2.4575], "difference": [-0.6, -0.2817]})


def licence(name: str, licence: str | None) -> dict:
    return {"part": "text", "name": name, "licence": licence}


@pytest.mark.parametrize(
    "names, expected",
    [
        (["mit", "mit"], {"license": "mit"}),
        # What is permissive gives way to what is not.
        (["apache-2.0", "cc-by-nc-sa-4.0", "mit"], {"license": "cc-by-nc-sa-4.0"}),
        (["llama2", "apache-2.0", "cc-by-nc-sa-4.0"], {"license": "other", "license_name": "apache-2.0-and-cc-by-nc-sa-4.0-and-llama2"}),
        (["mit", "apache-2.0"], {"license": "other", "license_name": "apache-2.0-and-mit"}),
        (["mit", "My own: licence\n"], {"license": "other", "license_name": "my-own-licence-and-mit"}),
        (["mit", None, "cc-by-nc-4.0"], {"license": "unknown"}),
    ],
)
def test_licence_of_a_card_follows_from_all_parts(names, expected):
    assert cards.inherited([licence(f"part {n}", name) for n, name in enumerate(names)]) == expected


def test_non_commercial_is_inherited_by_name():
    found = [name for name in ("cc-by-nc-4.0", "CC BY-NC-SA 4.0", "llama-non-commercial", "noncommercial", "mit", "cc-by-4.0", "ncsa", None) if cards.non_commercial(name)]
    assert found == ["cc-by-nc-4.0", "CC BY-NC-SA 4.0", "llama-non-commercial", "noncommercial"]
    card = cards.dataset(CONFIG, MANIFEST, [licence("hub:GAIR/lima", "cc-by-nc-sa-4.0"), licence("mine", None)], FUNNEL, AUDIT, VERDICT, curated())
    text = rendered(card)
    assert "Not for commercial use: inherited from hub:GAIR/lima." in text and "NOT KNOWN" in text and card.data.license == "unknown"


def rendered(card) -> str:
    """What a reader of the card sees, without markup."""
    return html.unescape(re.sub("<[^>]+>", "", page(card)))


def page(card) -> str:
    from markdown_it import MarkdownIt

    return MarkdownIt("gfm-like", {"linkify": False}).render(card.text)


def test_cards_say_the_numbers_of_the_run():
    licences = [licence("mine", "mit")]
    text = rendered(cards.dataset(CONFIG, MANIFEST, licences, FUNNEL, AUDIT, VERDICT, curated()))
    for expected in ("3 pairs", "83", "42", "41", "tried on 210 pairs of which", "0.931", "0.604", "a judge kept, by combination, the best 50% of all candidates", TAG, "owner/base at revision 0123abc", "What is text 1?"):
        assert expected in text, expected
    training = {"examples": 201, "tokens": 45678, "steps": 51, "learning_rate": 0.001, "dtype": "bfloat16", "quantization": "nf4", "random_seed": 42}
    card = cards.model(CONFIG, MANIFEST, licences, HELDOUT, training, {"merged_quantization": "nf4", "dtype": "bfloat16"}, AUDIT, {**VERDICT, "passed": False}, 1)
    text = rendered(card)
    for expected in ("this is M_1", "201 examples", "45678 tokens", "51 steps", "0.001", "2.4575", "-0.2817", "does not reach the floor", f"Be an assistant. {TAG}"):
        assert expected in text, expected
    assert "2.1313" not in text and (card.data.base_model, card.data.license) == ("owner/base", "mit")


def test_text_from_outside_stays_text_in_a_card(tmp_path):
    rows = curated()
    config = {**CONFIG, "name": NASTY, "forward": {"tags": {"seed": NASTY, "augmented": NASTY}}}
    card = cards.dataset(config, {**MANIFEST, "name": NASTY}, [licence(NASTY, "mit")], FUNNEL, AUDIT, VERDICT, rows)
    again = type(card)(str(card))
    assert again.data.license == "mit" and again.data.pretty_name == NASTY.strip()
    shown = page(card)
    assert "<script" not in shown and "<img" not in shown and "<code>x" not in shown
    # The paper's is the only link, and every row of a table has as many cells as its head.
    assert shown.count("<a ") == 1 and "javascript:" not in "".join(part.split(">")[0] for part in shown.split("<"))
    assert shown.count("<tr>") == 5 + 2 + 2 + 1 + len(rows)


def test_the_folder_of_the_data_set_loads_by_its_card(tmp_path):
    rows = curated()
    exports.write_all(rows, TAG, tmp_path)
    (tmp_path / "README.md").write_text(str(cards.dataset(CONFIG, MANIFEST, [licence("mine", "mit")], FUNNEL, AUDIT, VERDICT, rows)), encoding="utf-8")
    loaded = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["response"] == [row["text"] for row in rows]


def test_shipped_configurations_name_a_licence_for_everything():
    default = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    for path in ("config.yaml", "humpback.yaml", "llama2-7b-qlora.yaml"):
        config = settings.merge(default, yaml.safe_load((ROOT / "config" / path).read_text()))
        named = {entry["of"] for entry in config["release"]["licences"]}
        used = {config["model"]["name"], *(sources.name_of(source) for key in ("seed", "corpus") for source in config[key]["sources"])}
        assert used == named, path


def test_the_target_release_makes_all_of_it(snakemake, tmp_path):
    """From files as a run leaves them, so that no model is needed."""
    results = tmp_path / "results" / "made"
    rows = curated()
    write(rows, RATED, results / "curation" / "curated.parquet")
    for path, frame in (("report/funnel.tsv", FUNNEL), ("evaluation/heldout.tsv", HELDOUT)):
        (results / path).parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(results / path, sep="\t", index=False)
    training = {"examples": 201, "tokens": 45678, "steps": 51, "learning_rate": 0.001, "dtype": "bfloat16", "quantization": "none", "random_seed": 42}
    for path, value in (
        ("audit/1/audit.json", AUDIT),
        ("audit/1/verdict.json", VERDICT),
        ("forward/1/adapter/training.json", training),
        ("forward/model/merge.json", {"merged_quantization": "none", "dtype": "bfloat16"}),
    ):
        write_json(value, results / path)
    base = tmp_path / "somewhere"
    base.mkdir()
    config = {"name": "made", "model": {"kind": "path", "name": str(base)}, "release": {"licences": [{"of": str(base), "licence": "apache-2.0"}]}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    # The base model's folder has a name that only the workflow knows.
    code, printed = snakemake("release", "--cores", "1", "--configfile", "my.yaml", "-n")
    (manifest,) = set(re.findall(r"resources/models/\S+/manifest\.json", printed))
    write_json({**MANIFEST, "kind": "path", "name": str(base), "revision": None}, tmp_path / manifest)
    made = ["release", "export_curated", "dataset_card", "model_card"]
    code, printed = snakemake("release", "--cores", "1", "--configfile", "my.yaml", "--rerun-triggers", "mtime", "--allowed-rules", *made)
    assert code == 0, printed
    assert {path.name for path in (results / "release" / "data").iterdir()} == {*exports.FILES.values(), "dataset_info.json", "README.md"}
    for path in ("release/data/README.md", "forward/model/README.md"):
        card = (results / path).read_text(encoding="utf-8")
        # The default's sources have no licence in this configuration, and a folder of this machine is none of others' business.
        assert "license: unknown" in card and "/somewhere" not in card.replace("\\", "") and "NOT KNOWN" in card
