"""Figures of what a model does not have: the reason stands in place of the data."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, inputs, layout, looks


def note_of(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """Why a figure's tables hold nothing to show, by their column ``note``; None where they do."""
    notes = [str(table["note"].iloc[0]) for table in tables.values() if "note" in table]
    return notes[0] if notes else None


def draw_note(tables: Mapping[str, pd.DataFrame], note: str, titles: Sequence[str]) -> Figure:
    """Draw the reason across empty panels.

    Args:
        tables: The figure's tables.
        note: The reason.
        titles: Of the panels.

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A setting is missing.
    """
    run = inputs.settings(tables, *tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 66.0)
        for ax, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
            ax.set_title(title)
            ax.set(xticks=[], yticks=[])
        text = footers.wrapped(note.split(" "), 0.8 * looks.TWO_COLUMNS, looks.TEXT_SIZE, " ")
        box = {"facecolor": "white", "linewidth": 0}
        figure.text(0.5, 0.6, text, ha="center", va="center", color=looks.FAINT, bbox=box)
        footers.footer(figure, looks.TWO_COLUMNS, run)
    return figure
