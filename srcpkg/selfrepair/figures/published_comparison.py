"""Figure: this run's heads against the paper's published ones, or, for a model that is none of them, their distributions."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.wording import measured
from selfrepair.quantities import PARTS, POSTNORMS, QUANTITIES

SHOWN = ("self_repair", "direct_effect", "logit_change", *(part for part in PARTS if part != POSTNORMS))
DEPTHS = ("first", "middle", "last")
OURS = "this run"


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
            return _draw_distributions(tables, run)
        return _draw_pairs(tables, run)


def _draw_pairs(tables: dict[str, pd.DataFrame], run: dict[str, object]) -> Figure:
    columns = ["quantity", "relative_depth", "published", *inputs.with_interval("value")]
    pairs = inputs.table(tables, "pairs", columns)
    agreement = inputs.table(tables, "agreement", ["quantity", *inputs.with_interval("correlation", "slope")])
    of_quantity = {str(row["quantity"]): row for _, row in agreement.iterrows()}
    theirs = looks.published_look(str(tables["pairs"].attrs["published"]))[0]
    figure = layout.new_figure(looks.TWO_COLUMNS, 116.0)
    axes = figure.subplots(2, 3).ravel()
    for ax, quantity in zip(axes, SHOWN, strict=True):
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


def _draw_distributions(tables: dict[str, pd.DataFrame], run: dict[str, object]) -> Figure:
    ends = ["quantile_5", "quantile_25", "median", "quantile_75", "quantile_95"]
    table = inputs.table(tables, "distributions", ["model", "depth", "quantity", *ends])
    models = [OURS, *(name for name in table["model"].unique() if name != OURS)]
    figure = layout.new_figure(looks.TWO_COLUMNS, 118.0)
    axes = figure.subplots(2, 3).ravel()
    for ax, quantity in zip(axes, SHOWN, strict=True):
        rows = table[table["quantity"] == quantity]
        ax.set_ylim(ranges.bulk_range(include=[0.0, rows[ends]]))
        guides.zero_line(ax)
        for number, model in enumerate(models):
            _boxes(ax, rows[rows["model"] == model], model, (number - (len(models) - 1) / 2) * 0.16, ends)
        ax.set_xticks(range(len(DEPTHS)), [f"{depth} third" for depth in DEPTHS])
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, len(DEPTHS) - 0.5)
        ax.set_ylabel(guides.axis_label(quantity))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(models))
    footers.footer(
        figure,
        looks.TWO_COLUMNS,
        run,
        "top",
        "heads by third of relative depth; mark: median, thick: 25 to 75%, thin: 5 to 95% of heads",
    )
    return figure


def _boxes(ax: Axes, rows: pd.DataFrame, model: str, shift: float, ends: list[str]) -> None:
    name, look = (OURS, looks.Look(looks.INK, "-", "o")) if model == OURS else looks.published_look(model)
    rows = rows.set_index("depth").reindex(DEPTHS)
    x = np.arange(len(DEPTHS)) + shift
    low, lower, middle, upper, high = (rows[end].to_numpy(float) for end in ends)
    ax.vlines(x, low, high, color=look.colour, linewidth=0.6, zorder=2)
    ax.vlines(x, lower, upper, color=look.colour, linewidth=2.4, zorder=2.2)
    ax.plot(
        x,
        middle,
        zorder=3,
        label=name,
        **{**looks.line_style(look), "linestyle": "none", "markerfacecolor": "white", "markersize": 3.2},
    )


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """How far this run's heads agree with the published ones; without these, how their distributions lie side by side.

    Takes the tables of `draw` and raises what it raises. Gives lines of Markdown.
    """
    if not tables["pairs"].empty:
        return _of_pairs(tables)
    table = inputs.table(
        tables, "distributions", ["model", "depth", "quantity", "n_heads", *inputs.with_interval("median")]
    )
    lines = []
    for quantity in SHOWN:
        rows = table[(table["quantity"] == quantity) & (table["depth"] == "last")]
        told = [
            f"{OURS if row['model'] == OURS else looks.published_look(str(row['model']))[0]} {measured(row, 'median', '')}"
            for _, row in rows.iterrows()
        ]
        lines.append(
            f"{QUANTITIES[quantity].axis}, median over the heads of the last third of layers: {', '.join(told)}."
        )
    lines[-1] += " Brackets are intervals over heads, as the published values have none over prompts."
    return lines


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
