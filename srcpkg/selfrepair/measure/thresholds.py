"""Top tokens of each head: the exact fraction of all tokens, over all shards, with its largest direct effects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from selfrepair.files.hdf5 import MADE_BY, open_hdf5, open_shards, write_hdf5
from selfrepair.files.sealed import advice_for


def top_tokens(direct_effect: Float[np.ndarray, "head token"], count: int) -> Int[np.ndarray, "head top"]:
    """The ``count`` tokens of each head with the largest direct effect, largest first; of equals, the earlier token.

    Args:
        direct_effect: [head, token], logits.
        count: Tokens to take, at most as many as there are.

    Returns:
        Indices of tokens [head, count].
    """
    return np.argsort(-direct_effect, axis=1, kind="stable")[:, :count]


def find_thresholds(
    *,
    shards: Sequence[Path],
    out: Path,
    top_fraction: float,
    first_position: int,
    provenance: dict[str, Any],
) -> None:
    """Find each head's top tokens over all shards, from clean direct effects alone (definitions.md, Selecting).

    A token's number is ``prompt * (T - 1) + pos``, prompts counted from the first of the first shard.

    Args:
        shards: Activations files in the order of their prompts.
        out: HDF5 file: top_tokens [layer, head, top], threshold [layer, head] in logits.
        top_fraction: Fraction of the tokens; ``int(top_fraction * n_tokens)`` are taken.
        first_position: Positions before this one count nowhere.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The fraction takes no token at all, or the positions left out are all there are.
    """
    kept_tokens: np.ndarray | None = None
    kept_effects = np.empty(0)
    n_prompts = 0
    sizes = [_sizes(shard) for shard in shards]
    n_pos = sizes[0][1]
    n_tokens = sum(prompts for prompts, _ in sizes) * (n_pos - first_position)
    count = int(top_fraction * n_tokens)
    if count < 1:
        raise ValueError(
            f"top_fraction {top_fraction} of {n_tokens} tokens takes none: raise tokens.prompts or statistics.top_fraction"
        )
    for dataset, first in open_shards(shards, "activations"):
        effects = dataset["head_direct_effect"].values[..., first_position:]
        layers, heads, prompts, positions = effects.shape
        number = (first + np.arange(prompts))[:, None] * n_pos + first_position + np.arange(positions)
        n_prompts = first + prompts
        flat = effects.reshape(layers * heads, -1)
        tokens = np.broadcast_to(number.reshape(-1), flat.shape)
        if kept_tokens is not None:
            flat = np.concatenate([kept_effects, flat], axis=1)
            tokens = np.concatenate([kept_tokens, tokens], axis=1)
        best = top_tokens(flat, count)
        kept_effects = np.take_along_axis(flat, best, axis=1)
        kept_tokens = np.take_along_axis(tokens, best, axis=1)
    assert kept_tokens is not None
    with write_hdf5(
        out,
        kind="thresholds",
        provenance=provenance,
        attrs={"n_tokens": n_tokens, "n_pos": n_pos, "n_prompts": n_prompts},
    ) as file:
        file.dims(layer=layers, head=heads, top=count)
        file.put(
            "top_tokens",
            ("layer", "head", "top"),
            kept_tokens.reshape(layers, heads, count).astype(np.int64),
            description="prompt * (T - 1) + pos of the tokens with the largest direct effect, largest first",
        )
        file.put(
            "threshold",
            ("layer", "head"),
            kept_effects[:, -1].reshape(layers, heads),
            units="logits",
            description="smallest direct effect among the head's top tokens",
        )


def read_top_tokens(
    path: Path, heads: Sequence[tuple[int, int]], prompts: slice
) -> Bool[np.ndarray, "head prompt predicted"]:
    """Which tokens of some prompts are top tokens of each head.

    Args:
        path: Thresholds file.
        heads: (layer, head) pairs.
        prompts: Prompts of the data set.

    Returns:
        Boolean [head, prompt, pos-1].

    Raises:
        ValueError: Heads or prompts that the file does not hold.
    """
    with open_hdf5(path, "thresholds") as dataset:
        top = dataset["top_tokens"].values
        n_pos, n_held = int(dataset.attrs["n_pos"]), int(dataset.attrs["n_prompts"])
    beyond = [pair for pair in heads if not (0 <= pair[0] < top.shape[0] and 0 <= pair[1] < top.shape[1])]
    if beyond or prompts.stop > n_held:
        raise ValueError(
            f"{path} holds top tokens of {top.shape[0]} layers of {top.shape[1]} heads on {n_held} prompts; wanted "
            f"{f'heads {beyond}' if beyond else f'prompts up to {prompts.stop - 1}'}: {advice_for(path, MADE_BY['thresholds'])}"
        )
    n_prompts = prompts.stop - prompts.start
    selected = np.zeros((len(heads), n_prompts * n_pos), bool)
    for row, (layer, head) in enumerate(heads):
        within = top[layer, head] - prompts.start * n_pos
        selected[row, within[(within >= 0) & (within < n_prompts * n_pos)]] = True
    return selected.reshape(len(heads), n_prompts, n_pos)


def _sizes(shard: Path) -> tuple[int, int]:
    with open_hdf5(shard, "activations") as dataset:
        return dataset.sizes["prompt"], dataset.sizes["predicting_pos"]
