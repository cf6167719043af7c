"""Figure: this run's heads against the paper's published ones, or, for a model that is none of them, their distributions."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.distributions import (
    COLUMNS,
    Models,
    distribution_lines,
    distribution_panels,
    draw_distributions,
    published_models,
)
from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels, coloured
from selfrepair.figures.wording import measured
from selfrepair.quantities import OF_PAPER, QUANTITIES

STATISTICS = ("correlation", "rank_correlation", "slope")
"""What a single head has not."""
OWN: Models = {"this run": ("this run", looks.Look(looks.INK, "-", "o"))}


def panels(tables: inputs.Tables) -> Panels:
    """A dot a head against the published value; without published heads, quantiles over heads by third of depth.

    Args:
        tables: "pairs" (no rows where the model is none of the published), "agreement" and "distributions".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    run = inputs.settings(tables, "pairs", "agreement", "distributions")
    if tables["pairs"].empty:
        table, models = _distributions(tables)
        return distribution_panels(table, run, models)
    pairs = inputs.table(tables, "pairs", ["quantity", "relative_depth", "published", *inputs.with_interval("value")])
    agreement = _agreement(tables, "correlation", "slope")
    of_quantity = {str(row["quantity"]): row for _, row in agreement.iterrows()}
    theirs = looks.published_look(str(tables["pairs"].attrs["published"]))[0]
    of = {
        quantity: Panel(
            partial(
                _scatter,
                pairs=pairs[pairs["quantity"] == quantity],
                quantity=quantity,
                agreement=of_quantity[quantity],
                theirs=theirs,
            ),
            scale=looks.DEPTH,
        )
        for quantity in OF_PAPER
    }
    brackets = "; brackets: over heads" if agreement["correlation"].notna().any() else ""
    return Panels(of, run, ("top", f"bars: {{level:g}}% intervals over prompts{brackets}"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    return draw_distributions(shown) if tables["pairs"].empty else _draw_pairs(shown)


def _draw_pairs(shown: Panels) -> Figure:
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 116.0)
        axes = figure.subplots(2, 3).ravel()
        shown.draw_noted(*axes)
        bar = figure.colorbar(coloured(axes[-1]), ax=axes, ticks=[0, 0.5, 1], fraction=0.02, aspect=40, shrink=0.8)
        bar.set_label(looks.DEPTH.label)
        bar.outline.set_linewidth(0.4)
        if bar.solids is not None:
            bar.solids.set_rasterized(True)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _scatter(ax: Axes, pairs: pd.DataFrame, quantity: str, agreement: pd.Series, theirs: str) -> list[str]:
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
    marks.depth_dots(ax, pairs, "published", "value", size=8.0, edge=0.2)
    counts = ranges.mark_outside(ax, x, y, looks.INK)
    ax.set_xlabel(f"{theirs}, published")
    alone = f"\none head, {_difference(agreement, quantity)}\nfrom the published" if len(pairs) == 1 else ""
    ax.text(
        0.03,
        0.97,
        f"r = {_told(agreement, 'correlation')}\nslope {_told(agreement, 'slope')}{alone}",
        transform=ax.transAxes,
        va="top",
        fontsize=looks.SMALL_SIZE,
    )
    return counts


def finding(tables: inputs.Tables) -> list[str]:
    """How far this run's heads agree with the published ones; without these, how their distributions lie side by side.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    if not tables["pairs"].empty:
        return _of_pairs(tables)
    return distribution_lines(*_distributions(tables))


def in_short(tables: inputs.Tables) -> list[str]:
    """How far the heads of a published model agree with the published values; nothing of other models.

    Takes the tables of `panels` and raises what it raises.
    """
    if tables["pairs"].empty:
        return []
    agreement = _agreement(tables, "correlation", "slope")
    row = agreement[agreement["quantity"] == "self_repair"].iloc[0]
    theirs = looks.published_look(str(tables["agreement"].attrs["published"]))[0]
    if int(row["n_heads"]) == 1:
        return [
            f"**Its one ablated head's self-repair lies {_difference(row, 'self_repair')} from that published for {theirs}**; "
            "of one head there is no correlation. The published values of Rushing & Nanda 2024 are of another text."
        ]
    return [
        f"**Its heads' self-repair correlates with that published for {theirs} by {_told(row, 'correlation')}**, over "
        f"{int(row['n_heads']):,} heads, with slope {_told(row, 'slope')}; intervals over heads. The published values of "
        "Rushing & Nanda 2024 are of another text."
    ]


def _distributions(tables: inputs.Tables) -> tuple[pd.DataFrame, Models]:
    table = inputs.table(tables, "distributions", COLUMNS)
    return table, {**OWN, **published_models(name for name in table["model"].unique() if name not in OWN)}


def _agreement(tables: inputs.Tables, *statistics: str) -> pd.DataFrame:
    """Table "agreement", checked for these statistics; what one head has not may be missing."""
    columns = ["quantity", "n_heads", *inputs.with_interval(*statistics, "difference")]
    return inputs.table(tables, "agreement", columns, may_lack=inputs.with_interval(*STATISTICS))


def _told(row: pd.Series, name: str) -> str:
    """A statistic with its interval; "none" where it has no value."""
    return measured(row, name) if pd.notna(row[name]) else "none"


def _difference(row: pd.Series, quantity: str) -> str:
    """How far a single head is from the published one: without an interval, as there are no heads to draw."""
    unit = QUANTITIES[quantity].unit
    return f"{float(row['difference']):+.2g}{f' {unit}' if unit else ''}".replace("-", "\N{MINUS SIGN}")


def _of_pairs(tables: inputs.Tables) -> list[str]:
    agreement = _agreement(tables, *STATISTICS)
    theirs = looks.published_look(str(tables["agreement"].attrs["published"]))[0]
    lines = []
    for _, row in agreement.iterrows():
        quantity = QUANTITIES[str(row["quantity"])]
        one = int(row["n_heads"]) == 1
        heads = "one head" if one else f"{int(row['n_heads']):,} heads"
        difference = _difference(row, str(row["quantity"])) if one else measured(row, "difference", quantity.unit)
        lines.append(
            f"{quantity.label} of {heads}, this run against {theirs} as published: correlation "
            f"{_told(row, 'correlation')}, of ranks {_told(row, 'rank_correlation')}; slope {_told(row, 'slope')}; "
            f"{'' if one else 'mean '}difference {difference}."
        )
    if (agreement["n_heads"] == 1).all():
        lines[-1] += " Of one head there is no correlation, no slope and no interval over heads."
        return lines
    lines[-1] += " Brackets are intervals over heads, as the published values have none over prompts."
    return lines
