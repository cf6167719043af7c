"""Heads as a person writes them."""

import re

_HEAD = re.compile(r"L?(\d+)[.H](\d+)", re.IGNORECASE)


def parse_head(head: str | tuple[int, int]) -> tuple[int, int]:
    """A head as a person writes it: (26, 8), "26.8" or "L26H8".

    Raises:
        ValueError: Anything else.
    """
    if isinstance(head, str):
        if (found := _HEAD.fullmatch(head.strip())) is None:
            raise ValueError(f"head is {head!r}; wanted LAYER.HEAD, as 26.8 or L26H8, counted from 0")
        return int(found[1]), int(found[2])
    layer, index = head
    return int(layer), int(index)
