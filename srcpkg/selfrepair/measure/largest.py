"""The largest values of each row, exactly, of rows too long to hold: found in passes over parts that follow one another."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

BITS = 11
"""Of a value that a pass settles: three passes for float32, six for float64, and 2,048 counts a row."""

_NONE = np.zeros(0, np.int64)


class Largest:
    """Which values are the largest of their row, a given number of them; of equals the earlier, and NaN last.

    Radix selection: each pass counts the values of a row by the next bits of their order, and so narrows down where the
    smallest of the largest lies. Every pass looks at the same parts in the same order; then `pick` says which values are
    among them.
    """

    def __init__(self) -> None:
        self._type: Any = np.dtype(np.float32)
        self._settled = 0
        """Bits of the smallest of the largest that are known, from the highest."""
        self._smallest: UInt[np.ndarray, " row"] = np.zeros(0, np.uint32)
        """These bits."""
        self._left: Int[np.ndarray, " row"] = _NONE
        """How many of the largest share them."""
        self._counts: Int[np.ndarray, "row bin"] = _NONE.reshape(0, 0)
        """Of the pass, values that share them, by the bits after them."""
        self._taken: Int[np.ndarray, " row"] = _NONE
        """Of the values equal to the smallest, those picked already."""

    def look(self, values: Float[np.ndarray, "row value"]) -> None:
        """Count a part's values in this pass."""
        keys = self._keys(values)
        n_rows = len(keys)
        if not self._settled:
            self._smallest = np.zeros(n_rows, keys.dtype)
        if not self._counts.size:
            self._counts = np.zeros((n_rows, 1 << self._next), np.int64)
        rest = self._bits - self._settled
        bins = (keys >> keys.dtype.type(rest - self._next)) & keys.dtype.type((1 << self._next) - 1)
        places = bins.astype(np.int64) + (np.arange(n_rows)[:, None] << self._next)
        if self._settled:
            places = places[keys >> keys.dtype.type(rest) == self._smallest[:, None]]
        self._counts += np.bincount(places.ravel(), minlength=self._counts.size).reshape(self._counts.shape)

    def narrow(self, count: int) -> bool:
        """End a pass; whether another is needed.

        Args:
            count: How many are the largest, at least one; the same in every pass.

        Raises:
            ValueError: A row has fewer values.
        """
        if not self._settled:
            self._left = np.full(len(self._smallest), count)
        # From the largest down, the first bin with which there are enough.
        reached = self._counts[:, ::-1].cumsum(1)
        place = (reached < self._left[:, None]).sum(1)
        if (reached[:, -1] < self._left).any():
            raise ValueError(f"{count} values of each row are wanted, and one has {reached[:, -1].min()}")
        rows, bin_ = np.arange(len(place)), reached.shape[1] - 1 - place
        self._left = self._left - (reached[rows, place] - self._counts[rows, bin_])
        self._smallest = (self._smallest << self._smallest.dtype.type(self._next)) | bin_.astype(self._smallest.dtype)
        self._settled += self._next
        self._counts = _NONE.reshape(0, 0)
        self._taken = np.zeros_like(self._left)
        return self._settled < self._bits

    def pick(self, values: Float[np.ndarray, "row value"]) -> Bool[np.ndarray, "row value"]:
        """Which values of a part are among the largest: after the last pass, parts in their order once more."""
        keys, smallest = self._keys(values), self._smallest[:, None]
        equal = keys == smallest
        number = self._taken[:, None] + equal.cumsum(1)
        self._taken = number[:, -1]
        return (keys > smallest) | (equal & (number <= self._left[:, None]))

    @property
    def smallest(self) -> Float[np.ndarray, " row"]:
        """The smallest of the largest of each row."""
        highest = self._smallest.dtype.type(1 << (self._bits - 1))
        bits = np.where(self._smallest & highest, self._smallest ^ highest, ~self._smallest)
        return bits.view(self._type)

    @property
    def _bits(self) -> int:
        return 8 * int(self._type.itemsize)

    @property
    def _next(self) -> int:
        """Bits that this pass settles."""
        return min(BITS, self._bits - self._settled)

    def _keys(self, values: np.ndarray) -> UInt[np.ndarray, "row value"]:
        """Whole numbers in the order of the values."""
        self._type = values.dtype
        plain = np.where(np.isnan(values), values.dtype.type(-np.inf), values) + values.dtype.type(0)  # no -0
        bits = plain.view(f"u{values.dtype.itemsize}")
        highest = bits.dtype.type(1 << (self._bits - 1))
        return np.where(bits & highest, ~bits, bits | highest)
