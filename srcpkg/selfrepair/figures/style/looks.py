"""Sizes, colours, dashes and markers, and matplotlib's settings: the looks of everything, in every figure."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.colors import LinearSegmentedColormap

ONE_COLUMN = 84.0
"""Width of one column, in mm."""
TWO_COLUMNS = 174.0
"""Width of two columns, in mm."""
RASTERISE_ABOVE = 5000
"""Clouds of more points than this are drawn as an image inside the SVG."""

TEXT_SIZE = 7.0
SMALL_SIZE = 6.0
POINTS_PER_MM = 72 / 25.4
LINE_SPACING = 1.25

INK = "#262626"
FAINT = "#737373"
PALE = "#B0B0B0"
"""All tokens, behind those that are chosen."""
SINGLE = "#8C613C"
"""Single measurements whose mean is drawn in the quantity's own colour."""

_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _TAN, *_, _SKY = sns.color_palette("colorblind").as_hex()
_PURPLE = "#6A3D9A"  # darker than every colour of the palette, so that it is told from blue without its hue

# The light end of cividis is lost on white paper.
DEPTH_COLOURS = LinearSegmentedColormap.from_list("depth", mpl.colormaps["cividis"](np.linspace(0, 0.9, 256)))
"""Sequential map for relative depth; its lightness rises evenly, so it survives a grey print."""

DIVERGING = mpl.colormaps["PuOr"]
"""Map for values on both sides of zero; give it a symmetric range."""


@dataclass(frozen=True)
class Look:
    """Colour, dash and marker of one thing, in every figure."""

    colour: str
    dash: Any = "-"
    marker: str = "o"
    hollow: bool = False


@dataclass(frozen=True)
class Scale:
    """What a panel's colours mean."""

    label: str
    ticks: Sequence[float] | None = None
    extend: str = "neither"


NO_SCALE = Scale("")
DEPTH = Scale("relative depth of the head's layer", (0.0, 0.5, 1.0))


LOOKS = {
    "self_repair": Look(INK, "-", "D"),
    "self_repair_from_heads": Look(_BLUE, (0, (4, 1.2)), "o"),
    "self_repair_from_mlps": Look(_ORANGE, (0, (6, 1.2, 1.2, 1.2)), "s"),
    "self_repair_from_postnorms": Look(_PURPLE, (0, (3, 1.2, 1, 1.2, 1, 1.2)), "P"),
    "self_repair_from_layernorm": Look(_GREEN, (0, (1.6, 1)), "^"),
    "direct_effect": Look(_VERMILION, "-", "o"),
    "ablated_direct_effect": Look(_VERMILION, (0, (3, 1.2)), "o", hollow=True),
    "logit_change": Look(_PINK, (0, (6, 1.2, 1.2, 1.2)), "v"),
}
"""The look of each quantity. The ablated direct effect is the direct effect again, hollow and dashed."""

PUBLISHED = {
    "pythia-160m": ("Pythia-160M", Look(_SKY, (0, (1.2, 1)), "o")),
    "pythia-410m": ("Pythia-410M", Look(_SKY, (0, (4, 1.2)), "s", hollow=True)),
    "gpt2-small": ("GPT-2 small", Look(_TAN, (0, (1.2, 1)), "^")),
    "gpt2-medium": ("GPT-2 medium", Look(_TAN, (0, (4, 1.2)), "D", hollow=True)),
}
"""Name and look of the paper's models: a hue a family, a marker and dash a model, all lighter than this run."""


def published_look(model: str) -> tuple[str, Look]:
    """Name and look of a published model; a plain look for one that has none."""
    return PUBLISHED.get(model, (model, Look(FAINT, ":", "x")))


_RUN = (
    Look(INK, "-", "o"),
    Look(_VERMILION, "-", "s"),
    Look(_BLUE, "-", "^"),
    Look(_GREEN, (0, (4, 1.2)), "D"),
    Look(_PINK, (0, (4, 1.2)), "v"),
    Look(_ORANGE, (0, (4, 1.2)), "o", hollow=True),
)


def run_looks(n: int) -> list[Look]:
    """Looks of the models of one run, told apart by hue, marker and dash; from the seventh on they repeat."""
    return [_RUN[at % len(_RUN)] for at in range(n)]


_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (3, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (1.2, 1)))


def ordered_looks(n: int) -> list[Look]:
    """Looks of up to five levels in order, dark to light: thresholds, numbers of neurons."""
    places = np.linspace(0, 0.85, n)
    return [
        Look(mpl.colors.to_hex(DEPTH_COLOURS(place)), dash) for place, dash in zip(places, _DASHES[:n], strict=True)
    ]


def line_style(look: Look, *, marker: bool = True) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a look."""
    return {
        "color": look.colour,
        "linestyle": look.dash,
        "marker": look.marker if marker else "",
        "markerfacecolor": "white" if look.hollow else look.colour,
    }


_RC: Any = {
    # Matplotlib ships this font, so a layout does not depend on the machine.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": TEXT_SIZE,
    "axes.labelsize": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "xtick.labelsize": TEXT_SIZE,
    "ytick.labelsize": TEXT_SIZE,
    "legend.fontsize": TEXT_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "legend.labelspacing": 0.3,
    "legend.borderpad": 0.1,
    "legend.borderaxespad": 0.2,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.6,
    "lines.markeredgewidth": 0.6,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.035,
    "figure.constrained_layout.w_pad": 0.03,
    "figure.dpi": 300,
    "svg.fonttype": "none",
    # Element ids are random without a salt.
    "svg.hashsalt": "selfrepair",
}


def context() -> AbstractContextManager[None]:
    """Matplotlib's settings for every figure; wrap drawing and saving in it."""
    return mpl.rc_context(_RC)
