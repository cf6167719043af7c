"""Columns that say of what layer or head a row is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

THIS_RUN = "this run"
"""What a table that sets the run's model beside published ones calls it."""


def relative_depth(layer: np.ndarray, n_layers: int) -> np.ndarray:
    """0 for the first layer to 1 for the last; 0 in a model of one layer."""
    return layer / max(n_layers - 1, 1)


def ranked_heads(chosen: Sequence[tuple[int, int]], *, pooled: bool = False) -> dict[str, Any]:
    """The chosen heads by rank, and after them all heads together (rank 0, no layer and no head) where these are ``pooled``."""
    together = [None] * pooled
    return {
        "rank": [*range(1, len(chosen) + 1), *(0 for _ in together)],
        "layer": pd.array([*(layer for layer, _ in chosen), *together], dtype="Int64"),
        "head": pd.array([*(head for _, head in chosen), *together], dtype="Int64"),
    }
