"""Who repairs whom over all heads: the mean over their top tokens, and the strongest pairs of a head and a component."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from selfrepair.storage import open_hdf5

N_PAIRS = 6
"""Pairs that are listed, of heads and of MLPs each."""


@dataclass(frozen=True)
class Pair:
    """An ablated head and a component that changes when it is ablated; ``by_head`` is None for an MLP."""

    layer: int
    head: int
    by_layer: int
    by_head: int | None


def mean_repair(shards: Sequence[Path]) -> xr.Dataset:
    """Mean over each head's top tokens of its repair by every component.

    Returns:
        repair_by_head [head, by_layer, by_head] and repair_by_mlp [head, by_layer], logits; layer and head_index [head].
    """
    names = ["repair_by_head", "repair_by_mlp", "n_selected"]
    total: xr.Dataset | None = None
    for shard in shards:
        with open_hdf5(shard, "ablations", remake="ablate_heads") as dataset:
            labels = dataset[["layer", "head_index"]].load()
            sums = dataset[names].load().drop_vars(["layer", "head_index"], errors="ignore").astype(float)
            total = sums if total is None else total + sums
    assert total is not None
    return (total / total["n_selected"]).assign(layer=labels["layer"], head_index=labels["head_index"])


def strongest_pairs(repair: xr.Dataset, count: int) -> list[Pair]:
    """The pairs of largest repair or breakage: ``count`` where a head changes, then ``count`` where an MLP does.

    Args:
        repair: From `mean_repair`.
        count: How many of each, or as many as there are with any repair at all.
    """
    layers, heads = repair["layer"].values.tolist(), repair["head_index"].values.tolist()

    def largest(values: np.ndarray) -> Iterator[tuple[int, ...]]:
        order = np.argsort(-np.abs(values), axis=None, kind="stable")[:count]
        for place in order[values.flat[order] != 0]:
            yield tuple(int(at) for at in np.unravel_index(place, values.shape))

    by_head = [Pair(layers[row], heads[row], at, of) for row, at, of in largest(repair["repair_by_head"].values)]
    by_mlp = [Pair(layers[row], heads[row], at, None) for row, at in largest(repair["repair_by_mlp"].values)]
    return by_head + by_mlp


def write_strongest_pairs(pairs: Sequence[Pair], path: Path) -> None:
    """Write pairs as JSON."""
    path.write_text(json.dumps([asdict(pair) for pair in pairs], indent=0) + "\n", encoding="utf-8")


def read_strongest_pairs(path: Path) -> list[Pair]:
    """The pairs that `write_strongest_pairs` wrote, in their order."""
    return [Pair(**pair) for pair in json.loads(path.read_text(encoding="utf-8"))]
