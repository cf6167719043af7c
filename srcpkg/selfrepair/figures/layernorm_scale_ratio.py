"""Figure: how ablating a head changes the scale of the final norm."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.kinds import given_kinds
from selfrepair.figures.style import inputs, layout, looks
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, percentage

ABOVE = "share_above_1"
MARKERS = {"resample": "o", "mean": "s", "zero": "^"}
NAMES = {"all": "all tokens", "top": "top tokens"}


def panels(tables: inputs.Tables) -> Panels:
    """The ratio of clean to ablated scale for the first of the chosen heads, and for all of them the share above 1.

    Args:
        tables: "ratio_KIND" and "histogram_KIND" of each kind of ablation.

    Raises:
        ValueError: No table of an ablation, a column or a setting is missing, or the tables are of several runs.
    """
    kinds = given_kinds(tables, "ratio")
    ratios = {kind: _ratios(tables, kind) for kind in kinds}
    columns = ["rank", "selection", "ratio_low", "ratio_high", "n_tokens", "share"]
    strongest = {kind: inputs.table(tables, f"histogram_{kind}", columns).query("rank == 1") for kind in kinds}
    run = inputs.settings(
        tables, *(f"{name}_{kind}" for kind in kinds for name in ("ratio", "histogram")), differing=["ablation"]
    )
    xlim = _limits(strongest.values())
    ylim = (0.0, 1.05 * max(100 * table["share"].max() for table in strongest.values()))
    head = head_name(ratios[kinds[0]].iloc[0])
    of = {
        kind: Panel(
            partial(_histogram, table=table, xlim=xlim, ylim=ylim), f"{kind} ablation of {head}", "share of tokens (%)"
        )
        for kind, table in strongest.items()
    }
    of["shares"] = Panel(partial(_shares, ratios=ratios))
    return Panels(of, run, ("top tokens: the {top:g}% of largest direct effect", "bars"), kinds)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    n = len(shown.kinds)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 108.0)
        upper, lower = figure.subfigures(2, 1, squeeze=False).ravel()
        above = upper.subplots(1, n, sharey=True, squeeze=False)[0]
        below = lower.subplots()
        shown.draw(*above, below)
        for letter, ax, panel in zip("abcd", [*above, below], shown.of.values(), strict=False):
            if panel.title:
                ax.set_title(panel.title)
            layout.panel_letter(ax, letter)
        above[0].set_ylabel(next(iter(shown.of.values())).ylabel)
        upper.legend(*above[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, handlelength=1.4)
        below.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """For each ablation: on which share of tokens the scale shrinks, for each chosen head and for all heads together.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one an ablation.
    """
    lines = []
    for kind in given_kinds(tables, "ratio"):
        ratios = _ratios(tables, kind)
        parts = []
        for _, rows in ratios.groupby(ratios["rank"].replace(0, len(ratios)), sort=True):
            each = " and ".join(
                f"{percentage(row, ABOVE)} of {NAMES[row['selection']]} (n = {int(row['n_tokens']):,})"
                for _, row in rows.iterrows()
            )
            parts.append(f"{_name(rows.iloc[0])} on {each}")
        lines.append(f"Under {kind} ablation the final scale shrinks (clean / ablated above 1): {'; '.join(parts)}.")
    lines[-1] += (
        " Rushing & Nanda 2024 show this ratio for GPT-2 small L11H11, over all tokens and over the top 2%, and explain repair "
        "by LayerNorm by a scale that shrinks."
    )
    return lines


def _ratios(tables: inputs.Tables, kind: str) -> pd.DataFrame:
    columns = ["selection", "rank", "layer", "head", "n_tokens", *inputs.with_interval(ABOVE)]
    return inputs.table(tables, f"ratio_{kind}", columns)


def _name(row: pd.Series) -> str:
    return head_name(row) if row["rank"] else "all heads"


def _limits(histograms: Any) -> tuple[float, float]:
    """Ends that leave out at most 1% of the tokens of any selection on either side, and hold 1."""
    ends = [1.0]
    for table in histograms:
        for _, rows in table.groupby("selection"):
            inside = rows[rows["share"].cumsum().between(0.01, 0.99)]
            ends += [*inside["ratio_low"], *inside["ratio_high"]]
    finite = np.array([end for end in ends if 0 < end < np.inf])
    margin = 0.04 * max(np.ptp(finite), 0.01)
    return float(finite.min() - margin), float(finite.max() + margin)


def _histogram(ax: Axes, table: pd.DataFrame, xlim: tuple[float, float], ylim: tuple[float, float]) -> list[str]:
    """Both selections as shares of their own tokens; what lies outside is counted."""
    green = looks.LOOKS["self_repair_from_layernorm"].colour
    drawn: dict[str, dict[str, Any]] = {
        "all": {"color": looks.PALE, "fill": True, "alpha": 0.7},
        "top": {"color": green, "linewidth": 1.2},
    }
    notes = []
    for selection, look in drawn.items():
        rows = table[table["selection"] == selection]
        if rows.empty:
            continue
        # The first and last bins hold all that is below and above; they have no width to draw.
        bins = rows[(rows["ratio_low"] > 0) & np.isfinite(rows["ratio_high"])]
        edges = [*bins["ratio_low"], bins["ratio_high"].iloc[-1]]
        ax.stairs(100 * bins["share"], edges, label=NAMES[selection], **look)
        below = rows.loc[rows["ratio_high"] <= xlim[0], "n_tokens"].sum()
        above = rows.loc[rows["ratio_low"] >= xlim[1], "n_tokens"].sum()
        if below or above:
            notes.append(f"{NAMES[selection]}: {below:,} below, {above:,} above")
    ax.set(xlim=xlim, ylim=ylim)
    ax.axvline(1, color=looks.INK, linewidth=0.6, zorder=3)
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel("clean / ablated final scale")
    if notes:
        note = "outside:\n" + "\n".join(notes)
        ax.annotate(
            note,
            (1, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=looks.SMALL_SIZE - 0.5,
            color=looks.FAINT,
        )
    return []


def _shares(ax: Axes, ratios: dict[str, pd.DataFrame]) -> list[str]:
    """The share above 1 of each head, of all heads together, by ablation and selection."""
    green = looks.LOOKS["self_repair_from_layernorm"].colour
    order = sorted({rank for table in ratios.values() for rank in table["rank"]}, key=lambda rank: (rank == 0, rank))
    names: dict[int, str] = {}
    n_marks = 2 * len(ratios)
    for number, (kind, table) in enumerate(ratios.items()):
        for at, (selection, label) in enumerate(NAMES.items()):
            rows = table[table["selection"] == selection]
            if rows.empty:
                continue
            names |= {int(row["rank"]): _name(row) for _, row in rows.iterrows()}
            apart = 0.11 * (2 * number + at - (n_marks - 1) / 2)
            x = np.array([order.index(rank) for rank in rows["rank"]]) + apart
            colour = green if selection == "top" else looks.FAINT
            ax.vlines(x, 100 * rows[f"{ABOVE}_low"], 100 * rows[f"{ABOVE}_high"], color=colour, linewidth=1.0)
            ax.plot(
                x,
                100 * rows[ABOVE],
                linestyle="none",
                marker=MARKERS[kind],
                markersize=3.6,
                color=colour,
                markerfacecolor=colour if selection == "top" else "white",
                label=f"{kind}, {label}",
            )
    ax.axhline(50, color=looks.FAINT, linewidth=0.6, dashes=(4, 3), zorder=0.5)
    ax.set_xticks(range(len(order)), [names[int(rank)] for rank in order])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.6, len(order) - 0.4)
    ax.set_ylim(-2, 102)
    ax.set_ylabel("tokens with ratio above 1 (%)")
    return []
