"""How every figure looks: sizes, colours, markers, footers, edge counts, saving.

A figure module decides what is shown; whatever two figures share is decided here, so that a quantity has one colour and a
model one marker throughout. Figures are built on `matplotlib.figure.Figure` without pyplot: no global state, no backend.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from selfrepair.quantities import QUANTITIES

ONE_COLUMN = 84.0
"""Width of one column, in mm."""
TWO_COLUMNS = 174.0
"""Width of two columns, in mm."""
RASTERISE_ABOVE = 5000
"""Clouds of more points than this are drawn as an image inside the SVG."""

TEXT_SIZE = 7.0
SMALL_SIZE = 6.0
_POINTS_PER_MM = 72 / 25.4
_LINE_SPACING = 1.25

INK = "#262626"
FAINT = "#737373"
SINGLE = "#8C613C"
"""Single measurements whose mean is drawn in the quantity's own colour."""

_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _TAN, *_, _SKY = sns.color_palette("colorblind").as_hex()

# The light end of cividis is lost on white paper.
DEPTH_COLOURS = LinearSegmentedColormap.from_list("depth", mpl.colormaps["cividis"](np.linspace(0, 0.9, 256)))
"""Sequential map for relative depth; its lightness rises evenly, so it survives a grey print."""

DEPTH_LABEL = "relative depth (0 = first layer, 1 = last)"


@dataclass(frozen=True)
class Look:
    """Colour, dash and marker of one thing, in every figure."""

    colour: str
    dash: Any = "-"
    marker: str = "o"
    hollow: bool = False


LOOKS = {
    "self_repair": Look(INK, "-", "D"),
    "self_repair_from_heads": Look(_BLUE, (0, (4, 1.2)), "o"),
    "self_repair_from_mlps": Look(_ORANGE, (0, (6, 1.2, 1.2, 1.2)), "s"),
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


_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.2)), (0, (3, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (1.2, 1)))


def ordered_looks(n: int) -> list[Look]:
    """Looks of up to five levels in order, dark to light: thresholds, numbers of neurons."""
    places = np.linspace(0, 0.85, n)
    return [
        Look(mpl.colors.to_hex(DEPTH_COLOURS(place)), dash) for place, dash in zip(places, _DASHES[:n], strict=True)
    ]


DIVERGING = mpl.colormaps["PuOr"]
"""Map for values on both sides of zero; give it a symmetric range."""

SETTINGS = (
    "model",
    "weights",
    "corpus",
    "ablation",
    "n_prompts",
    "prompt_length",
    "n_tokens",
    "top_fraction",
    "first_position",
    "donors",
    "n_bootstrap",
    "confidence",
    "n_layers",
    "n_heads",
    "parallel_attention_mlp",
)
"""The keys of a table's attributes that footers, axes and captions use."""

PHRASES = {
    "top": "means over each head's top {top:g}% of tokens by direct effect",
    "all": "means over all tokens",
    "dots and bands": "dots: heads; lines: layer means; bars and bands: {level:g}% intervals over prompts",
    "top tokens": "each head's top {top:g}% of tokens by direct effect",
    "bands": "bands: {level:g}% intervals over prompts",
    "bars": "bars: {level:g}% intervals over prompts",
}
"""What a figure's footer says of its selection and its marks."""

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


# --- tables ----------------------------------------------------------------------------------------------------------


def table(
    tables: Mapping[str, pd.DataFrame], key: str, columns: Iterable[str], *, selection: str | None = None
) -> pd.DataFrame:
    """One table of a figure, checked, with the rows of one selection.

    Args:
        tables: The figure's tables.
        key: The table wanted.
        columns: Columns that the figure draws.
        selection: Keep the rows of this selection ("top" or "all"); None keeps all rows.

    Returns:
        The rows, their attributes kept.

    Raises:
        ValueError: The table, a column or the selection is missing, or a column holds no number at all.
    """
    if key not in tables:
        raise ValueError(f"table {key!r} is missing (got {sorted(tables)}): add it to the figure's inputs")
    found = tables[key]
    wanted = [*columns, *(["selection"] if selection is not None else [])]
    missing = [column for column in wanted if column not in found.columns]
    if missing:
        raise ValueError(f"table {key!r} lacks {', '.join(missing)}: remake it with this version of selfrepair")
    if selection is not None:
        rows = found[found["selection"] == selection]
        if rows.empty:
            raise ValueError(f"table {key!r} has no rows of selection {selection!r}: remake it with both selections")
        found, rows.attrs = rows, dict(found.attrs)
    empty = [column for column in wanted if found[column].isna().all()]
    if empty:
        raise ValueError(
            f"table {key!r} has no value in {', '.join(empty)}: "
            "no token was selected or every value is NaN; check the upstream tables, or use more prompts"
        )
    return found


def with_interval(*names: str) -> list[str]:
    """Column names of quantities and of the ends of their intervals."""
    return [name + end for name in names for end in ("", "_low", "_high")]


def settings(tables: Mapping[str, pd.DataFrame], *keys: str, differing: Sequence[str] = ()) -> dict[str, Any]:
    """The run's settings, which travel in the tables' attributes.

    Args:
        tables: The figure's tables.
        keys: The tables of the run; one line under the figure speaks for all of them.
        differing: Settings in which they may differ; the first table's value is returned.

    Raises:
        ValueError: A setting is missing, or the tables do not agree in one.
    """
    first = tables[keys[0]].attrs
    for key in keys:
        attrs = tables[key].attrs
        missing = [name for name in SETTINGS if name not in attrs]
        if missing:
            raise ValueError(
                f"table {key!r} has no {', '.join(missing)} in its attributes: "
                "write it with DataFrame.to_parquet, which keeps DataFrame.attrs"
            )
        other = [name for name in SETTINGS if name not in differing and attrs[name] != first[name]]
        if other:
            told = "; ".join(f"{name} {first[name]!r} and {attrs[name]!r}" for name in other)
            raise ValueError(f"tables {keys[0]!r} and {key!r} are of different runs ({told}): make both from one run")
    return {name: first[name] for name in SETTINGS}


# --- figures and axes ------------------------------------------------------------------------------------------------


def context() -> AbstractContextManager[None]:
    """Matplotlib's settings for every figure; wrap drawing and saving in it."""
    return mpl.rc_context(_RC)


def new_figure(width_mm: float, height_mm: float) -> Figure:
    """An empty figure of this size with automatic layout."""
    return Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def head_panels(heads: pd.DataFrame, height_mm: float) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A figure two columns wide with a panel a head, side by side, headed by the heads' names.

    Args:
        heads: A table with columns rank, layer and head.
        height_mm: The figure's height.

    Returns:
        The figure, and each panel with its head's rows.
    """
    parts = [rows for _, rows in heads.groupby("rank")]
    figure = new_figure(TWO_COLUMNS, height_mm)
    axes = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for letter, ax, rows in zip("abcd", axes, parts, strict=False):
        panel_letter(ax, letter)
        ax.set_title(f"L{rows['layer'].iloc[0]}H{rows['head'].iloc[0]}")
    return figure, list(zip(axes, parts, strict=True))


def square_panels(width_mm: float, limits: tuple[float, float], n: int) -> tuple[Figure, list[Axes]]:
    """A figure with a row of square panels that share the ranges of `square_range`; finish it with `lay_out_squares`."""
    figure = Figure(figsize=(width_mm / 25.4, width_mm / 25.4))
    low, high = limits
    axes = []
    for index in range(n):
        ax = figure.add_axes((0, 0, 1, 1), label=str(index), aspect="equal", xlim=(low, high), ylim=(-high, -low))
        ax.tick_params(labelleft=index == 0)
        ax.locator_params(nbins=5)
        axes.append(ax)
    return figure, axes


def lay_out_squares(
    figure: Figure,
    axes: Sequence[Axes],
    below: str,
    headings_mm: float,
    *,
    slots: int,
    right_mm: float,
    top_mm: float = 0.0,
) -> None:
    """Give the panels their places and the figure the height that they need.

    Automatic layout cuts headings off where panels are square, so the room is reckoned here.

    Args:
        figure: The figure of `square_panels`.
        axes: Its panels.
        below: The text under the figure (`footer`).
        headings_mm: Height of the headings (`square_headings`).
        slots: Panels for which there is room.
        right_mm: Room on the right of the panels.
        top_mm: Room above the headings.
    """
    width = figure.get_figwidth() * 25.4
    left, gap, axis = 14.0, 4.5, 9.0
    side = (width - left - right_mm - (slots - 1) * gap) / slots
    bottom = axis + 1.5 + (below.count("\n") + 1) * SMALL_SIZE * _LINE_SPACING / _POINTS_PER_MM
    height = bottom + side + headings_mm + top_mm + 1
    figure.set_figheight(height / 25.4)
    for index, ax in enumerate(axes):
        ax.set_position(((left + index * (side + gap)) / width, bottom / height, side / width, side / height))


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
    ax.axhline(0, color=FAINT, linewidth=0.6, zorder=0.5)


def panel_letter(ax: Axes, letter: str) -> None:
    """A panel's letter, above the axes on the left."""
    ax.set_title(letter, loc="left", fontweight="bold", fontsize=TEXT_SIZE + 1)


def footer(figure: Figure, width_mm: float, run: Mapping[str, Any], *what: str, kinds: Sequence[str] = ()) -> str:
    """Write the line of settings under a figure.

    Args:
        figure: The figure.
        width_mm: Its width.
        run: The settings (`settings`).
        what: Which tokens are shown, and marks to explain; keys of `PHRASES` stand for their text.
        kinds: The ablations, where the figure shows several.

    Returns:
        The text.
    """
    kind = ", ".join(kinds or [str(run["ablation"])])
    if int(run["donors"]) > 1:
        kind = kind.replace("resample", f"resample ({run['donors']} donors)")
    items = [
        f"{run['model']} ({run['weights']})" if run["weights"] else str(run["model"]),
        str(run["corpus"]),
        *([f"{kind} ablation"] if kind else []),  # what ablates nothing has none in its settings
        f"n = {int(run['n_tokens']):,} tokens, {int(run['n_prompts']):,} prompts of length {int(run['prompt_length'])}",
        *(
            PHRASES.get(text, text).format(top=100 * run["top_fraction"], level=100 * run["confidence"])
            for text in what
        ),
    ]
    if int(run["first_position"]) > 0:
        first = int(run["first_position"])
        items.append("position 0 left out" if first == 1 else f"positions below {first} left out")
    text = wrapped(items, width_mm - 3, SMALL_SIZE, " · ")
    # A supxlabel, unlike Figure.text, is given room by the layout.
    figure.supxlabel(text, x=0.012, ha="left", fontsize=SMALL_SIZE, color=FAINT, linespacing=_LINE_SPACING)
    return text


def wrapped(items: Sequence[str], width_mm: float, size: float, separator: str) -> str:
    """Join items with a separator, broken into lines no wider than `width_mm` at this text size (points)."""
    font = FontProperties(family="DejaVu Sans")

    def too_wide(text: str) -> bool:
        return bool(TextPath((0, 0), text, size=size, prop=font).get_extents().width > width_mm * _POINTS_PER_MM)

    lines: list[str] = []
    for item in items:
        if lines and not too_wide(lines[-1] + separator + item):
            lines[-1] += separator + item
        else:
            lines.append(item)
    return "\n".join(lines)


# --- ranges and what lies outside them -------------------------------------------------------------------------------


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
        The counts as text ("3 above 2.1"), empty where nothing is outside; show them with `outside_note`.
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
            rasterized=bool(outside.sum() > RASTERISE_ABOVE),
        )
        counts.append(f"{outside.sum():,} {noun + ' ' if noun else ''}{word} {_number(limit)}")
    return counts


def outside_note(ax: Axes, counts: Sequence[str]) -> None:
    """Write the counts of `mark_outside` above the axes, on the right."""
    if counts:
        ax.set_title(", ".join(counts), loc="right", fontsize=SMALL_SIZE, color=FAINT)


def square_headings(axes: Sequence[Axes], names: Sequence[str], counts: Sequence[list[str]], width_mm: float) -> float:
    """Head narrow panels: letter and name, then the counts of `mark_outside` in lines of `width_mm`.

    All panels get the room that the longest needs, so that their headings stand on one line.

    Returns:
        The height of the headings, in mm.
    """
    notes = [wrapped(texts, width_mm, SMALL_SIZE, ", ") for texts in counts]
    lines = max(note.count("\n") + 1 if note else 0 for note in notes)
    pad = 3 + lines * SMALL_SIZE * _LINE_SPACING
    for letter, ax, name, note in zip("abcdefgh", axes, names, notes, strict=False):
        if len(axes) > 1:
            ax.set_title(letter, loc="left", fontweight="bold", fontsize=TEXT_SIZE + 1, pad=pad)
        ax.set_title(name, loc="center", pad=pad)
        if note:
            ax.annotate(
                note,
                (0, 1),
                (0, pad - 2),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="left",
                va="top",
                fontsize=SMALL_SIZE,
                color=FAINT,
                linespacing=_LINE_SPACING,
            )
    return (pad + TEXT_SIZE + 1) / _POINTS_PER_MM


def minus_x_line(ax: Axes, x: Any, y: Any) -> None:
    """The line y = -x, labelled at its emptier end.

    Args:
        ax: Axes whose limits are set with `square_range`, so that the line falls at 45 degrees.
        x: Values on the x axis, for finding room.
        y: Values on the y axis.
    """
    ax.axline((0, 0), slope=-1, color=FAINT, linewidth=0.8, zorder=0.8, label="_minus_x")
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
        color=FAINT,
        fontsize=TEXT_SIZE,
        zorder=0.9,
    )


def x_line(ax: Axes) -> None:
    """The line y = x, labelled below its middle; for panels whose axes have one range."""
    ax.axline((0, 0), slope=1, color=FAINT, linewidth=0.8, zorder=0.8, label="_x")
    middle = float(np.mean(ax.get_xlim()))
    ax.annotate("y = x", (middle, middle), (3, -1), textcoords="offset points", va="top", color=FAINT, zorder=0.9)


def rank_axis(ax: Axes, last: int, label: str) -> None:
    """Make the x axis ranks from 1 to the last, on a logarithmic scale."""
    ax.set_xscale("log")
    ax.set_xlim(0.9, 1.1 * last)
    ax.set_xticks([at for at in (1, 3, 10, 30, 100, 300) if at <= last])
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.minorticks_off()
    ax.set_xlabel(label)


def reference_line(ax: Axes, y: float, label: str) -> None:
    """A level from elsewhere, named to the right of the axes, where no data are."""
    ax.axhline(y, color=INK, linewidth=0.8, dashes=(5, 2), zorder=2.8, label="_reference")
    place: dict[str, Any] = {
        "xy": (1, y),
        "xycoords": ax.get_yaxis_transform(),
        "xytext": (2, 0),
        "textcoords": "offset points",
    }
    ax.annotate(label, va="center", ha="left", fontsize=SMALL_SIZE, linespacing=_LINE_SPACING, **place)


# --- marks -----------------------------------------------------------------------------------------------------------


def head_dots(ax: Axes, heads: pd.DataFrame, name: str, colour: str, n_layers: int, n_heads: int) -> np.ndarray:
    """A dot a head with its interval, the heads of a layer side by side.

    Returns:
        The dots' places on the x axis.
    """
    spread = 0.7 * layer_spacing(n_layers) / max(n_heads, 1)
    x = (heads["relative_depth"] + (heads["head"] - (n_heads - 1) / 2) * spread).to_numpy(float)
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
    return x


def layer_line(ax: Axes, layers: pd.DataFrame, name: str, look: Look, label: str, *, marker: bool = True) -> None:
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
        **line_style(look, marker=marker or len(layers) == 1),
    )
    if len(layers) == 1:
        ax.vlines(x, low, high, color=look.colour, linewidth=1.0, zorder=2.9, label="_band")
    else:
        ax.fill_between(x, low, high, color=look.colour, alpha=0.22, linewidth=0, zorder=1.8, label="_band")


def line_with_band(ax: Axes, x: Any, rows: pd.DataFrame, name: str, look: Look, label: str) -> None:
    """A quantity against x with the band of its interval."""
    low, value, high = (rows[name + end].to_numpy(float) for end in ("_low", "", "_high"))
    ax.plot(x, value, label=label, zorder=3, color=look.colour, linestyle=look.dash)
    ax.fill_between(x, low, high, color=look.colour, alpha=0.2, linewidth=0, zorder=1.8, label="_band")


def share_axis(ax: Axes, label: str) -> None:
    """Make the y axis a share from 0 to 1, told in percent."""
    ax.set_ylim(-0.02, 1.02)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100"])
    ax.set_ylabel(label)


def legend_entries(*axes: Axes) -> tuple[list[Any], list[str]]:
    """Handles and labels of several axes, for one legend."""
    entries = [entry for ax in axes for entry in zip(*ax.get_legend_handles_labels(), strict=True)]
    return [handle for handle, _ in entries], [label for _, label in entries]


def line_style(look: Look, *, marker: bool = True) -> dict[str, Any]:
    """Keywords of `Axes.plot` for a look."""
    return {
        "color": look.colour,
        "linestyle": look.dash,
        "marker": look.marker if marker else "",
        "markerfacecolor": "white" if look.hollow else look.colour,
    }


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
) -> None:
    """One quantity against relative depth: a dot a head, the layers' mean with its band, what lies outside counted.

    Args:
        ax: The axes.
        heads: Rows of one selection of the heads table.
        layers: Rows of the same selection of the layers table.
        name: The quantity.
        run: The settings (`settings`).
        colour: Its colour.
        limits: Range of the y axis; by default it shows the bulk of the heads and all of the layers' line and band.
        include: Further values that must be inside.
    """
    n_layers, n_heads = int(run["n_layers"]), int(run["n_heads"])
    if limits is None:
        limits = bulk_range(heads[name], include=[0.0, layers[with_interval(name)], *include])
    ax.set_ylim(limits)
    depth_axis(ax, n_layers)
    zero_line(ax)
    x = head_dots(ax, heads, name, colour, n_layers, n_heads)
    layer_line(ax, layers, name, Look(colour), "this run: layer mean", marker=False)
    outside_note(ax, mark_outside(ax, x, heads[name], colour))
    ax.set_ylabel(axis_label(name))


def colour_bar(figure: Figure, ax: Axes, label: str, ticks: Sequence[float]) -> None:
    """The scale of the last points of a square panel, as high as the panel and to its right; lay the panels out first."""
    panel = ax.get_position()
    width_mm = figure.get_figwidth() * 25.4
    place = figure.add_axes((panel.x1 + 2.2 / width_mm, panel.y0, 2 / width_mm, panel.height))
    bar = figure.colorbar(ax.collections[-1], cax=place, ticks=ticks)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(label, labelpad=4)
    bar.outline.set_linewidth(0.4)


# --- files -----------------------------------------------------------------------------------------------------------


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write the figure as PNG (300 dpi) and as SVG with text as text; the same figure gives the same bytes."""
    with context():
        if figure.get_layout_engine() is not None:
            # Each pass of the automatic layout moves things a little: settle it once, then keep it.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        figure.savefig(png, format="png", dpi=300)
        figure.savefig(svg, format="svg", dpi=300, metadata={"Date": None})


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _finite(*values: Any) -> np.ndarray:
    flat = [np.asarray(value, float).ravel() for value in values]
    pooled = np.concatenate(flat) if flat else np.array([])
    return pooled[np.isfinite(pooled)]
