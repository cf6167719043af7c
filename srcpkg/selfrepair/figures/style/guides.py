"""What the axes are: their labels and ticks, and the lines that values are compared with."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from selfrepair.figures.style import looks
from selfrepair.quantities import QUANTITIES

NAME_OFFSET = 1.012
"""Where names to the right of the axes begin, in fractions of their width."""
DEPTH_LABEL = "relative depth (0 = first layer, 1 = last)"


def axis_label(name: str, *, wrap: int = 36) -> str:
    """The quantity's axis label, in two even lines where it is longer than `wrap`."""
    label = QUANTITIES[name].axis
    return label if len(label) <= wrap else textwrap.fill(label, len(label) // 2 + 4)


def depth_axis(ax: Axes, n_layers: int) -> None:
    """Make the x axis relative depth."""
    margin = 0.5 * layer_spacing(n_layers) + 0.01
    ax.set_xlim(-margin, 1 + margin)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    ax.set_xlabel(DEPTH_LABEL)


def layer_spacing(n_layers: int) -> float:
    """Room of one layer on the depth axis; a model of a few layers does not fill it."""
    return min(1 / max(n_layers - 1, 1), 0.2)


def zero_line(ax: Axes) -> None:
    """The line y = 0, behind the data."""
    ax.axhline(0, color=looks.FAINT, linewidth=0.6, zorder=0.5)


def upright_zero_line(ax: Axes) -> None:
    """The line x = 0, behind the data."""
    ax.axvline(0, color=looks.FAINT, linewidth=0.6, zorder=0.5)


def minus_x_line(ax: Axes, x: Any, y: Any) -> None:
    """The line y = -x, labelled at its emptier end.

    Args:
        ax: Axes whose limits are set with `ranges.square_range`, so that the line falls at 45 degrees.
        x: Values on the x axis, for finding room.
        y: Values on the y axis.
    """
    ax.axline((0, 0), slope=-1, color=looks.FAINT, linewidth=0.8, zorder=0.8, label="_minus_x")
    left, right = ax.get_xlim()
    span = right - left
    x, y = np.asarray(x, float), np.asarray(y, float)

    def crowd(place: float) -> int:
        return int(((np.abs(x - place) < 0.14 * span) & (np.abs(y + place) < 0.14 * span)).sum())

    place = min((right - 0.1 * span, left + 0.22 * span), key=crowd)
    ax.annotate(
        "y = \N{MINUS SIGN}x",
        (place, -place),
        (-2.5, -1.5),
        textcoords="offset points",
        ha="right",
        va="top",
        color=looks.FAINT,
        fontsize=looks.TEXT_SIZE,
        zorder=0.9,
    )


def x_line(ax: Axes) -> None:
    """The line y = x, labelled below its middle; for panels whose axes have one range."""
    ax.axline((0, 0), slope=1, color=looks.FAINT, linewidth=0.8, zorder=0.8, label="_x")
    middle = float(np.mean(ax.get_xlim()))
    ax.annotate("y = x", (middle, middle), (3, -1), textcoords="offset points", va="top", color=looks.FAINT, zorder=0.9)


def reference_line(ax: Axes, y: float, label: str) -> None:
    """A level from elsewhere, named to the right of the axes, where no data are."""
    ax.axhline(y, color=looks.INK, linewidth=0.8, dashes=(5, 2), zorder=2.8, label="_reference")
    place: dict[str, Any] = {
        "xy": (1, y),
        "xycoords": ax.get_yaxis_transform(),
        "xytext": (2, 0),
        "textcoords": "offset points",
    }
    ax.annotate(label, va="center", ha="left", fontsize=looks.SMALL_SIZE, linespacing=looks.LINE_SPACING, **place)
