"""Figure: do the next layer's heads answer to an ablated head as to a residual stream without the layer?"""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import decimal, head_name, measured

X, Y = "change_when_moved", "change_when_ablated"
YLABEL = "change of direct effect\nwhen the head is ablated (logits)"


def panels(tables: inputs.Tables) -> Panels:
    """A panel a chosen head: a dot a head of the next layer, its two changes against each other.

    Args:
        tables: "correlations" and "heads".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    chosen, points = _tables(tables)
    run = inputs.settings(tables, "correlations", "heads")
    of = {}
    for _, head in chosen.iterrows():
        rows = points[(points["layer"] == head["layer"]) & (points["head"] == head["head"])]
        name = head_name(head)
        of[name] = Panel(partial(_panel, head=head, rows=rows), f"{name}{_correlation(head, rows)}", YLABEL)
    return Panels(of, run, ("top", "bars", "a dot a head of the next layer; the one that changes most is named"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 66.0)
        axes = figure.subplots(1, len(shown.of), squeeze=False)[0]
        shown.draw(*axes)
        for ax, title in zip(axes, shown.titles(), strict=True):
            ax.set_title(title)
        for letter, ax in zip("abcd", axes, strict=False):
            layout.panel_letter(ax, letter)
        axes[0].set_ylabel(YLABEL)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _tables(tables: inputs.Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    chosen = inputs.table(tables, "correlations", ["layer", "head", "n_heads", "n_tokens", "note"])
    names = inputs.with_interval("correlation")
    keys = ["layer", "head", "next_layer", "next_head", *inputs.with_interval(X, Y)]
    if (chosen["note"] == "").any():
        inputs.table(tables, "correlations", names)
        return chosen, inputs.table(tables, "heads", keys)
    # No chosen head has a next layer, or one of several heads: there is no correlation, and nothing to draw but that.
    return chosen, tables["heads"] if "heads" in tables else inputs.table(tables, "heads", keys)


def _correlation(head: pd.Series, rows: pd.DataFrame) -> str:
    if rows.empty:
        return "\n"
    if head["note"]:
        return ": one next head,\nnothing to correlate"
    r, low, high = (decimal(float(head[name]), 2) for name in inputs.with_interval("correlation"))
    return f": r = {r}\n({low} to {high})"


def _panel(ax: Axes, head: pd.Series, rows: pd.DataFrame) -> list[str]:
    guides.zero_line(ax)
    guides.upright_zero_line(ax)
    ax.set_xlabel("change when the stream\nis moved down (logits)")
    if rows.empty:
        ax.text(
            0.5, 0.6, str(head["note"]).replace(": ", ":\n"), transform=ax.transAxes, ha="center", color=looks.FAINT
        )
        return []
    ax.set_xlim(ranges.bulk_range(include=[0.0, rows[inputs.with_interval(X)]]))
    ax.set_ylim(ranges.bulk_range(include=[0.0, rows[inputs.with_interval(Y)]]))
    ax.locator_params(axis="x", nbins=3)
    ax.locator_params(axis="y", nbins=4)
    colour = looks.LOOKS["self_repair_from_heads"].colour
    ax.errorbar(
        rows[X], rows[Y],
        xerr=(rows[X] - rows[f"{X}_low"], rows[f"{X}_high"] - rows[X]),
        yerr=(rows[Y] - rows[f"{Y}_low"], rows[f"{Y}_high"] - rows[Y]),
        fmt="o", color=colour, ecolor=colour, elinewidth=0.5, markersize=2.8, label="_heads",
    )  # fmt: skip
    span_x, span_y = (high - low for low, high in (ax.get_xlim(), ax.get_ylim()))
    size = (rows[X] / span_x) ** 2 + (rows[Y] / span_y) ** 2
    row = rows.iloc[int(size.to_numpy().argmax())]
    right = row[X] < sum(ax.get_xlim()) / 2
    ax.annotate(
        f"L{int(row['next_layer'])}H{int(row['next_head'])}", (row[X], row[Y]), (3 if right else -3, 2.5),
        textcoords="offset points", ha="left" if right else "right", fontsize=looks.SMALL_SIZE, zorder=4,
    )  # fmt: skip
    return []


def _changes(head: pd.Series, rows: pd.DataFrame) -> str:
    """How much the heads of the next layer change, where these are too few for a correlation."""
    return " ".join(
        f"The direct effect of L{int(row['next_layer'])}H{int(row['next_head'])} changes by {measured(row, Y, 'logits')} when "
        f"{head_name(head)} is ablated, and by {measured(row, X, 'logits')} when its attention reads the input of layer "
        f"{int(head['layer'])}."
        for _, row in rows.iterrows()
    )


def finding(tables: inputs.Tables) -> list[str]:
    """The correlation for each chosen head.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    chosen, points = _tables(tables)
    lines = []
    for _, head in chosen.iterrows():
        of_head = points[(points["layer"] == head["layer"]) & (points["head"] == head["head"])]
        if head["note"] and len(of_head):
            lines.append(f"{head_name(head)} has {head['note']}. {_changes(head, of_head)}")
            continue
        if head["note"]:
            lines.append(f"{head_name(head)} is {head['note']}, so that nothing is correlated.")
            continue
        lines.append(
            f"{head_name(head)}, {int(head['n_tokens']):,} top tokens: over the {int(head['n_heads'])} heads of layer "
            f"{int(head['next_layer'])}, the change of their direct effect when {head_name(head)} is ablated correlates with "
            f"that when their attention reads the input of layer {int(head['layer'])} by {measured(head, 'correlation')}. The "
            "interval is over prompts, with these heads."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 correlate the same in their supplementary code: a next layer that does the work of an ablated "
        "head as it would do that of a skipped layer speaks for Iterative Inference. No value of theirs stands beside it here."
    )
    return lines
