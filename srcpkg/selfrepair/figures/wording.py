"""How findings put numbers into words: rounded to what their interval supports, with the interval and the unit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from selfrepair.quantities import NOISE_OF, QUANTITIES

Row = Mapping[Any, Any] | pd.Series
"""A row of a table: for each quantity X also X_low and X_high, the ends of its interval."""


def measured(row: Row, name: str, unit: str | None = None) -> str:
    """A quantity with its interval, as "0.85 logits (0.77 to 0.93)".

    Args:
        row: Row of a table.
        name: The quantity's column.
        unit: Its unit; by default that of `selfrepair.quantities`, none for other columns.
    """
    if unit is None:
        unit = QUANTITIES[name].unit if name in QUANTITIES else ""
    value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
    digits = _decimals(high - low, significant=2)
    told = f"{decimal(value, digits)}{f' {unit}' if unit else ''} ({decimal(low, digits)} to {decimal(high, digits)})"
    if abs(value) < (noise := row.get(NOISE_OF + name, 0)):
        return f"{told}, not told from zero by the noise of bfloat16 ({noise:.1g})"
    return told


def percentage(row: Row, name: str) -> str:
    """A share with its interval, as "41% (37 to 44%)"."""
    value, low, high = (100 * float(row[name + end]) for end in ("", "_low", "_high"))
    digits = _decimals(high - low, significant=1)
    return f"{decimal(value, digits)}% ({decimal(low, digits)} to {decimal(high, digits)}%)"


def verdict(row: Row, name: str) -> str:
    """What an interval says of a quantity's sign: "above" zero, "below" it, or "unclear"."""
    value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
    if abs(value) < row.get(NOISE_OF + name, 0):
        return "unclear"
    return "above" if low > 0 else "below" if high < 0 else "unclear"


def wide(row: Row, name: str) -> bool:
    """Whether an interval holds zero or spans an order of magnitude, so that a mean says little of what is usual."""
    low, high = sorted(abs(float(row[name + end])) for end in ("_low", "_high"))
    return verdict(row, name) == "unclear" or high >= 10 * low


def listing(names: Sequence[str]) -> str:
    """Names in a sentence, as "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def decimal(value: float, digits: int) -> str:
    """A number with this many decimals and a true minus sign; "none" where there is none."""
    if not math.isfinite(value):
        return "none"
    text = f"{value:,.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text.replace(",", "")) else text.replace("-", "")


def head_name(row: Row) -> str:
    """A head as the paper writes it, L26H3."""
    return f"L{int(row['layer'])}H{int(row['head'])}"


def largest(table: pd.DataFrame, name: str) -> pd.Series:
    """The row with the largest value of a column; the first of equals."""
    return table.sort_values(name, ascending=False, kind="stable").iloc[0]


def smallest(table: pd.DataFrame, name: str) -> pd.Series:
    """The row with the smallest value of a column; the first of equals."""
    return table.sort_values(name, kind="stable").iloc[0]


def signs(table: pd.DataFrame, name: str, noun: str) -> str:
    """How many rows have an interval above and below zero, as "above zero in 20 of 30 layers, below in 2".

    Args:
        table: Rows with the quantity and its interval.
        name: The quantity's column.
        noun: What a row is, in the plural.
    """
    above, below = int((table[f"{name}_low"] > 0).sum()), int((table[f"{name}_high"] < 0).sum())
    return f"above zero in {above:,} of {len(table):,} {noun}, below in {below:,}"


def _decimals(width: float, significant: int) -> int:
    """Decimals that show this many digits of an interval's width."""
    if not math.isfinite(width) or width <= 0:
        return significant
    return min(max(significant - 1 - math.floor(math.log10(width)), 0), 6)
