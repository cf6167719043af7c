"""Figures of neurons that show shares between 0 and 1: a panel a head, lines with bands, one legend above."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.notes import draw_note, noted_panels
from selfrepair.figures.style import inputs, layout, looks
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name


def share_panels(
    heads: pd.DataFrame,
    run: Mapping[str, Any],
    panel: Callable[[Axes, pd.DataFrame], None],
    *what: str,
    share: str,
    legend_title: str | None = None,
) -> Panels:
    """A panel a head, headed by its name.

    Args:
        heads: A table with columns rank, layer and head.
        run: The settings (`inputs.settings`).
        panel: Draws the rows of one head.
        what: What the line of settings says of neurons, tokens and marks (`footers.items`).
        share: Label of the y axis, which is a share told in percent.
        legend_title: What heads the legend.
    """

    def draw(ax: Axes, rows: pd.DataFrame) -> list[str]:
        panel(ax, rows)
        ax.set_ylim(-0.02, 1.02)
        ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
        return []

    parts = [rows for _, rows in heads.groupby("rank")]
    of = {(name := head_name(rows.iloc[0])): Panel(partial(draw, rows=rows), name, share) for rows in parts}
    return Panels(of, run, what, legend_title=legend_title)


def draw_shares(shown: Panels) -> Figure:
    """Draw what `share_panels` or `no_neurons` gives, a panel a head, side by side, on a page two columns wide."""
    if shown.note is not None:
        return draw_note(shown)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 66.0)
        axes = figure.subplots(1, len(shown.of), sharey=True, squeeze=False)[0]
        for letter, ax in zip("abcd", axes, strict=False):
            layout.panel_letter(ax, letter)
        for ax, title in zip(axes, shown.titles(), strict=True):
            ax.set_title(title)
        shown.draw(*axes)
        axes[0].set_ylabel(next(iter(shown.of.values())).ylabel)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=shown.legend_title)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def no_neurons(tables: inputs.Tables, note: str) -> Panels:
    """Why there are no neurons: a panel a head, headed by the heads' names, with the reason across them.

    Takes the figure's tables, which have a row a head, and raises what `notes.noted_panels` raises.
    """
    heads = inputs.table(tables, next(iter(tables)), ["rank", "layer", "head", "note"])
    return noted_panels(tables, note, [head_name(head) for _, head in heads.iterrows()])


def find_no_neurons(note: str) -> list[str]:
    """The reason as a finding."""
    return [f"No neurons are compared: {note}."]


def all_neurons(table: pd.DataFrame) -> str:
    """Which neurons a table is of, for the line of settings."""
    return f"{table.attrs['n_neurons']:,} neurons of the MLP of layer {table.attrs['neuron_layer']}"


def line_with_band(ax: Axes, x: Any, rows: pd.DataFrame, name: str, look: looks.Look, label: str) -> None:
    """A quantity against x with the band of its interval."""
    low, value, high = (rows[name + end].to_numpy(float) for end in ("_low", "", "_high"))
    ax.plot(x, value, label=label, zorder=3, color=look.colour, linestyle=look.dash)
    ax.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0, zorder=1.8, label="_band")


def rank_axis(ax: Axes, last: int, label: str) -> None:
    """Make the x axis ranks from 1 to the last, on a logarithmic scale."""
    ax.set_xscale("log")
    ax.set_xlim(0.9, 1.1 * last)
    ax.set_xticks([at for at in (1, 3, 10, 30, 100, 300) if at <= last])
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.minorticks_off()
    ax.set_xlabel(label)
