"""Figures: one module a figure, with `panels(tables)`, `draw(tables) -> Figure` and `finding(tables) -> list[str]`.

A figure is drawn from finished tables only, so that an edit of its style redraws it in seconds. `panels` says what each panel
shows, and computes nothing but layout; `draw` puts the panels on a page, as they are published, and `plotting` into axes of
the user's own. `finding` says in Markdown lines what the figure shows, each number read from the same tables. `catalogue` says
which tables each figure takes; `style` holds the looks of all figures, `shared` what only some of them share.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

SHARED = ("catalogue", "findings", "opening", "plotting", "shared", "style", "wording")
"""Modules and folders beside the figures."""


def figure_names() -> list[str]:
    """Names of the figures that can be drawn."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED)


def draw_figure(name: str, tables: Mapping[str, Path], png: Path, svg: Path) -> None:
    """Draw a figure from its tables and save it.

    Args:
        name: Name of the figure (`figure_names`).
        tables: File of each table that the figure takes, Parquet or CSV.
        png: Where the PNG goes.
        svg: Where the SVG goes.

    Raises:
        ValueError: No such figure, a file that is neither Parquet nor CSV, or a table that lacks what the figure draws.
    """
    from selfrepair.figures.style import saving  # matplotlib, which the rules, who read the catalogue, do without

    saving.save(module_of(name).draw(read_tables(tables)), png, svg)


def finding(name: str, tables: Mapping[str, Path]) -> list[str]:
    """What a figure shows, in lines of Markdown.

    Args:
        name: Name of the figure (`figure_names`).
        tables: As for `draw_figure`.

    Raises:
        ValueError: As `draw_figure`.
    """
    return module_of(name).finding(read_tables(tables))


def read_tables(files: Mapping[str, Path]) -> "dict[str, pd.DataFrame]":
    """Tables from Parquet or CSV files.

    Raises:
        ValueError: As `selfrepair.files.tables.read_table`.
    """
    from selfrepair.files.tables import read_table

    return {key: read_table(path) for key, path in files.items()}


def module_of(name: str) -> ModuleType:
    """The module of a figure.

    Raises:
        ValueError: No such figure.
    """
    if name not in figure_names():
        raise ValueError(f"no figure {name!r}: choose one of {', '.join(figure_names())}")
    return importlib.import_module(f"{__name__}.{name}")
