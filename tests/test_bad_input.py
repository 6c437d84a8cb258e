"""Bad input through the whole workflow: one sentence on the terminal, exit code not 0, nothing half-written."""

import json
import re

import pytest
import yaml
from conftest import pair

from backtranslation import records

GOOD = [pair(n) for n in range(1, 21)]


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def config(tiny, **changes) -> dict:
    return {
        "name": "bad",
        "model": {"kind": "path", "name": str(tiny), "revision": None, "file": None, "sha256": None, "template": "auto"},
        "seed": {"sources": [{"path": "seed.jsonl"}], "heldout": 0.2},
        "corpus": {"sources": [{"path": "corpus.jsonl"}], "token_quantiles": [0.0, 1.0], "sample": 5},
        **changes,
    }


@pytest.mark.parametrize(
    "seed, changes, target, message",
    [
        (lines(GOOD) + b'{"instruction": "a", "resp', {}, "seed/train.parquet", r"seed\.jsonl: row 21: not valid JSON"),
        (lines([*GOOD, {"instruction": "a"}]), {}, "seed/train.parquet", r"seed\.jsonl: row 21: no field 'response'"),
        (lines(GOOD[:3]), {"seed": {"sources": [{"path": "seed.jsonl"}], "heldout": 0.1}}, "seed/train.parquet", r"seed\.heldout: 0\.1 of 3 pairs leaves 0 to measure on"),
        (
            lines(GOOD),
            {"corpus": {"sources": [{"path": "corpus.jsonl"}], "token_quantiles": [0.4, 0.5], "sample": 5}},
            "corpus/sample.parquet",
            r"corpus\.sample: no segment is left of 2; widen corpus\.token_quantiles",
        ),
        (
            lines(GOOD),
            {"corpus": {"sources": [{"path": "corpus.jsonl", "min_chars": 5000}], "token_quantiles": [0, 1], "sample": 5}},
            "corpus/segments.parquet",
            r"corpus\.sources: none of 2 segments is left; .*too_short",
        ),
    ],
)
def test_one_sentence_and_nothing_half_written(snakemake, tmp_path, tiny, seed, changes, target, message):
    (tmp_path / "seed.jsonl").write_bytes(seed)
    (tmp_path / "corpus.jsonl").write_bytes(lines([{"text": "Short."}, {"text": "A much longer text. " * 40}]))
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config(tiny, **changes)))
    code, printed = snakemake(f"results/bad/{target}", "--cores", "1", "--resources", "gpu=1", "--configfile", "my.yaml")
    assert code != 0
    assert re.search(f"^ERROR: .*{message}", printed, re.MULTILINE), printed
    assert not (tmp_path / "results" / "bad" / target).exists()
    assert not list((tmp_path / "results").rglob(".*.parquet*"))


def test_tokenizer_without_chat_template(snakemake, tmp_path, tiny):
    import shutil

    shutil.copytree(tiny, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "seed.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "corpus.jsonl").write_bytes(lines([{"text": "A text."}]))
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config(tmp_path / "base")))
    arguments = ["results/bad/backward/adapter/adapter_model.safetensors", "--cores", "1", "--resources", "gpu=1", "--configfile", "my.yaml"]
    code, printed = snakemake(*arguments)
    assert code != 0
    assert re.search(r"^ERROR: .*base: the tokenizer has no chat template; set model\.template to chatml or llama2", printed, re.MULTILINE), printed
    # What came before stays, and with the template named the run goes on from there.
    assert (tmp_path / "results" / "bad" / "seed" / "train.parquet").exists()
    changed = config(tmp_path / "base")
    changed["model"]["template"] = "chatml"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(changed))
    code, printed = snakemake(*arguments, "-n")
    assert code == 0 and "ingest_seed" not in printed


def test_names_that_snakemake_would_fill_in(snakemake, tmp_path, tiny):
    """A corpus's files may have any names and are read; a seed file with such a one is refused by its name."""
    (tmp_path / "pages").mkdir()
    names = ["pages/{name}.txt", "pages/<results>.txt", "pages/}.txt", "{one}.txt"]
    for name in names:
        (tmp_path / name).write_text(f"This is what stands in the file {name} alone.")
    (tmp_path / "seed.jsonl").write_bytes(lines(GOOD))
    (tmp_path / "{seed}.jsonl").write_bytes(lines(GOOD))
    corpus = {"sources": [{"path": "pages"}, {"path": "{one}.txt"}], "near_duplicates": None, "sample": 4}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config(tiny, corpus=corpus)))
    code, printed = snakemake("results/bad/corpus/segments.parquet", "--cores", "1", "--configfile", "my.yaml")
    assert code == 0, printed
    assert sorted(row["source"] for row in records.read(tmp_path / "results/bad/corpus/segments.parquet")) == sorted(names)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config(tiny, corpus=corpus, seed={"sources": [{"path": "{seed}.jsonl"}]})))
    code, printed = snakemake("-n", "--configfile", "my.yaml")
    assert code != 0 and "{seed}.jsonl: the name of a file of seed pairs or prompts must not hold any of {}<>" in printed, printed
