"""Means over tokens with bootstrap intervals over prompts, because the tokens of a prompt are not independent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float, Int

from selfrepair.quantities import HEAD_TOKEN, MEANS, PARTS, held

CONFIDENCE = 0.95
"""Level of every interval."""


@dataclass(frozen=True)
class PromptSums:
    """Sums over the selected tokens of each prompt: all that means and their bootstrap need.

    Attributes:
        totals: By quantity of `MEANS` [head, prompt].
        counts: Number of selected tokens [head, prompt].
    """

    totals: dict[str, Float[np.ndarray, "head prompt"]]
    counts: Float[np.ndarray, "head prompt"]

    @classmethod
    def of(cls, tokens: dict[str, np.ndarray], selected: Bool[np.ndarray, "head prompt predicted"]) -> "PromptSums":
        """Sum per-token values [head, prompt, pos-1] over the selected tokens of each prompt."""
        return cls(
            totals={
                name: np.where(selected, tokens[name], 0).sum(-1, dtype=np.float64) for name in held(MEANS, tokens)
            },
            counts=selected.sum(-1).astype(np.float64),
        )

    @classmethod
    def join(cls, parts: "list[PromptSums]") -> "PromptSums":
        """Sums of successive prompts as one."""
        return cls(
            totals={name: np.concatenate([part.totals[name] for part in parts], axis=1) for name in parts[0].totals},
            counts=np.concatenate([part.counts for part in parts], axis=1),
        )


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


def bootstrap_weights(n_prompts: int, n_bootstrap: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """How often each prompt is drawn in each resample of ``n_prompts`` prompts with replacement."""
    draws = np.random.default_rng(seed).integers(n_prompts, size=(n_bootstrap, n_prompts))
    weights = np.zeros((n_bootstrap, n_prompts))
    np.add.at(weights, (np.arange(n_bootstrap)[:, None], draws), 1)
    return weights


def means(
    sums: PromptSums, weights: Float[np.ndarray, "resample prompt"]
) -> dict[str, Float[np.ndarray, "resample head"]]:
    """Mean over tokens of every quantity and head, and the pooled repair fraction, with prompts counted ``weights`` times.

    Args:
        sums: Sums by head and prompt.
        weights: [resample, prompt]; a row of ones gives the estimate itself.

    Returns:
        By quantity [resample, head]; NaN where no prompt with a selected token of the head was drawn.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = weights @ sums.counts.T
        result = {name: weights @ total.T / counts for name, total in sums.totals.items()}
        removed = result["direct_effect"] - result["ablated_direct_effect"]
        result["pooled_repair_fraction"] = result["self_repair"] / removed
    return result


def interval(
    resampled: Float[np.ndarray, "resample *rest"], confidence: float
) -> tuple[Float[np.ndarray, "*rest"], Float[np.ndarray, "*rest"]]:
    """Percentile bootstrap interval over the first axis; resamples that have no value are left out."""
    tail = (1 - confidence) / 2
    undefined = np.isnan(resampled).all(axis=0)
    ends = np.nanquantile(np.where(undefined, 0.0, resampled), [tail, 1 - tail], axis=0)
    low, high = ends.reshape(2, *undefined.shape)  # of no values, NumPy gives one end
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def ratios(
    numerator: Float[np.ndarray, "*rest prompt"],
    denominator: Float[np.ndarray, "*rest prompt"],
    weights: Float[np.ndarray, "resample prompt"],
) -> Float[np.ndarray, "resample *rest"]:
    """Ratio of two sums over prompts, each prompt counted ``weights`` times; a mean where the denominator counts tokens.

    Returns:
        [resample, ...]; NaN where the denominator is zero.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.moveaxis(numerator @ weights.T, -1, 0) / np.moveaxis(denominator @ weights.T, -1, 0)
    return np.where(np.isfinite(ratio), ratio, np.nan)


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


def estimate_weights(n_prompts: int, n_bootstrap: int, seed: int) -> Float[np.ndarray, "resample prompt"]:
    """Every prompt once, then `bootstrap_weights`."""
    return np.concatenate([np.ones((1, n_prompts)), bootstrap_weights(n_prompts, n_bootstrap, seed)])


def run_weights(run: Mapping[Any, Any]) -> Float[np.ndarray, "resample prompt"]:
    """`estimate_weights` of a run, from the settings that its tables carry: n_prompts, n_bootstrap, bootstrap_seed."""
    return estimate_weights(*(int(run[name]) for name in ("n_prompts", "n_bootstrap", "bootstrap_seed")))


def means_of_tokens(
    prompt: Int[np.ndarray, " token"], values: Mapping[str, np.ndarray], run: Mapping[Any, Any]
) -> dict[str, float]:
    """Means over listed tokens, each with its interval over prompts.

    Args:
        prompt: Prompt of each token, counted over the whole data set.
        values: By name, a number (or a truth value, for a share) a token.
        run: Settings of a table, as for `run_weights`.

    Returns:
        By name, and by name with _low and _high.
    """
    weights = run_weights(run)
    n_prompts = weights.shape[1]
    counts = np.bincount(prompt, minlength=n_prompts).astype(float)
    sums = {name: np.bincount(prompt, np.asarray(value, float), minlength=n_prompts) for name, value in values.items()}
    return with_interval({name: ratios(total, counts, weights) for name, total in sums.items()})
