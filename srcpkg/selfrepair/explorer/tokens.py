"""Values of single tokens that the page shows: of a sample of prompts, and of each head's best tokens wherever they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from selfrepair.explorer.packing import MISSING, Stored, to_steps
from selfrepair.quantities import HEAD_TOKEN, PARTS, held
from selfrepair.tables.counted_tokens import read_ablations

BEST = 20
"""Tokens of each head that are listed in their text: of its top tokens, those with the largest direct effects."""
SCALE_RATIO = "scale_ratio"
"""Clean over ablated scale of the final norm (definitions.md)."""


@dataclass
class TokenValues:
    """Values of tokens under one kind of ablation.

    Attributes:
        heads: The ablated (layer, head) pairs.
        prompts: Prompts of the sample, in order.
        steps: By quantity, in whole steps [head, prompt, pos]; `MISSING` where there is no value.
        top: Which of these are top tokens.
        best: Prompt and position of each head's best tokens [head, best, 2], the largest direct effect first; -1 where there
            are fewer.
        best_steps: By quantity, theirs [head, best].
    """

    heads: list[tuple[int, int]]
    prompts: Int[np.ndarray, " prompt"]
    steps: dict[str, Int[np.ndarray, "head prompt predicted"]]
    top: Bool[np.ndarray, "head prompt predicted"]
    best: Int[np.ndarray, "head best two"]
    best_steps: dict[str, Int[np.ndarray, "head best"]]

    def stored(self) -> list[Stored]:
        """How each quantity is stored: sums of others as what rounding leaves of them."""
        parts = held(PARTS, self.steps)
        sums = {
            "self_repair": Stored("self_repair", plus=parts),
            "ablated_direct_effect": Stored(
                "ablated_direct_effect", plus=("direct_effect", "logit_change"), minus=("self_repair",)
            ),
        }
        alone = [Stored(name) for name in self.steps if name not in sums]
        return [*alone, *sums.values()]

    def first(self, prompts: Int[np.ndarray, " kept"]) -> "TokenValues":
        """The same with some of the prompts."""
        kept = np.isin(self.prompts, prompts)
        steps = {name: of[:, kept] for name, of in self.steps.items()}
        return TokenValues(self.heads, self.prompts[kept], steps, self.top[:, kept], self.best, self.best_steps)


def read_tokens(
    shards: Sequence[Path], thresholds: Path, first_position: int, prompts: Int[np.ndarray, " prompt"]
) -> TokenValues:
    """Values of the tokens of some prompts, and each head's best tokens of all prompts; one file is open at a time.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        first_position: Positions before this one count nowhere.
        prompts: The prompts wanted, in order.
    """
    parts: list[tuple[dict[str, np.ndarray], np.ndarray]] = []
    best: _Best | None = None
    for shard in read_ablations(shards, thresholds, first_position):
        dataset, top = shard.dataset, shard.counted["top"]
        inside = prompts[(prompts >= shard.first) & (prompts < shard.first + dataset.sizes["prompt"])] - shard.first
        best = best or _Best(len(shard.heads))
        places = best.offer(dataset["direct_effect"].values, top, shard.first)
        steps = {}
        for name in (*held(HEAD_TOKEN, dataset), SCALE_RATIO):
            of_shard = to_steps(_values(dataset, name))
            best.take(name, of_shard, places)
            steps[name] = of_shard[:, inside]
        parts.append((steps, top[:, inside]))
        heads = shard.heads
    assert best is not None, "a run has shards"
    joined = {name: np.concatenate([of[name] for of, _ in parts], axis=1) for name in parts[0][0]}
    top = np.concatenate([of for _, of in parts], axis=1)
    return TokenValues(heads, prompts, joined, top, best.places, best.steps)


def _values(dataset: xr.Dataset, name: str) -> Float[np.ndarray, "head prompt predicted"]:
    if name != SCALE_RATIO:
        return dataset[name].values
    with np.errstate(divide="ignore", invalid="ignore"):
        return dataset["clean_scale"].values.astype(np.float64) / dataset["ablated_scale"].values


class _Best:
    """Best tokens of each head so far, and their values."""

    def __init__(self, n_heads: int) -> None:
        self._effects = np.full((n_heads, BEST), -np.inf)
        self.places = np.full((n_heads, BEST, 2), -1)
        self.steps: dict[str, np.ndarray] = {}
        self._order = np.empty(0, int)

    def offer(self, effects: np.ndarray, top: np.ndarray, first: int) -> Int[np.ndarray, "head best"]:
        """Take the best of a shard's top tokens in among those so far; gives the places that were offered, in the shard."""
        n_heads, _, n_positions = effects.shape
        offered = np.where(top, effects, -np.inf).reshape(n_heads, -1).astype(np.float64)
        places = np.argsort(-offered, axis=1, kind="stable")[:, :BEST]
        found = np.take_along_axis(offered, places, axis=1)
        prompt, pos = np.divmod(places, n_positions)
        where = np.where(np.isfinite(found)[..., None], np.stack([first + prompt, pos], axis=-1), -1)
        both = np.concatenate([self._effects, found], axis=1)
        self._order = np.argsort(-both, axis=1, kind="stable")[:, :BEST]
        self._effects = np.take_along_axis(both, self._order, axis=1)
        self.places = np.take_along_axis(np.concatenate([self.places, where], axis=1), self._order[..., None], axis=1)
        return places

    def take(self, name: str, of_shard: np.ndarray, places: np.ndarray) -> None:
        """Keep a quantity's values of the best tokens, after `offer` has settled which these are."""
        before = self.steps.get(name, np.full(self.places.shape[:2], MISSING, np.int32))
        offered = np.take_along_axis(of_shard.reshape(len(of_shard), -1), places, axis=1)
        kept = np.take_along_axis(np.concatenate([before, offered], axis=1), self._order, axis=1)
        self.steps[name] = np.where(self.places[..., 0] < 0, MISSING, kept)
