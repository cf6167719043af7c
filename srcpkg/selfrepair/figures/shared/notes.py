"""Figures of what a model does not have: the reason stands in place of the data."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, inputs, layout, looks
from selfrepair.figures.style.panels import Panel, Panels


def note_of(tables: inputs.Tables) -> str | None:
    """Why a figure's tables hold nothing to show, by their column ``note``; None where they do."""
    notes = [str(table["note"].iloc[0]) for table in tables.values() if "note" in table]
    return notes[0] if notes else None


def noted_panels(tables: inputs.Tables, note: str, titles: Sequence[str]) -> Panels:
    """Empty panels, and the reason.

    Args:
        tables: The figure's tables.
        note: The reason.
        titles: Of the panels.

    Raises:
        ValueError: A setting is missing.
    """
    return Panels({title: Panel(_empty, title) for title in titles}, inputs.settings(tables, *tables), note=note)


def _empty(ax: Axes) -> list[str]:
    ax.set(xticks=[], yticks=[])
    return []


def draw_note(shown: Panels) -> Figure:
    """Draw the reason across empty panels, on a page two columns wide."""
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 66.0)
        axes = figure.subplots(1, len(shown.of), squeeze=False)[0]
        shown.draw(*axes)
        for ax, title in zip(axes, shown.titles(), strict=True):
            ax.set_title(title)
        text = footers.wrapped(str(shown.note).split(" "), 0.8 * looks.TWO_COLUMNS, looks.TEXT_SIZE, " ")
        box = {"facecolor": "white", "linewidth": 0}
        figure.text(0.5, 0.6, text, ha="center", va="center", color=looks.FAINT, bbox=box)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure
