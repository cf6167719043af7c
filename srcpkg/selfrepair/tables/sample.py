"""Tokens that a table lists one by one: all of them, or a sample where they are more than anyone looks at."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

LISTED = 10_000
"""Tokens of a head that are listed, at most: as many as a figure shows, and a table of them can be opened anywhere."""


class Sample:
    """Rows that come a shard at a time, and of many as large a sample, drawn at random without replacement.

    Memory does not grow with what comes.

    Args:
        seed: Of the draws.
        size: Rows that are kept, at most; None means `LISTED`.
        each: How many rows of a table a row is: so many fewer are kept.
    """

    def __init__(self, seed: int, size: int | None = None, each: int = 1) -> None:
        self.size = (LISTED if size is None else size) // each
        self.seen = 0
        """Rows that have come."""
        self._rng = np.random.default_rng(seed)
        self._parts: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
        self._kept = 0

    def add(self, columns: Mapping[str, Shaped[np.ndarray, "row *rest"]]) -> None:
        """Add rows, by column, the same columns each time."""
        n_rows = len(next(iter(columns.values())))
        # Each row gets a number at random, and those with the smallest numbers stay.
        # Copies: a column of a larger array would keep all of that.
        self._parts.append((self._rng.random(n_rows), {name: np.array(of) for name, of in columns.items()}))
        self.seen += n_rows
        self._kept += n_rows
        if self._kept > self.size + self.size // 4:
            self._draw()

    def rows(self) -> dict[str, Shaped[np.ndarray, "row *rest"]]:
        """The rows that are kept, in the order in which they came."""
        self._draw()
        return dict(self._parts[0][1])

    @property
    def settings(self) -> dict[str, int]:
        """What a table says in its attrs where it does not list all: how many it lists, and of how many."""
        return {"listed": self.size, "listed_of": self.seen} if self.seen > self.size else {}

    def _draw(self) -> None:
        number = np.concatenate([number for number, _ in self._parts])
        columns = {name: np.concatenate([of[name] for _, of in self._parts]) for name in self._parts[0][1]}
        if len(number) > self.size:
            kept = np.sort(np.argpartition(number, self.size)[: self.size])
            number, columns = number[kept], {name: of[kept] for name, of in columns.items()}
        self._parts = [(number, columns)]
        self._kept = len(number)
