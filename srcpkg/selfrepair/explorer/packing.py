"""Numbers and tables as text of little size, which the page unpacks with what every browser has.

Values of tokens are whole steps of `STEP`. All of a head lie in one deflate stream: quantity by quantity, each in planes of
bytes, the highest first, so that those that are nearly always zero take nearly nothing.
"""

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

STEP = 0.001
"""Of values of tokens, in logits: half of what the third decimal shows is the most that a shown value is off by."""
MISSING = np.iinfo(np.int32).min
"""Stands for a token that has no value."""

MOST = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Stored:
    """How a quantity of tokens is stored: as what is left of it when others are added up.

    Attributes:
        name: The quantity.
        plus: Quantities before it that are added to what is stored.
        minus: Likewise, taken away.
    """

    name: str
    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()


def to_steps(values: Float[np.ndarray, "*rest"]) -> Int[np.ndarray, "*rest"]:
    """Values in whole steps of `STEP`, `MISSING` where there is none; two million is the most that a step count holds."""
    known = np.isfinite(values)
    rounded = np.rint(np.where(known, values, 0).astype(np.float64) / STEP).clip(-MOST, MOST)
    return np.where(known, rounded, MISSING).astype(np.int32)


def remainders(
    steps: Mapping[str, Int[np.ndarray, "*rest"]], stored: Sequence[Stored]
) -> dict[str, Int[np.ndarray, "*rest"]]:
    """What is stored of each quantity; a value that is missing, or whose parts are, is stored as it is."""
    found = {}
    for quantity in stored:
        value = steps[quantity.name].astype(np.int64)
        parts = [(steps[name], sign) for names, sign in ((quantity.plus, 1), (quantity.minus, -1)) for name in names]
        whole = np.all([part != MISSING for part, _ in parts] or [np.ones(value.shape, bool)], axis=0)
        rest = value - sum((np.where(whole, part, 0).astype(np.int64) * sign for part, sign in parts), np.int64(0))
        found[quantity.name] = np.where(value == MISSING, MISSING, rest)
    return found


def pack(arrays: Sequence[Int[np.ndarray, "*rest"]]) -> str:
    """Whole numbers as deflated bytes in base 64: for each array the number of its planes, then these."""
    parts = []
    for array in arrays:
        flat = array.ravel().astype(np.int64)
        # 0 is what is missing; numbers of both signs follow by size.
        coded = np.where(flat == MISSING, 0, np.where(flat >= 0, 2 * flat, -2 * flat - 1) + 1).astype(np.uint64)
        planes = max(1, -(-int(coded.max(initial=0)).bit_length() // 8))
        parts.append(bytes([planes]))
        parts += [
            ((coded >> np.uint64(8 * at)) & np.uint64(255)).astype(np.uint8).tobytes() for at in reversed(range(planes))
        ]
    return deflate(b"".join(parts))


def deflate(content: bytes) -> str:
    """Bytes, deflated (without a header) and in base 64."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return base64.b64encode(compressor.compress(content) + compressor.flush()).decode("ascii")


def as_json(value: Any) -> str:
    """JSON that stands harmless inside a page's script: no ``<`` is in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Of these, only strings can hold any. Line separators end a line in scripts of old.
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def records(table: pd.DataFrame) -> dict[str, Any]:
    """A table for JSON, its numbers exactly, by column; None where there is no value."""
    return {
        "columns": list(map(str, table.columns)),
        "rows": [[_plain(value) for value in row] for row in rows_of(table)],
    }


def rows_of(table: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rows of a table as plain tuples."""
    return list(table.itertuples(index=False, name=None))


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return None
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
