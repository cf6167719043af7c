"""Top tokens of each head: the exact fraction of all tokens, over all shards, with its largest direct effects."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from selfrepair.files.hdf5 import MADE_BY, open_hdf5, open_shards, write_hdf5
from selfrepair.files.sealed import advice_for
from selfrepair.measure.largest import Largest


def find_thresholds(
    *,
    shards: Sequence[Path],
    out: Path,
    top_fraction: float,
    first_position: int,
    provenance: dict[str, Any],
) -> None:
    """Find each head's top tokens over all shards, from clean direct effects alone (definitions.md, Selecting).

    Args:
        shards: Activations files in the order of their prompts.
        out: HDF5 file: top_tokens [layer, head, prompt, predicting_pos], prompts counted from the first of the first shard;
            threshold [layer, head] in logits.
        top_fraction: Fraction of the tokens; ``int(top_fraction * n_tokens)`` are taken, of equals the earlier.
        first_position: Positions before this one count nowhere.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The fraction takes no token at all, or the positions left out are all there are.
    """
    largest, more = Largest(), True
    while more:
        n_prompts = 0
        for effects in _effects(shards):
            n_prompts += effects.shape[2]
            largest.look(_rows(effects, first_position))
        n_layers, n_heads, _, n_pos = effects.shape
        n_tokens = n_prompts * (n_pos - first_position)
        count = int(top_fraction * n_tokens)
        if count < 1:
            raise ValueError(
                f"top_fraction {top_fraction} of {n_tokens} tokens takes none: raise tokens.prompts or "
                "statistics.top_fraction"
            )
        more = largest.narrow(count)
    dims = {"layer": n_layers, "head": n_heads, "prompt": n_prompts, "predicting_pos": n_pos}
    attrs = {"n_tokens": n_tokens, "n_top": count}
    with write_hdf5(out, kind="thresholds", provenance=provenance, attrs=attrs) as file:
        file.dims(**dims)
        selected = file.variable(
            "top_tokens",
            tuple(dims),
            np.uint8,
            chunk={"prompt": n_prompts // len(shards)},
            compress=True,
            description="1 for the tokens with the head's largest direct effects, 0 for others",
        )
        first = 0
        for effects in _effects(shards):
            picked = largest.pick(_rows(effects, first_position)).reshape(*effects.shape[:3], -1)
            selected[:, :, first : first + effects.shape[2], first_position:] = picked
            first += effects.shape[2]
        file.put(
            "threshold",
            ("layer", "head"),
            largest.smallest.reshape(n_layers, n_heads),
            units="logits",
            description="smallest direct effect among the head's top tokens",
        )


def _effects(shards: Sequence[Path]) -> Iterator[Float[np.ndarray, "layer head prompt predicted"]]:
    for dataset, _ in open_shards(shards, "activations"):
        yield dataset["head_direct_effect"].values


def _rows(effects: np.ndarray, first_position: int) -> Float[np.ndarray, "head token"]:
    """Those that count, a row a head."""
    return effects[..., first_position:].reshape(effects.shape[0] * effects.shape[1], -1)


class TopTokens:
    """A thresholds file that is open. Made by `open_top_tokens`."""

    def __init__(self, path: Path, dataset: xr.Dataset) -> None:
        self._path, self._dataset = path, dataset

    @property
    def n_prompts(self) -> int:
        """Prompts of the data set."""
        return int(self._dataset.sizes["prompt"])

    @property
    def n_top(self) -> int:
        """Top tokens of a head."""
        return int(self._dataset.attrs["n_top"])

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self._dataset.sizes["layer"])

    def of(self, heads: Sequence[tuple[int, int]], prompts: slice) -> Bool[np.ndarray, "head prompt predicted"]:
        """Which tokens of some prompts are top tokens of each head.

        Args:
            heads: (layer, head) pairs.
            prompts: Prompts of the data set.

        Raises:
            ValueError: Heads or prompts that the file does not hold.
        """
        n_layers, n_heads, n_held, _ = self._dataset["top_tokens"].shape
        beyond = [pair for pair in heads if not (0 <= pair[0] < n_layers and 0 <= pair[1] < n_heads)]
        if beyond or prompts.stop > n_held:
            raise ValueError(
                f"{self._path} holds top tokens of {n_layers} layers of {n_heads} heads on {n_held} prompts; wanted "
                f"{f'heads {beyond}' if beyond else f'prompts up to {prompts.stop - 1}'}: "
                f"{advice_for(self._path, MADE_BY['thresholds'])}"
            )
        top = self._dataset["top_tokens"][:, :, prompts].values.astype(bool)
        layer, head = np.array(heads, int).reshape(-1, 2).T
        return top[layer, head]


@contextmanager
def open_top_tokens(path: Path) -> Iterator[TopTokens]:
    """Open a file that `find_thresholds` wrote.

    Raises:
        ValueError: As `selfrepair.files.hdf5.open_hdf5`.
    """
    with open_hdf5(path, "thresholds") as dataset:
        yield TopTokens(path, dataset)
