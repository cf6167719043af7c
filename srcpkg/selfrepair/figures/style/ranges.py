"""Ranges of axes that show the bulk of heavy-tailed values, and counts of what lies outside them."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from selfrepair.figures.style import looks


def bulk_range(*values: Any, include: Iterable[Any] = (), coverage: float = 0.98) -> tuple[float, float]:
    """A range that shows the bulk of heavy-tailed values, ending on round numbers.

    The whole extent is kept where it is at most half as wide again as the bulk: nothing is gained by cutting it.
    Whatever the range leaves out must be counted with `mark_outside`.

    Args:
        values: Arrays whose central `coverage` is shown.
        include: Arrays or numbers that are always inside.
        coverage: Share of the values, between 0 and 1.
    """
    pooled = _finite(*values)
    always = _finite(*include)
    if not pooled.size:
        pooled = always if always.size else np.array([0.0])
    tail = (1 - coverage) / 2
    bulk = np.concatenate([np.quantile(pooled, [tail, 1 - tail]), always])
    low, high = bulk.min(), bulk.max()
    full_low, full_high = min(low, pooled.min()), max(high, pooled.max())
    if full_high - full_low <= 1.5 * (high - low):
        low, high = full_low, full_high
    if high == low:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    step = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    return (
        float(round(math.floor((low - margin) / step) * step, 12)),
        float(round(math.ceil((high + margin) / step) * step, 12)),
    )


def square_range(x: Any, y: Any, *, coverage: float) -> tuple[float, float]:
    """A range for x; mirrored for y, so that the line y = -x is the square's diagonal.

    Args:
        x: Values on the x axis.
        y: Values on the y axis.
        coverage: Share of the values that is inside.
    """
    return bulk_range(x, -np.asarray(y, float), include=[0.0], coverage=coverage)


def mark_outside(ax: Axes, x: Any, y: Any, colour: str, *, noun: str = "") -> list[str]:
    """Mark the points that the axes' limits leave out at the edge and count them.

    Set the limits first. A point outside in both directions is counted once, by its y.

    Args:
        ax: The axes.
        x: Values on the x axis.
        y: Values on the y axis.
        colour: Colour of the marks.
        noun: What is counted, where it is not the points of the panel.

    Returns:
        The counts as text ("3 above 2.1"), empty where nothing is outside; show them with `layout.outside_note`.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    seen = np.isfinite(x) & np.isfinite(y)
    x, y = x[seen], y[seen]
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    above, below = y > top, y < bottom
    level = ~(above | below)
    sides = (
        (above, "above", top, "^"),
        (below, "below", bottom, "v"),
        (level & (x > right), "right of", right, ">"),
        (level & (x < left), "left of", left, "<"),
    )
    counts = []
    for outside, word, limit, marker in sides:
        if not outside.any():
            continue
        ax.plot(
            x[outside].clip(left, right),
            y[outside].clip(bottom, top),
            linestyle="none",
            marker=marker,
            markersize=2.8,
            markeredgewidth=0,
            color=colour,
            clip_on=False,
            zorder=4,
            label="_outside",
            rasterized=bool(outside.sum() > looks.RASTERISE_ABOVE),
        )
        counts.append(f"{outside.sum():,} {noun + ' ' if noun else ''}{word} {_number(limit)}")
    return counts


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _finite(*values: Any) -> np.ndarray:
    flat = [np.asarray(value, float).ravel() for value in values]
    pooled = np.concatenate(flat) if flat else np.array([])
    return pooled[np.isfinite(pooled)]
