"""What a run took: time and memory of every rule from its benchmark files, and the tokens that were counted."""

import json
from pathlib import Path

import pandas as pd


def costs(folder: Path, tokens: dict[str, int]) -> pd.DataFrame:
    """One line for each rule that left a benchmark file in `folder` (`<rule>.jsonl` or `<rule>/**/*.jsonl`), slowest first.

    Columns: rule, jobs, minutes (wall clock of all its jobs together), cpu_minutes, memory_gb (largest resident set of one
    job, 10^9 bytes), tokens (from `tokens`; missing where none were counted). What Snakemake could not measure, as of a
    job that was over at once, is missing.
    """
    measured = []
    for path in sorted(folder.rglob("*.jsonl")):
        rule = path.relative_to(folder).parts[0].removesuffix(".jsonl")
        measured += [{"rule": rule, **json.loads(line)} for line in path.read_text().splitlines() if line.strip()]
    table = pd.DataFrame(measured, columns=["rule", "s", "cpu_time", "max_rss"])
    values = ["s", "cpu_time", "max_rss"]
    table[values] = table[values].apply(pd.to_numeric, errors="coerce")
    found = table.groupby("rule").agg(
        jobs=("s", "size"), minutes=("s", lambda s: s.sum() / 60), cpu_minutes=("cpu_time", lambda s: s.sum() / 60), memory_gb=("max_rss", lambda m: m.max() * 2**20 / 1e9)
    )
    found["tokens"] = pd.Series(tokens, dtype="Int64").reindex(found.index)
    return found.sort_values("minutes", ascending=False, kind="stable").reset_index()
