"""Figure: self-repair against the depth of the ablated head, beside the paper's published models."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures import style

QUANTITY = "self_repair"


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw condensed self-repair by layer.

    Args:
        tables: "heads" and "layers" of this run, and "published" (resources/published/self_repair_by_head.csv).

    Returns:
        The figure, one column wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["relative_depth", "layer", *style.with_interval(QUANTITY)]
    heads = style.table(tables, "heads", [*columns, "head"], selection="top")
    layers = style.table(tables, "layers", columns, selection="top")
    published = style.table(tables, "published", ["model", "layer", QUANTITY])
    run = style.settings(tables, "heads", "layers")
    with style.context():
        figure = style.new_figure(style.ONE_COLUMN, 82.0)
        ax = figure.subplots()
        means = _layer_means(published)
        colour = style.LOOKS[QUANTITY].colour
        style.by_layer_panel(ax, heads, layers, QUANTITY, run, colour=colour, include=[means[QUANTITY]])
        _published_lines(ax, means)
        _legend(figure, ax)
        style.footer(figure, style.ONE_COLUMN, run, "top", "dots and bands")
    return figure


def _layer_means(published: pd.DataFrame) -> pd.DataFrame:
    """Mean over the heads of each published (model, layer), with the layer's relative depth."""
    means = published.groupby(["model", "layer"], sort=False, as_index=False)[QUANTITY].mean()
    last = means.groupby("model")["layer"].transform("max").clip(lower=1)
    return means.assign(relative_depth=means["layer"] / last)


def _published_lines(ax: Axes, means: pd.DataFrame) -> None:
    for model, rows in means.groupby("model", sort=False):
        name, look = style.PUBLISHED.get(str(model), (str(model), style.Look(style.FAINT, ":", "x")))
        ax.plot(
            rows["relative_depth"],
            rows[QUANTITY],
            label=f"{name}, published",
            zorder=2.5,
            linewidth=0.8,
            markersize=2.2,
            **style.line_style(look),
        )


def _legend(figure: Figure, ax: Axes) -> None:
    """This run in the first row, the published models below."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ours = [label for label in handles if label.startswith("this run")]
    rest = [label for label in handles if label not in ours]
    half = (len(rest) + 1) // 2
    order = [*ours[1:], *rest[:half], *ours[:1], *rest[half:]]
    figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=2)
