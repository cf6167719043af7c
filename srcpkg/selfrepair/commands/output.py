"""What the commands print: tables that fit a terminal, JSON, and texts in visible characters."""

import json
import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Where tables go: in colour on a terminal, plain elsewhere or with NO_COLOR; nothing in a text is taken for markup."""
    return Console(markup=False, emoji=False, highlight=False)


RULED = box.Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
"""Columns one blank apart, a line below their names and above a last row."""
TOKEN_WIDTH = 11
"""Of a column of tokens; what is longer is cut."""


def table(*columns: str, left: int = 1, tokens: Container[str] = (), title: str | None = None) -> Table:
    """A table of numbers that fits 80 characters.

    Args:
        columns: Their names.
        left: How many of them are words, at the left.
        tokens: Those that hold tokens.
        title: What stands above it.
    """
    found = Table(
        box=RULED,
        show_edge=False,
        padding=0,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    for place, name in enumerate(columns):
        found.add_column(
            name,
            justify="left" if place < left else "right",
            # Where there is no room, words are broken before numbers are cut.
            no_wrap=place >= left or name in tokens,
            max_width=TOKEN_WIDTH if name in tokens else None,
            vertical="bottom",
        )
    return found


def say(out: Console, text: str, style: str = "") -> None:
    """Print a line, which the terminal wraps."""
    out.print(printable(text), style=style, soft_wrap=True)


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


def number(value: SupportsFloat, digits: int = 3) -> str:
    """A number with this many decimals; "none" where there is none."""
    value = float(value)
    if not math.isfinite(value):
        return "none"
    text = f"{value:,.{digits}f}"
    return text if float(text.replace(",", "")) else text.replace("-", "")


def interval(low: SupportsFloat, high: SupportsFloat, digits: int = 3) -> str:
    """An interval, as "0.77 to 0.93"; nothing where it has no ends."""
    return f"{number(low, digits)} to {number(high, digits)}" if math.isfinite(float(low) + float(high)) else ""


def signed(value: SupportsFloat, *ends: SupportsFloat, noise: SupportsFloat = 0) -> Text:
    """A number in the colour of its sign; plain where zero is between the ends of its interval, or the number within noise."""
    low, *_, high = map(float, ends or (value, value))
    sure = abs(float(value)) >= float(noise)
    return Text(number(value), style="cyan" if low > 0 and sure else "red" if high < 0 and sure else "")


def print_table(out: Console, rows: Table, optional: Sequence[str] = ()) -> None:
    """Print a table; of the columns that it can do without, those that do not fit go, the last first, and are named."""
    gone = list[str]()
    names = [str(column.header) for column in rows.columns]
    for name in reversed(optional):
        if Measurement.get(out, out.options.update(max_width=1000), rows).maximum <= out.width:
            break
        if name in names:
            del rows.columns[names.index(name)]
            names.remove(name)
            gone.insert(0, " ".join(name.split()))
    out.print(rows)
    if gone:
        out.print(f"Left out at this width: {', '.join(gone)}. --json has all.", style="dim")


def in_context(before: Sequence[str], token: str, room: int) -> Text:
    """A token between brackets after the text before it, cut at its beginning to a number of terminal cells."""
    told, marked = visible("".join(before)), f"[{visible(token)}]"
    left = max(room - cell_len(marked), 0)
    if cell_len(told) > left:
        while told and cell_len(told) > left - 3:
            told = told[1:]
        told = f"...{told}"[:left]
    return Text.assemble(told, (marked, "bold cyan"))
