"""The few heads that analyses of single heads are about."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from selfrepair.files.hdf5 import heads_of, open_hdf5, open_shards
from selfrepair.files.sealed import read_json, write_json
from selfrepair.measure.thresholds import open_top_tokens

N_CHOSEN = 4
"""Heads that are taken where the config names none: as many as a figure of panels holds side by side."""


def choose_heads(
    *, shards: Sequence[Path], thresholds: Path, out: Path, heads: Sequence[tuple[int, int]] | None
) -> None:
    """Write the heads that analyses of single heads are about.

    Args:
        shards: Ablations files of the main kind in the order of their prompts.
        thresholds: Top tokens of each head.
        out: JSON file: ``heads``, a list of [layer, head]; ``strongest``, whether these are what is taken where none are given.
        heads: The (layer, head) pairs; None takes those of largest condensed self-repair that have an MLP after them.

    Raises:
        ValueError: A head that was not ablated.
    """
    strongest = strongest_heads(shards, thresholds, N_CHOSEN)
    chosen = strongest if heads is None else [(int(layer), int(head)) for layer, head in heads]
    with open_hdf5(shards[0], "ablations") as dataset:
        missing = sorted(set(chosen) - set(heads_of(dataset)))
    if missing:
        raise ValueError(f"heads {missing} were not ablated: name them under ablations.*.heads, or name others")
    write_json(out, {"heads": chosen, "strongest": chosen == strongest})


def read_chosen_heads(path: Path) -> list[tuple[int, int]]:
    """The (layer, head) pairs that `choose_heads` wrote, the strongest first."""
    return [(layer, head) for layer, head in read_json(path)["heads"]]


def strongest_heads(shards: Sequence[Path], thresholds: Path, count: int) -> list[tuple[int, int]]:
    """The heads of largest condensed self-repair that have an MLP after them, largest first.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        count: How many, or as many as there are.
    """
    heads, self_repair, parallel = condensed_self_repair(shards, thresholds)
    with open_top_tokens(thresholds) as top:
        last = top.n_layers - 1
    # The last layer's MLP may run beside its heads, not after them.
    followed = [not parallel or layer < last for layer, _ in heads]
    order = np.argsort(-self_repair, kind="stable")  # no value comes last
    best = [heads[row] for row in order if followed[row] or not any(followed)]
    return best[:count]


def condensed_self_repair(
    shards: Sequence[Path], thresholds: Path
) -> tuple[list[tuple[int, int]], Float[np.ndarray, " head"], bool]:
    """Mean self-repair over the top tokens of each head (definitions.md, Selecting and condensing), in logits.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.

    Returns:
        The (layer, head) pairs, their means (NaN without top tokens), and whether attention and MLP of a layer run in parallel.
    """
    total, count = np.zeros(()), np.zeros(())
    with open_top_tokens(thresholds) as top:
        for dataset, first in open_shards(shards, "ablations"):
            heads, parallel = heads_of(dataset), bool(dataset.attrs["parallel_attention_mlp"])
            selected = top.of(heads, slice(first, first + dataset.sizes["prompt"]))
            total = total + np.where(selected, dataset["self_repair"].values, 0).sum((1, 2), dtype=np.float64)
            count = count + selected.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return heads, total / count, parallel
