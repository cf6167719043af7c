"""Ablations files as tables read them: some heads, and the tokens of each selection that count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool

from selfrepair.files.hdf5 import heads_of, open_shards, rows_of
from selfrepair.measure.thresholds import open_top_tokens


@dataclass(frozen=True)
class Ablations:
    """Ablations of some heads on a shard.

    Attributes:
        dataset: Values of these heads [head, prompt, pos], read where they are used.
        heads: Their (layer, head) pairs.
        counted: By selection, the tokens that count [head, prompt, pos]; "all" only where all tokens were computed.
        first: The shard's first prompt.
    """

    dataset: xr.Dataset
    heads: list[tuple[int, int]]
    counted: dict[str, Bool[np.ndarray, "head prompt predicted"]]
    first: int


def read_ablations(
    shards: Sequence[Path],
    thresholds: Path,
    first_position: int,
    heads: Sequence[tuple[int, int]] | None = None,
    whose: Path | None = None,
) -> Iterator[Ablations]:
    """The shards' ablations of some heads, one shard after the other.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        first_position: Positions before this one count nowhere.
        heads: The (layer, head) pairs; None means all that were ablated.
        whose: The file that names them.

    Raises:
        ValueError: Shards that are not those of the thresholds (`open_shards`), or that lack heads which ``whose`` names.
    """
    with open_top_tokens(thresholds) as top:
        for dataset, first in open_shards(shards, "ablations", n_prompts=top.n_prompts):
            if heads is not None:
                dataset = dataset.isel(head=rows_of(heads, whose or shards[0], dataset, shards[0]))
            of = heads_of(dataset)
            counted = {"top": top.of(of, slice(first, first + dataset.sizes["prompt"]))}
            if dataset.attrs["tokens"] == "all":
                counted["all"] = np.zeros_like(counted["top"])
                counted["all"][..., first_position:] = True
            yield Ablations(dataset, of, counted, first)
