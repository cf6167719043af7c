"""Means over tokens with bootstrap intervals over prompts, because the tokens of a prompt are not independent.

Prompts come a shard at a time and are added to sums in every resample, so that memory does not grow with their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Shaped, UInt8

from selfrepair.quantities import HEAD_TOKEN, MEANS, PARTS, held

CONFIDENCE = 0.95
"""Level of every interval."""

BLOCK = 32
"""Prompts that are weighted at once: fewer pass over all sums too often, more take memory."""

DRAWN = 256
"""Prompts whose draws are made and held at once, in every resample."""

N_TOKENS, N_PROMPTS = "n_tokens", "n_prompts"
"""Names, among sums over tokens, of how many tokens there are, and prompts with one of them."""


@dataclass(frozen=True)
class Resamples:
    """How often each prompt counts: once in the estimate, then as often as each bootstrap resample draws it.

    Attributes:
        n_prompts: How many prompts there are.
        between: Counts of the prompts from one to before another [resample, prompt]: a row of ones, then a row a resample of as
            many prompts with replacement. One byte each: a prompt is drawn once on average, and never 256 times.
    """

    n_prompts: int
    between: Callable[[int, int], UInt8[np.ndarray, "resample prompt"]]

    @property
    def counts(self) -> UInt8[np.ndarray, "resample prompt"]:
        """Counts of all prompts."""
        return self.between(0, self.n_prompts)

    @classmethod
    def given(cls, counts: UInt8[np.ndarray, "resample prompt"]) -> "Resamples":
        """Those of which all counts are known."""
        return cls(counts.shape[1], lambda first, stop: counts[:, first:stop])

    @classmethod
    def drawn(cls, n_prompts: int, n_bootstrap: int, seed: int) -> "Resamples":
        """Draw ``n_bootstrap`` resamples, a block of prompts at a time and when it is asked for.

        How many draws fall on each block is drawn first, then which of its prompts they fall on: together, draws from all.
        """
        sizes = np.diff([*range(0, n_prompts, DRAWN), n_prompts])
        falls = np.random.default_rng([seed, 0, 1]).multinomial(n_prompts, sizes / n_prompts, size=n_bootstrap)

        @lru_cache(maxsize=2)  # a shard may lie in two
        def block(at: int) -> np.ndarray:
            counts = np.ones((1 + n_bootstrap, sizes[at]), np.uint8)
            rng = np.random.default_rng([seed, at])
            for row, draws in zip(counts[1:], falls[:, at], strict=True):
                row[:] = np.bincount(rng.integers(sizes[at], size=draws), minlength=sizes[at])
            return counts

        def between(first: int, stop: int) -> np.ndarray:
            blocks = range(first // DRAWN, -(-stop // DRAWN))
            return np.concatenate(
                [block(at)[:, max(first - at * DRAWN, 0) : stop - at * DRAWN] for at in blocks], axis=1
            )

        return cls(n_prompts, between)

    @classmethod
    def of_run(cls, run: Mapping[Any, Any]) -> "Resamples":
        """Those of a run, from the settings that its tables carry: n_prompts, n_bootstrap, bootstrap_seed."""
        return cls.drawn(*(int(run[name]) for name in ("n_prompts", "n_bootstrap", "bootstrap_seed")))


class Totals:
    """Sums over prompts in every resample, of values that come a shard at a time in the order of their prompts.

    Args:
        resamples: How often each prompt counts.
    """

    def __init__(self, resamples: Resamples) -> None:
        self._resamples = resamples
        self._totals: dict[str, np.ndarray] = {}
        self._waiting: dict[str, list[np.ndarray]] = {}
        self._first = self._stop = 0  # prompts that wait to be weighted

    def add(self, values: Mapping[str, Shaped[np.ndarray, "*rest prompt"]]) -> None:
        """Add the values of the next prompts, by name, the same names each time."""
        for name, value in values.items():
            self._waiting.setdefault(name, []).append(np.asarray(value, np.float64))
        self._stop += next(iter(values.values())).shape[-1]
        if self._stop - self._first >= BLOCK:
            self._weight()

    def __getitem__(self, name: str) -> Float[np.ndarray, "resample *rest"]:
        """Sums of a value over all prompts, the estimate's first."""
        assert self._stop == self._resamples.n_prompts, "prompts are missing"
        self._weight()
        return np.moveaxis(self._totals[name], -1, 0)

    def __contains__(self, name: object) -> bool:
        """Whether a value was added."""
        return name in self._totals or name in self._waiting

    @property
    def n_tokens(self) -> np.ndarray:
        """How many tokens were summed over [...]."""
        return np.asarray(self[N_TOKENS][0], int)

    @property
    def n_prompts(self) -> np.ndarray:
        """How many prompts have one of them [...]."""
        return np.asarray(self[N_PROMPTS][0], int)

    def mean(self, name: str) -> Float[np.ndarray, "resample *rest"]:
        """Mean over tokens of a value; NaN where no prompt with one was drawn."""
        return ratio(self[name], self[N_TOKENS])

    def _weight(self) -> None:
        if self._first == self._stop:
            return
        weights = self._resamples.between(self._first, self._stop).T.astype(np.float64)
        for name, parts in self._waiting.items():
            block = np.concatenate(parts, axis=-1)
            total = (block.reshape(-1, len(weights)) @ weights).reshape(*block.shape[:-1], weights.shape[1])
            if name in self._totals:
                self._totals[name] += total
            else:
                self._totals[name] = total
            parts.clear()
        self._first = self._stop


def prompt_sums(
    values: Mapping[str, Shaped[np.ndarray, "*rest prompt predicted"]],
    counted: Bool[np.ndarray, "*rest prompt predicted"],
) -> dict[str, Float[np.ndarray, "*rest prompt"]]:
    """Sums of per-token values over the tokens of each prompt that count, with `N_TOKENS` and `N_PROMPTS`."""
    n_tokens = counted.sum(-1)
    sums = {name: np.where(counted, value, 0).sum(-1, dtype=np.float64) for name, value in values.items()}
    return {**sums, N_TOKENS: n_tokens.astype(np.float64), N_PROMPTS: (n_tokens > 0).astype(np.float64)}


def token_values(ablations: xr.Dataset) -> dict[str, np.ndarray]:
    """Per-token values of every quantity that is averaged, [head, prompt, pos-1].

    The clipped fraction of a part X is ``clip(X / DE, 0, 1)`` of each token (definitions.md, Selecting and condensing); it
    counts as 0 where both are exactly zero. Tokens that were not computed are NaN; no selection may hold one.
    """
    values = {name: ablations[name].values for name in held(HEAD_TOKEN, ablations)}
    values["frozen_layernorm_logit_change"] = values["logit_change"] - values["self_repair_from_layernorm"]
    effect = values["direct_effect"]
    for part in held(PARTS, values):
        with np.errstate(divide="ignore", invalid="ignore"):
            fraction = np.nan_to_num(values[part] / effect, nan=0.0)
        values[f"clipped_fraction_{part.removeprefix('self_repair_')}"] = fraction.clip(0, 1)
    return values


def means(totals: Totals) -> dict[str, Float[np.ndarray, "resample head"]]:
    """Mean over tokens of every quantity of `MEANS` and head, and the pooled repair fraction.

    Returns:
        By quantity [resample, head]; NaN where no prompt with a token of the head was drawn.
    """
    result = {name: totals.mean(name) for name in held(MEANS, totals)}
    return {**result, "pooled_repair_fraction": pooled_fraction(result)}


def pooled_fraction(of: Mapping[str, Float[np.ndarray, "*rest"]]) -> Float[np.ndarray, "*rest"]:
    """Sum of self-repair over sum of the direct effect that ablation removes, from sums or means over the same tokens."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return of["self_repair"] / (of["direct_effect"] - of["ablated_direct_effect"])


def interval(
    resampled: Float[np.ndarray, "resample *rest"], confidence: float
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Percentile bootstrap interval over the first axis; resamples that have no value are left out."""
    tail = (1 - confidence) / 2
    undefined = np.isnan(resampled).all(axis=0)
    ends = np.nanquantile(np.where(undefined, 0.0, resampled), [tail, 1 - tail], axis=0)
    low, high = ends.reshape(2, *undefined.shape)  # of no values, NumPy gives one end
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def ratio(
    numerator: Float[np.ndarray, "*rest"], denominator: Float[np.ndarray, "*other"]
) -> Float[np.ndarray, "*result"]:
    """Ratio of two sums over prompts; NaN where it is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = numerator / denominator
    return np.where(np.isfinite(found), found, np.nan)


def mean_over_heads(values: Float[np.ndarray, "resample head *rest"]) -> Float[np.ndarray, "resample *rest"]:
    """Mean over heads, leaving out those without a value; NaN where none has one."""
    finite = np.isfinite(values)
    count = finite.sum(axis=1)
    return np.where(count > 0, np.where(finite, values, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def estimated(name: str, values: Float[np.ndarray, "resample *rest"]) -> dict[str, Any]:
    """Columns of a quantity: its estimate (the first resample, of all prompts once) and its interval over the others.

    Returns:
        By name, and by name with _low and _high, [...]; a number where there is no more than the resamples.
    """
    low, high = interval(values[1:], CONFIDENCE)
    columns = {name: values[0], f"{name}_low": low, f"{name}_high": high}
    return {key: column if np.ndim(column) else float(column) for key, column in columns.items()}


def with_interval(values: Mapping[str, Float[np.ndarray, "resample *rest"]]) -> dict[str, Any]:
    """Columns of several quantities, each as `estimated` gives them."""
    return {key: column for name, of in values.items() for key, column in estimated(name, of).items()}
