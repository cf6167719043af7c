"""Figures: one module a figure, each with `draw(tables) -> Figure`, which computes nothing but layout.

A figure is drawn from finished tables only, so that an edit of its style redraws it in seconds. `style` holds what the
figures share.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from selfrepair.figures import style

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {".parquet": pd.read_parquet, ".csv": pd.read_csv}


def figure_names() -> list[str]:
    """Names of the figures that can be drawn."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "style")


def draw_figure(name: str, tables: dict[str, Path], png: Path, svg: Path) -> None:
    """Draw a figure from its tables and save it.

    Args:
        name: Name of the figure (`figure_names`).
        tables: File of each table that the figure takes, Parquet or CSV.
        png: Where the PNG goes.
        svg: Where the SVG goes.

    Raises:
        ValueError: No such figure, a file that is neither Parquet nor CSV, or a table that lacks what the figure draws.
    """
    if name not in figure_names():
        raise ValueError(f"no figure {name!r}: choose one of {', '.join(figure_names())}")
    figure = importlib.import_module(f"{__name__}.{name}").draw({key: _read(path) for key, path in tables.items()})
    style.save(figure, png, svg)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix not in _READERS:
        raise ValueError(f"{path}: tables are read from {' or '.join(_READERS)} files")
    return _READERS[path.suffix](path)
