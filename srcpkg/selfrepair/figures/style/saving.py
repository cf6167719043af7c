"""Figures as files."""

from pathlib import Path

from matplotlib.figure import Figure

from selfrepair.figures.style import looks
from selfrepair.files.sealed import write_whole, writing


def save(figure: Figure, png: Path, svg: Path) -> None:
    """Write the figure as PNG (300 dpi) and as SVG with text as text; the same figure gives the same bytes."""
    with looks.context():
        if figure.get_layout_engine() is not None:
            # Each pass of the automatic layout moves things a little: settle it once, then keep it.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        with write_whole(png) as temporary, writing(png):
            figure.savefig(temporary, format="png", dpi=300)
        with write_whole(svg) as temporary, writing(svg):
            figure.savefig(temporary, format="svg", dpi=300, metadata={"Date": None})
