"""What a run took: time and memory of every rule from its benchmark files, and tokens from its logs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd


def _of_rules(folder: Path, suffix: str) -> Iterator[tuple[str, str]]:
    """(rule, text) of each of its files, `<rule><suffix>` or `<rule>/**/*<suffix>`."""
    for path in sorted(folder.rglob(f"*{suffix}")):
        yield path.relative_to(folder).parts[0].removesuffix(suffix), path.read_text(encoding="utf-8", errors="replace")


def costs(benchmarks: Path, logs: Path) -> pd.DataFrame:
    """One line for each rule that left a benchmark file, slowest first.

    Columns: rule, jobs, minutes (wall clock of all its jobs together), cpu_minutes, memory_gb (largest resident set of one
    job, 10^9 bytes), tokens_read and tokens_written (as `logs.job` counted them; missing where no model was asked). What
    Snakemake could not measure, as of a job that was over at once, is missing.
    """
    measured = [{"rule": rule, **json.loads(line)} for rule, text in _of_rules(benchmarks, ".jsonl") for line in text.splitlines() if line.strip()]
    table = pd.DataFrame(measured, columns=["rule", "s", "cpu_time", "max_rss"])
    values = ["s", "cpu_time", "max_rss"]
    table[values] = table[values].apply(pd.to_numeric, errors="coerce")
    found = table.groupby("rule").agg(
        jobs=("s", "size"), minutes=("s", lambda s: s.sum() / 60), cpu_minutes=("cpu_time", lambda s: s.sum() / 60), memory_gb=("max_rss", lambda m: m.max() * 2**20 / 1e9)
    )
    counted = [(rule, int(read), int(written)) for rule, text in _of_rules(logs, ".log") for read, written in re.findall(r"(\d+) tokens read, (\d+) written", text)]
    tokens = pd.DataFrame(counted, columns=["rule", "tokens_read", "tokens_written"]).groupby("rule").sum()
    return found.join(tokens.astype("Int64")).sort_values("minutes", ascending=False, kind="stable").reset_index()
