"""Ablations files as tables read them: some heads, and the tokens of each selection that count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from selfrepair.files.hdf5 import heads_of, open_shards, rows_of
from selfrepair.measure.thresholds import open_top_tokens

SAME_SCALE, SAME_EFFECT = 8, 128
"""Rounding errors of the number type, relative, within which two scales, and two direct effects, are one."""


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


def same_scale(
    clean: Float[np.ndarray, "*one prompt predicted"], ablated: Float[np.ndarray, "head prompt predicted"]
) -> Bool[np.ndarray, "head prompt predicted"]:
    """Tokens whose final scale ablation changed by nothing but rounding: where nothing changed, as at a shared BOS."""
    return np.abs(clean / ablated - 1) <= SAME_SCALE * np.finfo(ablated.dtype).eps


def unchanged(ablations: xr.Dataset) -> Bool[np.ndarray, "head prompt predicted"]:
    """Tokens on which ablation changed nothing but by rounding.

    Such are first tokens that all prompts share: the mean of several donors' outputs, all of them equal, is not quite each of
    them.
    """
    effect, without = ablations["direct_effect"].values, ablations["ablated_direct_effect"].values
    same_effect = np.abs(without - effect) <= SAME_EFFECT * np.finfo(effect.dtype).eps * np.abs(effect)
    return same_effect & same_scale(ablations["clean_scale"].values[None], ablations["ablated_scale"].values)
