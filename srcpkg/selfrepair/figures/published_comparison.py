"""Figure: this run's heads against the paper's published ones, or, for a model that is none of them, their distributions."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from selfrepair.figures.shared.distributions import (
    COLUMNS,
    Models,
    distribution_lines,
    draw_distributions,
    published_models,
)
from selfrepair.figures.style import footers, guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.wording import measured
from selfrepair.quantities import OF_PAPER, QUANTITIES

OWN: Models = {"this run": ("this run", looks.Look(looks.INK, "-", "o"))}


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw a dot a head against the published value; without published heads, quantiles over heads by third of depth.

    Args:
        tables: "pairs" (no rows where the model is none of the published), "agreement" and "distributions".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    run = inputs.settings(tables, "pairs", "agreement", "distributions")
    with looks.context():
        if tables["pairs"].empty:
            table, models = _distributions(tables)
            return draw_distributions(table, run, models)
        return _draw_pairs(tables, run)


def _draw_pairs(tables: dict[str, pd.DataFrame], run: dict[str, object]) -> Figure:
    columns = ["quantity", "relative_depth", "published", *inputs.with_interval("value")]
    pairs = inputs.table(tables, "pairs", columns)
    agreement = inputs.table(tables, "agreement", ["quantity", *inputs.with_interval("correlation", "slope")])
    of_quantity = {str(row["quantity"]): row for _, row in agreement.iterrows()}
    theirs = looks.published_look(str(tables["pairs"].attrs["published"]))[0]
    figure = layout.new_figure(looks.TWO_COLUMNS, 116.0)
    axes = figure.subplots(2, 3).ravel()
    for ax, quantity in zip(axes, OF_PAPER, strict=True):
        dots = _scatter(ax, pairs[pairs["quantity"] == quantity], quantity)
        row = of_quantity[quantity]
        ax.set_xlabel(f"{theirs}, published")
        ax.text(
            0.03,
            0.97,
            f"r = {measured(row, 'correlation')}\nslope {measured(row, 'slope')}",
            transform=ax.transAxes,
            va="top",
            fontsize=looks.SMALL_SIZE,
        )
    bar = figure.colorbar(dots, ax=axes, ticks=[0, 0.5, 1], fraction=0.02, aspect=40, shrink=0.8)
    bar.set_label("relative depth of the head's layer")
    bar.outline.set_linewidth(0.4)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    footers.footer(
        figure, looks.TWO_COLUMNS, run, "top", "bars: {level:g}% intervals over prompts; brackets: over heads"
    )
    return figure


def _scatter(ax: Axes, pairs: pd.DataFrame, quantity: str) -> PathCollection:
    x, y = pairs["published"], pairs["value"]
    low, high = ranges.bulk_range(x, y, include=[0.0], coverage=0.98)
    ax.set(xlim=(low, high), ylim=(low, high))
    ax.set_box_aspect(1)
    ax.locator_params(nbins=5)
    guides.zero_line(ax)
    ax.axline((0, 0), slope=1, color=looks.FAINT, linewidth=0.8, zorder=0.8, label="_equal")
    # Its label stands below the line, where fewer dots are.
    span = high - low
    place = min(
        (low + 0.1 * span, low + 0.8 * span),
        key=lambda at: int(((x - at).between(0, 0.2 * span) & (at - y).between(-0.05 * span, 0.1 * span)).sum()),
    )
    ax.annotate("y = x", (place, place), (3, 0), textcoords="offset points", ha="left", va="top", color=looks.FAINT)
    ax.vlines(x, pairs["value_low"], pairs["value_high"], color=looks.FAINT, alpha=0.5, linewidth=0.4, zorder=1.5)
    ax.set_ylabel(guides.axis_label(quantity))
    dots = marks.depth_dots(ax, pairs, "published", "value", size=8.0, edge=0.2)
    ranges.outside_note(ax, ranges.mark_outside(ax, x, y, looks.INK))
    return dots


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """How far this run's heads agree with the published ones; without these, how their distributions lie side by side.

    Takes the tables of `draw` and raises what it raises. Gives lines of Markdown.
    """
    if not tables["pairs"].empty:
        return _of_pairs(tables)
    return distribution_lines(*_distributions(tables))


def _distributions(tables: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, Models]:
    table = inputs.table(tables, "distributions", COLUMNS)
    return table, {**OWN, **published_models(name for name in table["model"].unique() if name not in OWN)}


def _of_pairs(tables: dict[str, pd.DataFrame]) -> list[str]:
    statistics = ("correlation", "rank_correlation", "slope", "difference")
    agreement = inputs.table(tables, "agreement", ["quantity", "n_heads", *inputs.with_interval(*statistics)])
    theirs = looks.published_look(str(tables["agreement"].attrs["published"]))[0]
    lines = []
    for _, row in agreement.iterrows():
        quantity = QUANTITIES[str(row["quantity"])]
        lines.append(
            f"{quantity.label} of {int(row['n_heads']):,} heads, this run against {theirs} as published: correlation "
            f"{measured(row, 'correlation')}, of ranks {measured(row, 'rank_correlation')}; slope {measured(row, 'slope')}; "
            f"mean difference {measured(row, 'difference', quantity.unit)}."
        )
    lines[-1] += " Brackets are intervals over heads, as the published values have none over prompts."
    return lines
