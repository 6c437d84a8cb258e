"""The figures of the report. Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart."""

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd

from backtranslation.records import Row, atomic

matplotlib.use("svg")
# Figures with the same content are the same file, and their text can be searched and selected.
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "backtranslation",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.prop_cycle": "cycler('color', ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999'])",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, DROPPED, LINE = "#0072B2", "#D55E00", "#009E73"


SIGNAL_LABELS = {
    "combination": "combination, probability",
    "rating": "expected rating, 1 to 5",
    "rating_generated": "written rating, 1 to 5",
    "instruction_gain": "instruction gain, nats per token",
    "opening_gain": "gain over the opening, nats per token",
    "ending_logprob": "log p of ending there, nats",
    "backward_gain": "backward gain, nats per token",
    "instruction_logprob": "log p of the instruction, nats per token",
}
"""Signals as they are drawn, with what their values are."""

SIGNAL_STYLES = {
    "combination": {"color": LINE},
    "rating": {"color": "#0072B2"},
    "rating_generated": {"color": "#999999"},
    "instruction_gain": {"color": "#D55E00"},
    "opening_gain": {"color": "#E69F00"},
    "ending_logprob": {"color": "#CC79A7"},
    "backward_gain": {"color": "#56B4E9"},
    "instruction_logprob": {"color": "black"},
    "length": {"color": "black", "linestyle": ":"},
}
"""The lines of signals, the same in every figure, and of the number of words."""


def _save(figure: "Figure", path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def _panels(count: int, most: int, panel: tuple[float, float], margin: tuple[float, float], **options: Any) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` panels, at most `most` beside each other; sizes in inches, `margin` what the figure has beside its panels."""
    columns = min(most, count)
    rows = math.ceil(count / columns)
    size = (panel[0] * columns + margin[0], panel[1] * rows + margin[1])
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for at in range(count, axes.size):
        axes.flat[at].set_visible(False)
        # The panel above is the last one of its column, which has the numbers where columns share them.
        axes.flat[at - columns].tick_params(labelbottom=True)
    return figure, list(axes.flat[:count])


def _legend(figure: "Figure") -> None:
    """One legend below all panels, which share their colours."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # As many beside each other as there is room for.
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), int(figure.get_figwidth() / 1.2)), frameon=False)


def _below(figure: "Figure", text: str) -> None:
    """What holds for all panels, below them, in as many lines as the figure's width asks for."""
    figure.supxlabel(textwrap.fill(text, int(14 * figure.get_figwidth())), fontsize=8)


def funnel(table: pd.DataFrame, path: str | Path) -> None:
    """Bars of `funnel.funnel`'s tracks of corpus and candidates: rows that go on and rows that are dropped, per stage."""
    corpus = table[table["track"].isin(["corpus", "candidates"])].iloc[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(corpus) + 1.3))
    share = 100 / corpus["rows_in"]
    axes.barh(corpus["stage"], corpus["rows_out"] * share, color=KEPT, label="go on")
    axes.barh(corpus["stage"], corpus["dropped"] * share, left=corpus["rows_out"] * share, color=DROPPED, label="dropped")
    for at, line in enumerate(corpus.itertuples()):
        axes.annotate(
            f"{line.rows_out:,} of {line.rows_in:,}", (1, at), (4, 0), ("axes fraction", "data"), "offset points", va="center"
        )
    axes.set(xlabel="rows that came into the stage, %", xlim=(0, 100), title=f"From {corpus['rows_in'].iloc[-1]:,} pieces of text to {corpus['rows_out'].iloc[0]:,} curated pairs")
    _legend(figure)
    _save(figure, path)


def scores(rated: list[Row], kept: set[str], signal: str, path: str | Path) -> None:
    """Histograms of every signal that has values, kept and dropped candidates apart."""
    table = pd.DataFrame(rated)
    chosen = table["id"].isin(kept)
    names = [name for name in SIGNAL_LABELS if table[name].notna().any()]
    figure, panels = _panels(len(names), 3, (3.2, 2.6), (0, 0.4))
    for axes, name in zip(panels, names, strict=True):
        values, label = table[name], SIGNAL_LABELS[name]
        bins = np.linspace(1, 5, 33) if name.startswith("rating") else np.histogram_bin_edges(values.dropna(), 30)
        axes.hist([values[chosen], values[~chosen]], bins=list(bins), stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
        axes.set(xlabel=label, ylabel="candidates", title="decides what is kept" if name == signal else "")
        axes.axvline(values.mean(), color="black", linewidth=1, linestyle=":", label="mean of all")
        axes.locator_params(axis="x", nbins=5)
        axes.locator_params(axis="y", integer=True)
    figure.suptitle(f"n = {len(table):,} candidates, {chosen.sum():,} kept", fontsize=9)
    _legend(figure)
    _save(figure, path)


def lengths(rated: list[Row], kept: set[str], path: str | Path) -> None:
    """Words of instructions and of responses, kept and dropped candidates apart."""
    table = pd.DataFrame(rated)
    chosen = table["id"].isin(kept)
    figure, all_axes = plt.subplots(1, 2, figsize=(8, 3.4))
    for axes, column, label in zip(all_axes, ("instruction", "text"), ("instruction", "response"), strict=True):
        words = table[column].str.split().str.len()
        # Whole words per bin, or bars would differ in height for no reason.
        step = max(1, int(np.ceil((words.max() - words.min()) / 30)))
        bins = np.arange(words.min(), words.max() + 2 * step, step) - 0.5
        axes.hist([words[chosen], words[~chosen]], bins=bins, stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
        axes.set(xlabel=f"words in the {label}", ylabel="candidates")
        axes.locator_params(integer=True)
    figure.suptitle(f"n = {len(table):,} candidates, {chosen.sum():,} kept", fontsize=9)
    _legend(figure)
    _save(figure, path)


def length_by_rating(rated: list[Row], signal: str, path: str | Path) -> None:
    """Words of the instructions in each fifth of the rating, and of the signal that decides; boxes with the middle 90 %.

    A signal without any value has no panel; fifths that are equal, as of a judge who rates all alike, are one, and fifths
    that no candidate is in, as of less than five, are left out.
    """
    table = pd.DataFrame(rated)
    words = table["instruction"].str.split().str.len()
    names = [name for name in dict.fromkeys(["rating", signal]) if table[name].notna().any()]
    figure, all_axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False, sharey=True)
    for axes, name in zip(all_axes.flat, names, strict=True):
        fifths = pd.qcut(table[name], 5, duplicates="drop") if table[name].nunique() > 1 else table[name].astype("category")
        parts = [(fifth, words[fifths == fifth]) for fifth in fifths.cat.remove_unused_categories().cat.categories]
        # Their edges as they are: rounding would make some look empty.
        labels = [f"{table[name][part.index].min():.2f} to\n{table[name][part.index].max():.2f}" for _, part in parts]
        axes.boxplot([part for _, part in parts], whis=(5, 95), showfliers=False, tick_labels=labels, medianprops={"color": DROPPED}, boxprops={"color": KEPT}, whiskerprops={"color": KEPT}, capprops={"color": KEPT})
        axes.set(xlabel=SIGNAL_LABELS[name], title=f"n = {table[name].notna().sum():,} candidates in fifths")
    all_axes[0, 0].set(ylabel="words in the instruction", ylim=(0, None))
    _save(figure, path)


def heldout(table: pd.DataFrame, path: str | Path) -> None:
    """Each comparison of `evaluation.compare`: difference of the held-out losses with its 95 % interval."""
    lines = table.iloc[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(lines) + 1.3))
    for at, line in enumerate(lines.itertuples()):
        # Green is better, orange worse; black where the interval holds 0.
        color = LINE if line.high < 0 else DROPPED if line.low > 0 else "black"
        axes.plot([line.low, line.high], [at, at], color=color, linewidth=1.5)
        axes.plot(line.difference, at, "o", color=color, markersize=5)
        axes.annotate(f"{line.difference:+.3f}", (1, at), (4, 0), ("axes fraction", "data"), "offset points", va="center")
    axes.axvline(0, color="black", linewidth=1, linestyle=":")
    labels = [f"{line.model} against {line.against}" for line in lines.itertuples()]
    axes.set(yticks=range(len(lines)), yticklabels=labels, ylim=(-0.6, len(lines) - 0.4), xlabel="difference in held-out loss, nats per token (left of 0: better)", title=f"n = {lines['n'].max():,} held-out pairs, 95 % intervals")
    _save(figure, path)


def costs(table: pd.DataFrame, path: str | Path, most: int = 12) -> None:
    """Time of the `most` slowest rules, and the largest memory of their jobs (see `costs.costs`)."""
    lines = table.head(most).iloc[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.26 * len(lines) + 1.1), sharey=True)
    left.barh(lines["rule"], lines["minutes"], color=KEPT)
    left.set(xlabel="wall clock, minutes", title=f"{lines['minutes'].sum():,.1f} of {table['minutes'].sum():,.1f} minutes, n = {lines['jobs'].sum():,} of {table['jobs'].sum():,} jobs")
    right.barh(lines["rule"], lines["memory_gb"], color=LINE)
    right.set(xlabel="largest resident memory of a job, GB", title=f"{lines['memory_gb'].max():.1f} GB at most")
    _save(figure, path)


def training(histories: dict[str, pd.DataFrame], path: str | Path) -> None:
    """Training loss per step and held-out loss per epoch, one panel per model."""
    figure, panels = _panels(len(histories), 3, (3.4, 2.9), (0, 0.4))
    for axes, (model, history) in zip(panels, histories.items(), strict=True):
        steps = history.dropna(subset=["loss"])
        heldout = history.dropna(subset=["heldout_loss"])
        axes.plot(steps["step"], steps["loss"], color=KEPT, alpha=0.35, label="training, per step")
        window = max(1, len(steps) // 10)
        if window > 1:
            axes.plot(steps["step"], steps["loss"].rolling(window, min_periods=1).mean(), color=KEPT, label="training, running mean")
        axes.plot(heldout["step"], heldout["heldout_loss"], color=DROPPED, marker="o", label="held-out")
        axes.set(xlabel="step", ylabel="loss, nats per token", title=f"{model}, n = {len(steps):,} steps")
    _legend(figure)
    _save(figure, path)


def audit(table: pd.DataFrame, verdict: Row, path: str | Path) -> None:
    """AUROC of each signal per kind of bad pair (see `audit.aurocs`), with intervals; one panel per kind."""
    kinds = list(table["kind"].unique())
    signals = list(table["signal"].unique())[::-1]
    figure, panels = _panels(len(kinds), 4, (2.3, 0.27 * len(signals) + 0.9), (1.2, 0), sharex=True, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        part = table[table["kind"] == kind].set_index("signal").reindex(signals)
        for at, (name, line) in enumerate(part.iterrows()):
            color = "black" if name == "length" else LINE if name == verdict["signal"] else KEPT
            axes.plot([line["low"], line["high"]], [at, at], color=color, linewidth=1.5)
            axes.plot(line["auroc"], at, "o", color=color, markersize=4, clip_on=False)
        axes.axvline(0.5, color="black", linewidth=1, linestyle=":")
        axes.set(title=f"{kind.replace('_', ' ')}, n = {part['n'].max():.0f}", xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"), yticks=range(len(signals)), yticklabels=signals)
    _below(figure, "AUROC, 95 % interval; green decides what is kept, black is length alone, dotted is chance")
    _save(figure, path)


def roc(curves: dict[str, pd.DataFrame], table: pd.DataFrame, verdict: Row, path: str | Path) -> None:
    """Good against bad pairs kept as the cut goes down, of each signal (see `audit.roc`); AUROCs are `audit.aurocs`' over all kinds."""
    figure, axes = plt.subplots(figsize=(7.6, 4.2))
    lines = table[table["kind"] == "all"].set_index("signal")
    # The best one first, as they lie in the figure.
    for name, line in lines.sort_values("auroc", ascending=False).iterrows():
        label = f"{name}: {line['auroc']:.2f} ({line['low']:.2f} to {line['high']:.2f})"
        width = 2.5 if name == verdict["signal"] else 1.2
        axes.plot(100 * curves[str(name)]["bad"], 100 * curves[str(name)]["good"], label=label, linewidth=width, **SIGNAL_STYLES[str(name)])
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1, linestyle="--", label="chance: 0.50")
    axes.set(xlabel="bad pairs that are kept, %", ylabel="good pairs that are kept, %", box_aspect=1, title=f"n = {lines['n'].max():.0f} labelled pairs")
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, title="AUROC, 95 % interval", alignment="left")
    _save(figure, path)


def reliability(table: pd.DataFrame, calibration: pd.DataFrame, path: str | Path) -> None:
    """Left, the share of good pairs in each fifth of each signal's values; right, of the combination's against what it says.

    `table` and `calibration` are those of `audit.reliability` and `audit.calibration`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8), width_ratios=(1.35, 1))
    for name, part in table.groupby("signal", sort=False):
        left.plot(range(1, len(part) + 1), 100 * part["good"], marker="o", markersize=3, label=name, **SIGNAL_STYLES[str(name)])
    left.set(xlabel="fifth of the signal's values, lowest first", ylabel="good pairs, %", xticks=range(1, 6), ylim=(0, None), title=f"n = {table[table['signal'] == table['signal'].iloc[0]]['n'].sum():,} pairs")
    found = 100 * calibration[["predicted", "good", "low", "high"]]
    right.plot([0, 100], [0, 100], color="#999999", linewidth=1, linestyle="--", label="as it says")
    # A bootstrap's interval need not hold the value itself.
    errors = [(found["good"] - found["low"]).clip(0), (found["high"] - found["good"]).clip(0)]
    right.errorbar(found["predicted"], found["good"], errors, color=LINE, marker="o", markersize=3, capsize=2, linewidth=1, label="combination, 95 % interval")
    right.set(xlabel="probability of a good pair that it gives, %", ylabel="good pairs, %, as many good as bad", xlim=(0, 100), ylim=(-2, 102), title=f"n = {calibration['n'].sum():,} pairs in fifths")
    handles, labels = ([*first, *second] for first, second in zip(left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    _save(figure, path)


def iterations(rated: list[list[Row]], notebook: dict[str, int], paper: dict[str, float], path: str | Path) -> None:
    """Ratings of each iteration's judge, rounded, beside the notebook's; and shares of A4 and A5 beside the paper's."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(2.2, 1))
    names = list(notebook)[::-1]
    series = {f"the notebook's judge, n = {sum(notebook.values())}": [notebook[name] / sum(notebook.values()) for name in names]}
    shares = {}
    for t, rows in enumerate(rated, start=1):
        # Halves go up, as 4.5 counts for a 5 in the paper.
        rounded = ["none" if row["rating"] != row["rating"] else str(int(row["rating"] + 0.5)) for row in rows]
        series[f"iteration {t}, n = {len(rows)}"] = [rounded.count(name) / len(rows) for name in names]
        # A judge that was not asked for ratings gave no low ones.
        shares[t] = [sum(row["rating"] >= level for row in rows) / len(rows) if rounded.count("none") < len(rows) else math.nan for level in (4, 4.5)]
    width = 0.8 / len(series)
    colors = ["#999999", KEPT, DROPPED, LINE, "#CC79A7", "#E69F00", "#56B4E9"]
    for n, (name, values) in enumerate(series.items()):
        left.bar(np.arange(len(names)) + (n - (len(series) - 1) / 2) * width, 100 * np.array(values), width, label=name, color=colors[n % len(colors)])
    left.set(xticks=range(len(names)), xticklabels=names, xlabel="rating, rounded", ylabel="candidates, %")
    for level, (name, published) in enumerate(paper.items()):
        right.plot(list(shares), [100 * both[level] for both in shares.values()], marker="o", markersize=(8, 4)[level], color=(KEPT, DROPPED)[level], label=f"{name}, rated {(4, 4.5)[level]:g} or more")
        right.axhline(100 * published, color=(KEPT, DROPPED)[level], linestyle=":", linewidth=1)
        right.annotate(f"paper {published:.1%}", (1, 100 * published), (0, 3), ("axes fraction", "data"), "offset points", ha="right", color=(KEPT, DROPPED)[level])
    right.set(xlabel="iteration", ylabel="candidates, %", xticks=list(shares), ylim=(-2, None))
    handles, labels = left.get_legend_handles_labels()
    more = right.get_legend_handles_labels()
    figure.legend(handles + more[0], labels + more[1], loc="outside lower center", ncols=min(4, len(labels) + 2), frameon=False, fontsize=8)
    _save(figure, path)


ARM_COLORS = {"curated": KEPT, "random": DROPPED, "oracle": LINE, "broken": "#999999", "augmented": "#CC79A7", "single": "#56B4E9", "all": "#E69F00", "a4": "#F0E442", "a5": "#A6761D"}


def _with_unit(measure: str) -> str:
    """A measure of the proof as an axis names it; win rates are shares."""
    return measure.replace("_", " ") + ("" if "win_rate" in measure else ", nats a token")


def _together(arms: pd.DataFrame) -> pd.DataFrame:
    """The lines of a proof's table that stand for all training seeds together, where there are several."""
    return arms[(arms["seed"] == "all") | (arms.groupby(["arm", "n", "measure"])["seed"].transform("size") == 1)]


def quality(arms: pd.DataFrame, summary: Row, measure: str, path: str | Path) -> None:
    """Left, `measure` of every arm against the candidates it adds, joint and augmented only; right, the scaling fit where there is one.

    `arms` and `summary` are those of the proof (see `proof.table`, `proof.summary`). Bars are 95 % intervals over pairs and
    seeds; the shaded part holds the slopes within alpha's interval. Raises ValueError when `measure` was not measured.
    """
    if measure not in set(arms["measure"]):
        raise ValueError(f"proof.drawn: {measure} was not measured; there are {', '.join(arms['measure'].unique())}")
    # One size has no slope.
    fits = summary["alpha"] is not None
    figure, panels = plt.subplots(1, 1 + fits, figsize=(5.4 + 3.6 * fits, 3.6), width_ratios=(1.5, 1)[: 1 + fits], squeeze=False)
    left = panels[0, 0]
    part = _together(arms[arms["measure"] == measure])
    drawn = [arm for arm in ARM_COLORS if arm in set(part["arm"])]
    for number, arm in enumerate(drawn):
        line = part[part["arm"] == arm].sort_values("n")
        # A little apart, so that bars do not hide each other.
        at = line["n"] * (1 + 0.015 * (number - (len(drawn) - 1) / 2))
        errors = [line["value"] - line["low"], line["high"] - line["value"]]
        left.errorbar(at, line["value"], errors, color=ARM_COLORS[arm], marker="o", markersize=4, capsize=2, label=arm)
    for arm, style in (("base", ":"), ("seed", "--"), ("seed_broken", "-.")):
        for value in part.loc[part["arm"] == arm, "value"]:
            left.axhline(value, color="black", linewidth=1, linestyle=style, label=arm)
    left.set(xlabel="candidates added", ylabel=_with_unit(measure), xscale="log", title=f"quality against quantity, n = {summary['n_heldout']} pairs")
    sizes = sorted(n for n in part["n"].unique() if n)
    left.set_xticks(sizes, [str(n) for n in sizes])
    if sizes:
        left.set_xlim(sizes[0] / 1.25, sizes[-1] * 1.25)
    left.minorticks_off()
    if fits:
        _scaling(panels[0, 1], arms, summary)
    _legend(figure)
    _save(figure, path)


def _scaling(right: "Axes", arms: pd.DataFrame, summary: Row) -> None:
    """The fit over the sizes of `curated`, and each training seed's values."""
    fitted = arms[(arms["measure"] == summary["fitted"]) & (arms["arm"] == "curated") & (arms["seed"] != "all")]
    right.plot(fitted["n"], fitted["value"], "o", color=KEPT, markersize=3, alpha=0.6)
    sizes = sorted(fitted["n"].unique())
    # Back to the sign and unit of the measure itself.
    unit = (-1 if summary["fitted"].endswith("loss") else 1) / (100 if "win_rate" in summary["fitted"] else 1)
    n = np.linspace(sizes[0], sizes[-1], 50)
    center = np.log(sizes).mean()
    away = np.log(n) - center
    middle = unit * (summary["alpha"] * center + summary["constant"])
    right.plot(n, middle + unit * summary["alpha"] * away, color=KEPT)
    right.fill_between(n, middle + unit * summary["alpha_low"] * away, middle + unit * summary["alpha_high"] * away, color=KEPT, alpha=0.2)
    right.set(xlabel="curated candidates", ylabel=_with_unit(summary["fitted"]), xscale="log", title=f"scaling fit, {summary['seeds']} training seeds")
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.minorticks_off()


def differences(compared: pd.DataFrame, summary: Row, path: str | Path) -> None:
    """Differences between arms on every admitted measure, or on the one that comes nearest, with their paired 95 % intervals.

    `compared` and `summary` are those of the proof (see `proof.comparisons`, `proof.summary`).
    """
    measures = summary["admitted"] or [summary["measure"]]
    names = list(dict.fromkeys(compared["comparison"]))[::-1]
    figure, panels = _panels(len(measures), 3, (2.4, 0.3 * len(names) + 1.1), (2.2, 0.4), sharey=True)
    labels = [" against ".join(summary["controls"] if name == "oracle_vs_broken" else name.split("_vs_")) for name in names]
    for axes, measure in zip(panels, measures, strict=True):
        part = compared[compared["measure"] == measure].set_index("comparison")
        for at, name in enumerate(names):
            if name in part.index:
                value, low, high = part.loc[name, ["difference", "low", "high"]]
                color = KEPT if high < 0 else DROPPED if low > 0 else "#777777"
                axes.errorbar(value, at, xerr=[[max(0, value - low)], [max(0, high - value)]], fmt="o", color=color, markersize=4, capsize=2)
        axes.axvline(0, color="black", linewidth=1, linestyle=":")
        axes.locator_params(axis="x", nbins=4)
        axes.set(xlabel=_with_unit(measure), yticks=range(len(names)), yticklabels=labels, ylim=(-0.6, len(names) - 0.4), title=f"n = {part['pairs'].max()} pairs" if len(part) else "no arms to compare")
    _below(figure, "left of the line the first arm is better; 95 % intervals over pairs and training seeds")
    _save(figure, path)


def win_rates(arms: pd.DataFrame, judge: Row, path: str | Path) -> None:
    """Win rate of every arm against the untouched model, as it is and without what length explains, with 95 % intervals.

    `arms` is the proof's table (see `proof.table`), `judge` what `pairwise.audited` says of the judge.
    """
    rates = _together(arms[arms["measure"].str.contains("win_rate")])
    cells = list(dict.fromkeys(zip(rates["arm"], rates["n"], strict=True)))[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 0.45 * len(cells) + 1.7))
    for away, measure, marker, label in ((0.13, "seed_win_rate", "o", "as it is"), (-0.13, "seed_win_rate_lc", "s", "length-controlled")):
        part = rates[rates["measure"] == measure].set_index(["arm", "n"]).loc[cells, ["value", "low", "high"]] * 100
        errors = [(part["value"] - part["low"]).clip(0), (part["high"] - part["value"]).clip(0)]
        axes.errorbar(part["value"], np.arange(len(cells)) + away, xerr=errors, fmt=marker, color=KEPT if marker == "o" else DROPPED, markersize=4, capsize=2, label=label)
    axes.axvline(50, color="black", linewidth=1, linestyle=":")
    believed = f"The judge agrees with {judge['on']} in {judge['agreement']:.0%} ({judge['low']:.0%} to {judge['high']:.0%}, n = {judge['n']:,})"
    axes.set(yticks=range(len(cells)), yticklabels=[f"{arm}, {n:,} added" for arm, n in cells], ylim=(-0.6, len(cells) - 0.4), xlim=(min(-2, axes.get_xlim()[0]), max(102, axes.get_xlim()[1])), xlabel="answers better than the untouched model's, %; 95 % intervals")
    figure.suptitle(believed, fontsize=9)
    _legend(figure)
    _save(figure, path)
