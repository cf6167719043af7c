"""Dots, bars, lines and bands: how a quantity of heads and layers is drawn."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from selfrepair.figures.style import guides, inputs, looks, ranges
from selfrepair.quantities import NOISE_OF


def head_places(heads: pd.DataFrame, n_layers: int, n_heads: int) -> np.ndarray:
    """Places of heads on the depth axis, those of a layer side by side."""
    spread = 0.7 * guides.layer_spacing(n_layers) / max(n_heads, 1)
    return (heads["relative_depth"] + (heads["head"] - (n_heads - 1) / 2) * spread).to_numpy(float)


def head_dots(ax: Axes, heads: pd.DataFrame, name: str, colour: str, n_layers: int, n_heads: int) -> np.ndarray:
    """A dot a head with its interval, the heads of a layer side by side.

    Returns:
        The dots' places on the x axis.
    """
    x = head_places(heads, n_layers, n_heads)
    ax.vlines(
        x,
        heads[f"{name}_low"],
        heads[f"{name}_high"],
        color=colour,
        alpha=0.3,
        linewidth=0.4,
        zorder=1.5,
        label="_bars",
    )
    ax.scatter(x, heads[name], s=3.5, color=colour, alpha=0.5, linewidth=0, zorder=2, label="this run: a head")
    cross_out(ax, x, heads, name)
    return x


def cross_out(ax: Axes, x: Any, rows: pd.DataFrame, name: str) -> None:
    """Put a cross on every mean that the noise of bfloat16 does not tell from zero (`selfrepair.tables.noise`)."""
    if NOISE_OF + name in rows:
        within = (rows[name].abs() < rows[NOISE_OF + name]).to_numpy()
        ax.scatter(
            np.asarray(x)[within],
            rows[name][within],
            s=6,
            marker="x",
            color=looks.INK,
            linewidth=0.4,
            zorder=4,
            label="_noise",
        )


def depth_dots(ax: Axes, heads: pd.DataFrame, x: str, y: str, *, size: float, edge: float) -> PathCollection:
    """A dot a head, coloured by the relative depth of its layer.

    Args:
        ax: The axes.
        heads: A row a head.
        x: Column on the x axis.
        y: Column on the y axis.
        size: The dots' area, in square points.
        edge: The width of their edges, in points.

    Returns:
        The dots, for a colour bar.
    """
    cross_out(ax, heads[x], heads, y)
    return ax.scatter(
        heads[x],
        heads[y],
        c=heads["relative_depth"],
        cmap=looks.DEPTH_COLOURS,
        vmin=0,
        vmax=1,
        s=size,
        linewidth=edge,
        edgecolor=looks.INK,
        zorder=2,
        label="_heads",
    )


def layer_line(ax: Axes, layers: pd.DataFrame, name: str, look: looks.Look, label: str, *, marker: bool = True) -> None:
    """A quantity's mean by layer with the band of its interval; a bar where there is one layer only."""
    layers = layers.sort_values("relative_depth")
    x = layers["relative_depth"].to_numpy(float)
    mean, low, high = (layers[name + end].to_numpy(float) for end in ("", "_low", "_high"))
    ax.plot(
        x,
        mean,
        label=label,
        zorder=3,
        linewidth=1.0 if marker else 1.3,
        **looks.line_style(look, marker=marker or len(layers) == 1),
    )
    cross_out(ax, x, layers, name)
    if len(layers) == 1:
        ax.vlines(x, low, high, color=look.colour, linewidth=1.0, zorder=2.9, label="_band")
    else:
        ax.fill_between(x, low, high, color=look.colour, alpha=0.22, linewidth=0, zorder=1.8, label="_band")


def by_layer_panel(
    ax: Axes,
    heads: pd.DataFrame,
    layers: pd.DataFrame,
    name: str,
    run: Mapping[str, Any],
    *,
    colour: str,
    limits: tuple[float, float] | None = None,
    include: Iterable[Any] = (),
) -> list[str]:
    """One quantity against relative depth: a dot a head, the layers' mean with its band.

    Args:
        ax: The axes.
        heads: Rows of one selection of the heads table.
        layers: Rows of the same selection of the layers table.
        name: The quantity.
        run: The settings (`inputs.settings`).
        colour: Its colour.
        limits: Range of the y axis; by default it shows the bulk of the heads and all of the layers' line and band.
        include: Further values that must be inside.

    Returns:
        The counts of the heads that lie outside (`ranges.mark_outside`).
    """
    n_layers, n_heads = int(run["n_layers"]), int(run["n_heads"])
    if limits is None:
        limits = ranges.bulk_range(heads[name], include=[0.0, layers[inputs.with_interval(name)], *include])
    ax.set_ylim(limits)
    guides.depth_axis(ax, n_layers)
    guides.zero_line(ax)
    x = head_dots(ax, heads, name, colour, n_layers, n_heads)
    layer_line(ax, layers, name, looks.Look(colour), "this run: layer mean", marker=False)
    ax.set_ylabel(guides.axis_label(name))
    return ranges.mark_outside(ax, x, heads[name], colour)
