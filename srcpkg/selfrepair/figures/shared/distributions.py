"""Values of heads by third of depth, of several models side by side: quantiles as bars."""

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import measured
from selfrepair.quantities import OF_PAPER, QUANTITIES

DEPTHS = ("first", "middle", "last")
Models = Mapping[str, tuple[str, looks.Look]]

_ENDS = ["quantile_5", "quantile_25", "median", "quantile_75", "quantile_95"]
COLUMNS = ["model", "depth", "quantity", *_ENDS, "median_low", "median_high"]


def published_models(keys: Iterable[str]) -> Models:
    """Names and looks of the paper's models."""
    looked = {key: looks.published_look(key) for key in keys}
    return {key: (f"{name}, published", look) for key, (name, look) in looked.items()}


def distribution_panels(table: pd.DataFrame, run: Mapping[str, object], models: Models) -> Panels:
    """Quantiles over heads, a panel a quantity.

    Args:
        table: A row a model, quantity and third of depth, with `COLUMNS`.
        run: The settings.
        models: Name and look of each model, by what its rows have in the column "model".
    """
    of = {quantity: Panel(partial(_quantiles, table=table, quantity=quantity, models=models)) for quantity in OF_PAPER}
    return Panels(
        of, run, ("top", "heads by third of relative depth; mark: median, thick: 25 to 75%, thin: 5 to 95% of heads")
    )


def draw_distributions(shown: Panels) -> Figure:
    """Draw `distribution_panels` on a page two columns wide."""
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 118.0)
        axes = figure.subplots(2, 3).ravel()
        shown.draw_noted(*axes)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _quantiles(ax: Axes, table: pd.DataFrame, quantity: str, models: Models) -> list[str]:
    apart = min(0.16, 0.84 / len(models))
    rows = table[table["quantity"] == quantity]
    ax.set_ylim(ranges.bulk_range(include=[0.0, rows[_ENDS]]))
    guides.zero_line(ax)
    for number, (model, (name, look)) in enumerate(models.items()):
        _boxes(ax, rows[rows["model"] == model], name, look, (number - (len(models) - 1) / 2) * apart)
    ax.set_xticks(range(len(DEPTHS)), [f"{depth} third" for depth in DEPTHS])
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.5, len(DEPTHS) - 0.5)
    ax.set_ylabel(guides.axis_label(quantity))
    return []


def _boxes(ax: Axes, rows: pd.DataFrame, name: str, look: looks.Look, shift: float) -> None:
    rows = rows.set_index("depth").reindex(DEPTHS)
    x = np.arange(len(DEPTHS)) + shift
    low, lower, middle, upper, high = (rows[end].to_numpy(float) for end in _ENDS)
    ax.vlines(x, low, high, color=look.colour, linewidth=0.6, zorder=2)
    ax.vlines(x, lower, upper, color=look.colour, linewidth=2.4, zorder=2.2)
    ax.plot(
        x,
        middle,
        zorder=3,
        label=name,
        **{**looks.line_style(look), "linestyle": "none", "markerfacecolor": "white", "markersize": 3.2},
    )


def distribution_lines(table: pd.DataFrame, models: Models) -> list[str]:
    """Medians over the heads of the last third of layers, a line of Markdown a quantity."""
    lines = []
    for quantity in OF_PAPER:
        rows = table[(table["quantity"] == quantity) & (table["depth"] == "last")]
        by_model = {str(row["model"]): row for _, row in rows.iterrows()}
        told = [f"{name} {measured(by_model[model], 'median', '')}" for model, (name, _) in models.items()]
        lines.append(
            f"{QUANTITIES[quantity].axis}, median over the heads of the last third of layers: {'; '.join(told)}."
        )
    lines[-1] += " Brackets are intervals over heads, as the published values have none over prompts."
    return lines
