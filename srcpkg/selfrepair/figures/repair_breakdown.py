"""Figure: what repairs - heads, MLPs or the final LayerNorm - by layer of the ablated head."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures import style
from selfrepair.quantities import PARTS, QUANTITIES

EFFECTS = ("direct_effect", "ablated_direct_effect", "logit_change")


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the parts of condensed self-repair by layer, and the effects they are to be compared with.

    Args:
        tables: "layers".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    names = ("self_repair", *PARTS, *EFFECTS)
    layers = style.table(tables, "layers", ["relative_depth", *style.with_interval(*names)], selection="top")
    layers = layers.sort_values("relative_depth")
    run = style.settings(tables, "layers")
    with style.context():
        figure = style.new_figure(style.TWO_COLUMNS, 78.0)
        left, right = figure.subplots(1, 2, sharey=True)
        left.set_ylim(style.bulk_range(include=[0.0, layers[style.with_interval(*names)]]))
        _panel(left, layers, (*PARTS, "self_repair"), int(run["n_layers"]))
        left.plot(
            layers["relative_depth"],
            layers[list(PARTS)].sum(axis=1, skipna=False),
            linestyle="none",
            marker="o",
            markersize=4.5,
            markerfacecolor="none",
            markeredgecolor=style.INK,
            label="sum of the parts",
            zorder=3.5,
        )
        _panel(right, layers, EFFECTS, int(run["n_layers"]))
        left.set_ylabel("mean over the layer's heads (logits)")
        for ax, letter in ((left, "a"), (right, "b")):
            style.panel_letter(ax, letter)
            ax.legend(loc="lower left", bbox_to_anchor=(0.05, 1.0), ncols=2, columnspacing=0.8)
        style.footer(figure, style.TWO_COLUMNS, run, "top", "bands")
    return figure


def _panel(ax: Axes, layers: pd.DataFrame, names: tuple[str, ...], n_layers: int) -> None:
    style.depth_axis(ax, n_layers)
    style.zero_line(ax)
    for name in names:
        style.layer_line(ax, layers, name, style.LOOKS[name], QUANTITIES[name].label, marker=name != "self_repair")
