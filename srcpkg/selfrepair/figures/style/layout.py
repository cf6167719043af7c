"""Where panels, their headings and their legends stand in a figure."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, looks


def new_figure(width_mm: float, height_mm: float) -> Figure:
    """An empty figure of this size with automatic layout."""
    return Figure(figsize=(width_mm / 25.4, height_mm / 25.4), layout="constrained")


def square_panels(width_mm: float, n: int) -> tuple[Figure, list[Axes]]:
    """A figure with a row of square panels that share one range (`square`); finish it with `lay_out_squares`."""
    figure = Figure(figsize=(width_mm / 25.4, width_mm / 25.4))
    axes = []
    for index in range(n):
        ax = figure.add_axes((0, 0, 1, 1), label=str(index))
        ax.tick_params(labelleft=index == 0)
        axes.append(ax)
    return figure, axes


def square(ax: Axes, xlim: tuple[float, float], ylim: tuple[float, float]) -> None:
    """Make axes whose ranges are equally wide square."""
    ax.set(aspect="equal", xlim=xlim, ylim=ylim)
    ax.locator_params(nbins=5)


def mirrored(limits: tuple[float, float]) -> tuple[float, float]:
    """The y axis' part of `ranges.square_range`."""
    low, high = limits
    return -high, -low


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
        below: The text under the figure (`footers.footer`).
        headings_mm: Height of the headings (`square_headings`).
        slots: Panels for which there is room.
        right_mm: Room on the right of the panels.
        top_mm: Room above the headings.
    """
    width = figure.get_figwidth() * 25.4
    left, gap, axis = 14.0, 4.5, 9.0
    side = (width - left - right_mm - (slots - 1) * gap) / slots
    bottom = axis + 1.5 + (below.count("\n") + 1) * looks.SMALL_SIZE * looks.LINE_SPACING / looks.POINTS_PER_MM
    height = bottom + side + headings_mm + top_mm + 1
    figure.set_figheight(height / 25.4)
    for index, ax in enumerate(axes):
        ax.set_position(((left + index * (side + gap)) / width, bottom / height, side / width, side / height))


def square_headings(axes: Sequence[Axes], names: Sequence[str], counts: Sequence[list[str]], width_mm: float) -> float:
    """Head narrow panels: letter and name, then the counts of `ranges.mark_outside` in lines of `width_mm`.

    All panels get the room that the longest needs, so that their headings stand on one line.

    Returns:
        The height of the headings, in mm.
    """
    notes = [footers.wrapped(texts, width_mm, looks.SMALL_SIZE, ", ") for texts in counts]
    lines = max(note.count("\n") + 1 if note else 0 for note in notes)
    pad = 3 + lines * looks.SMALL_SIZE * looks.LINE_SPACING
    for letter, ax, name, note in zip("abcdefgh", axes, names, notes, strict=False):
        if len(axes) > 1:
            ax.set_title(letter, loc="left", fontweight="bold", fontsize=looks.TEXT_SIZE + 1, pad=pad)
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
                fontsize=looks.SMALL_SIZE,
                color=looks.FAINT,
                linespacing=looks.LINE_SPACING,
            )
    return (pad + looks.TEXT_SIZE + 1) / looks.POINTS_PER_MM


def panel_letter(ax: Axes, letter: str) -> None:
    """A panel's letter, above the axes on the left."""
    ax.set_title(letter, loc="left", fontweight="bold", fontsize=looks.TEXT_SIZE + 1)


def outside_note(ax: Axes, counts: Sequence[str]) -> None:
    """Write the counts of `ranges.mark_outside` above the axes, on the right."""
    if counts:
        ax.set_title(", ".join(counts), loc="right", fontsize=looks.SMALL_SIZE, color=looks.FAINT)


def legend_entries(*axes: Axes) -> tuple[list[Any], list[str]]:
    """Handles and labels of several axes, for one legend."""
    entries = [entry for ax in axes for entry in zip(*ax.get_legend_handles_labels(), strict=True)]
    return [handle for handle, _ in entries], [label for _, label in entries]


def colour_bar(figure: Figure, ax: Axes, scale: looks.Scale) -> None:
    """The scale of the last points of a square panel, as high as the panel and to its right; lay the panels out first."""
    panel = ax.get_position()
    width_mm = figure.get_figwidth() * 25.4
    place = figure.add_axes((panel.x1 + 2.2 / width_mm, panel.y0, 2 / width_mm, panel.height))
    bar = figure.colorbar(ax.collections[-1], cax=place, ticks=scale.ticks)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)
    bar.set_label(scale.label, labelpad=4)
    bar.outline.set_linewidth(0.4)
