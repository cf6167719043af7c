"""What the commands print: tables that fit a terminal, JSON, and texts in visible characters."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Where tables go: in colour on a terminal, plain elsewhere or with NO_COLOR; nothing in a text is taken for markup."""
    return Console(markup=False, emoji=False, highlight=False)


def table(*columns: str, left: int = 1, title: str | None = None) -> Table:
    """A table whose columns are numbers, but the first ``left``."""
    found = Table(box=box.SIMPLE, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(columns):
        found.add_column(name, justify="left" if place < left else "right")
    return found


def print_json(value: Any) -> None:
    """Print JSON that any reader takes: what is no number is null."""
    typer.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """A value as JSON has it: numpy's numbers as Python's, NaN and what is missing as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # of numpy
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int) or value is None:
        return value
    return str(value) if isinstance(value, Path) else None  # pandas' NA


def printable(text: str) -> str:
    """A text without what a terminal would act on: control characters, and others that are not seen, as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def visible(text: str) -> str:
    """A text in one line, with line breaks, tabs and all that is not seen as escapes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def quoted(token: str) -> str:
    """A token between quotes, so that its blanks are seen."""
    return f"'{visible(token)}'"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
