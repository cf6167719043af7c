"""The panels of a figure, each drawn by one function, into a publication's page and into axes of the user's own alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, layout, looks


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes:
        draw: Draws the panel's data, limits and guides into axes, and gives counts of what lies outside these
            (`ranges.mark_outside`).
        title: What heads it; empty where its axes say enough.
        ylabel: Label of the y axis, which panels side by side share; empty where `draw` sets it.
        scale: What its colours mean, where they are values: those of the axes' last image or dots.
    """

    draw: Callable[[Axes], list[str]]
    title: str = ""
    ylabel: str = ""
    scale: looks.Scale = looks.NO_SCALE


@dataclass(frozen=True)
class Panels:
    """What a figure shows, before anything is drawn: `panels(tables)` of each figure's module.

    Attributes:
        of: The panels by name, in their order. A panel of one head is named as the head is, one of an ablation as its kind.
        run: The settings (`inputs.settings`).
        what: What the line of settings says of tokens and marks (`footers.items`).
        kinds: The ablations, where the figure shows several.
        legend_title: What heads the legend.
        note: Why there is nothing to draw, where that is so.
    """

    of: Mapping[str, Panel]
    run: Mapping[str, Any]
    what: tuple[str, ...] = ()
    kinds: Sequence[str] = ()
    legend_title: str | None = None
    note: str | None = None

    def draw(self, *axes: Axes) -> list[list[str]]:
        """Draw all panels, each into its axes, and give the counts of what lies outside each."""
        return [panel.draw(ax) for panel, ax in zip(self.of.values(), axes, strict=True)]

    def draw_noted(self, *axes: Axes) -> None:
        """Draw all panels, with the counts above the axes of each."""
        for ax, counts in zip(axes, self.draw(*axes), strict=True):
            layout.outside_note(ax, counts)

    def titles(self) -> list[str]:
        """What heads each panel."""
        return [panel.title for panel in self.of.values()]

    def footer(self, figure: Figure, width_mm: float) -> str:
        """Write the line of settings under a figure of this width, and give its text."""
        return footers.footer(figure, width_mm, self.run, *self.what, kinds=self.kinds)


def coloured(ax: Axes) -> ScalarMappable:
    """What the scale of a panel is of: its image, else its last dots."""
    return ax.images[-1] if ax.images else ax.collections[-1]
