"""The funnel: how many rows came into every stage, how many went on, and why the others did not."""

from collections import Counter

import pandas as pd

from backtranslation.records import RecordError, Row, batches

Reasons = Counter[tuple[str, str]]
"""Dropped rows per (stage, reason)."""


def reasons_of(path: str) -> Reasons:
    """Counts of a ledger file, which is never in memory as a whole."""
    found: Reasons = Counter()
    for batch in batches(path, ["stage", "reason"], 100_000):
        found.update(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    return found


def funnel(stages: list[tuple[str, str, int, Reasons, int]]) -> pd.DataFrame:
    """The funnel table from `(track, stage, rows in, dropped rows, rows out)`, in order.

    Columns: track (what its rows are, such as `seed` or `candidates`), stage, rows_in, dropped, rows_out, reasons (text).

    Raises RecordError when a stage's numbers do not add up, or the rows out of one stage are not
    the rows into the next one of its track.
    """
    lines = []
    arriving: dict[str, int] = {}
    for track, stage, rows_in, dropped, rows_out in stages:
        if rows_in != dropped.total() + rows_out:
            raise RecordError(f"{track}, {stage}: {rows_in} rows in, but {dropped.total()} dropped and {rows_out} out")
        if arriving.get(track, rows_in) != rows_in:
            raise RecordError(f"{track}, {stage}: {rows_in} rows in, but {arriving[track]} came out of the stage before")
        arriving[track] = rows_out
        lines.append(
            {
                "track": track,
                "stage": stage,
                "rows_in": rows_in,
                "dropped": dropped.total(),
                "rows_out": rows_out,
                "reasons": ", ".join(f"{reason} {count}" for (_, reason), count in dropped.most_common()),
            }
        )
    return pd.DataFrame(lines)


def reasons(dropped: Reasons) -> pd.DataFrame:
    """Rows per stage and reason code, in the order in which the stages come."""
    order = list(dict.fromkeys(stage for stage, _ in dropped))
    lines = sorted(dropped.items(), key=lambda item: (order.index(item[0][0]), -item[1], item[0][1]))
    return pd.DataFrame([(*key, count) for key, count in lines], columns=["stage", "reason", "rows"])


def signal_statistics(rated: list[Row], kept: set[str], signals: tuple[str, ...], decides: str) -> pd.DataFrame:
    """Distribution of each signal that has values, over all rated candidates, and its mean over the kept ones.

    With several candidates for a segment, also what choosing the best of them by `decides` bought:
    `mean_of_first` is the mean over the segments had there been one candidate, `mean_of_best` with the choice.
    """
    table = pd.DataFrame(rated)
    best = table.sort_values([decides, "id"], ascending=[False, True]).drop_duplicates("segment")
    # A segment whose first candidate did not pass the gate would have had none.
    first = table[table["id"] == table["segment"]]
    lines = []
    for name in signals:
        values = table[name]
        if values.isna().all():
            continue
        quantiles = values.quantile([0.25, 0.5, 0.75]).tolist()
        line = {
            "signal": name,
            "n": len(values),
            "without_value": int(values.isna().sum()),
            "mean": values.mean(),
            "sd": values.std(),
            **dict(zip(["q25", "median", "q75"], quantiles, strict=True)),
            "mean_of_kept": values[table["id"].isin(kept)].mean(),
        }
        if len(best) < len(table):
            line |= {"segments_of_first": len(first), "mean_of_first": first[name].mean(), "segments_of_best": len(best), "mean_of_best": best[name].mean()}
        lines.append(line)
    return pd.DataFrame(lines)
