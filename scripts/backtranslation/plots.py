"""The figures of the report. Colours are from Okabe and Ito's palette, which colour-blind readers can tell apart."""

from pathlib import Path
from typing import TYPE_CHECKING

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
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)
from matplotlib import pyplot as plt  # noqa: E402 - the backend is chosen first

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEPT, DROPPED, LINE = "#0072B2", "#D55E00", "#009E73"


def _save(figure: "Figure", path: str | Path) -> None:
    with atomic(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    plt.close(figure)


def _legend(figure: "Figure") -> None:
    """One legend below all panels, which share their colours."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def funnel(table: pd.DataFrame, path: str | Path) -> None:
    """Bars of `funnel.funnel`'s corpus track: rows that go on and rows that are dropped, per stage."""
    corpus = table[table["track"] == "corpus"].iloc[::-1]
    figure, axes = plt.subplots(figsize=(7, 0.5 * len(corpus) + 1.3))
    share = 100 / corpus["rows_in"]
    axes.barh(corpus["stage"], corpus["rows_out"] * share, color=KEPT, label="go on")
    axes.barh(corpus["stage"], corpus["dropped"] * share, left=corpus["rows_out"] * share, color=DROPPED, label="dropped")
    for at, line in enumerate(corpus.itertuples()):
        axes.annotate(
            f"{line.rows_out:,} of {line.rows_in:,}", (1, at), (4, 0), ("axes fraction", "data"), "offset points", va="center"
        )
    axes.set(xlabel="rows that came into the stage, %", xlim=(0, 100), title="From corpus to curated pairs")
    _legend(figure)
    _save(figure, path)


def scores(rated: list[Row], kept: set[str], signal: str, path: str | Path) -> None:
    """Histograms of the judge's rating and of the instruction gain, kept and dropped candidates apart."""
    table = pd.DataFrame(rated)
    chosen = table["id"].isin(kept)
    figure, all_axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=False)
    names = {"rating": "expected rating, 1 to 5", "instruction_gain": "instruction gain, nats per token"}
    for axes, (name, label) in zip(all_axes, names.items(), strict=True):
        values = table[name]
        bins = np.linspace(1, 5, 33) if name == "rating" else np.histogram_bin_edges(values.dropna(), 30)
        axes.hist([values[chosen], values[~chosen]], bins=bins, stacked=True, color=[KEPT, DROPPED], label=["kept", "dropped"])
        axes.set(xlabel=label, ylabel="candidates", title="decides what is kept" if name == signal else "")
        axes.axvline(values.mean(), color="black", linewidth=1, linestyle=":", label="mean of all")
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
    _legend(figure)
    _save(figure, path)


def training(histories: dict[str, pd.DataFrame], path: str | Path) -> None:
    """Training loss per step and held-out loss per epoch, one panel per model."""
    figure, all_axes = plt.subplots(1, len(histories), figsize=(4 * len(histories), 3.4), squeeze=False)
    for axes, (model, history) in zip(all_axes[0], histories.items(), strict=True):
        steps = history.dropna(subset=["loss"])
        heldout = history.dropna(subset=["heldout_loss"])
        axes.plot(steps["step"], steps["loss"], color=KEPT, alpha=0.35, label="training, per step")
        window = max(1, len(steps) // 10)
        if window > 1:
            axes.plot(steps["step"], steps["loss"].rolling(window, min_periods=1).mean(), color=KEPT, label="training, running mean")
        axes.plot(heldout["step"], heldout["heldout_loss"], color=DROPPED, marker="o", label="held-out")
        axes.set(xlabel="step", ylabel="loss, nats per token", title=f"{model} model")
    _legend(figure)
    _save(figure, path)
