"""Control: how far self-repair on top tokens owes to how they are chosen.

Tokens picked by a noisy quantity are those where the noise happens to be large, and what is measured with the same noise is
then too large as well (regression to the mean). Here each head's self-repair is measured on as many tokens picked in other
ways, one of which shares no donor with the measurement.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from selfrepair.files.hdf5 import heads_of, open_hdf5, open_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.thresholds import read_top_tokens, top_tokens
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import mean_over_heads, ratios, run_weights, with_interval

CHOICES = ("top", "absolute", "removed", "other_donor", "random")
"""Tokens picked by direct effect; by its size; by the effect that ablation removes, with the donor that is measured or with
another; at random."""

EFFECTS = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair")
COMPARED = ("self_repair", "pooled_repair_fraction", "repair_slope")
"""What is also given as a difference from the top tokens, resample by resample."""


def pick_tokens(
    tokens: Mapping[str, Float[np.ndarray, "head token"]],
    top: Bool[np.ndarray, "head token"],
    counted: Bool[np.ndarray, " token"],
    rng: np.random.Generator,
) -> dict[str, Bool[np.ndarray, "head token"]]:
    """For each head as many tokens as its top tokens, picked in each of the ways of `CHOICES`.

    Args:
        tokens: direct_effect, ablated_direct_effect, and other_donor: the ablated direct effect with another donor; logits.
        top: The heads' top tokens, the same number for each.
        counted: Tokens that may be picked.
        rng: Draws the random choice.

    Returns:
        By choice, the picked tokens.
    """
    effect = tokens["direct_effect"]
    by = {
        "absolute": np.abs(effect),
        "removed": effect - tokens["ablated_direct_effect"],
        "other_donor": effect - tokens["other_donor"],
        "random": rng.random(effect.shape),
    }
    picked = {"top": top}
    for choice, values in by.items():
        picked[choice] = np.zeros_like(top)
        best = top_tokens(np.where(counted, values, -np.inf), int(top[0].sum()))
        np.put_along_axis(picked[choice], best, True, axis=1)
    return picked


def repair_of_choice(
    tokens: Mapping[str, Float[np.ndarray, "head prompt predicted"]],
    picked: Bool[np.ndarray, "head prompt predicted"],
    weights: Float[np.ndarray, "resample prompt"],
) -> dict[str, Float[np.ndarray, "resample head"]]:
    """Means over picked tokens of the effects, of the removed effect squared, and of it times self-repair.

    Args:
        tokens: The quantities of `EFFECTS`, logits.
        picked: The tokens.
        weights: How often each prompt counts.

    Returns:
        By name [resample, head]; NaN where no prompt with a picked token was drawn.
    """
    removed = tokens["direct_effect"] - tokens["ablated_direct_effect"]
    values = {
        **{name: tokens[name] for name in EFFECTS},
        "removed_squared": removed**2,
        "removed_times_repair": removed * tokens["self_repair"],
    }
    counts = picked.sum(-1).astype(float)
    return {
        name: ratios(np.where(picked, value, 0).sum(-1, dtype=np.float64), counts, weights)
        for name, value in values.items()
    }


def over_heads(by_head: Mapping[str, Float[np.ndarray, "resample head"]]) -> dict[str, Float[np.ndarray, " resample"]]:
    """Means over heads of the effects; of their sums, the pooled repair fraction and the repair slope.

    The slope is that of the line through the origin that fits self-repair to the removed effect, over tokens: unlike the pooled
    fraction it is defined where effects of both signs cancel.
    """
    means = {name: mean_over_heads(values) for name, values in by_head.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            **{name: means[name] for name in EFFECTS},
            "pooled_repair_fraction": means["self_repair"] / (means["direct_effect"] - means["ablated_direct_effect"]),
            "repair_slope": means["removed_times_repair"] / means["removed_squared"],
        }


def tabulate_selection_control(
    *,
    heads_table: Path,
    ablations: Sequence[Path],
    other_donor: Sequence[Path],
    thresholds: Path,
    layers_out: Path,
    model_out: Path,
) -> None:
    """Write self-repair on tokens picked in several ways, by layer and over the model.

    Args:
        heads_table: Table "heads" of the same ablations.
        ablations: Ablations files of all tokens, in the order of their prompts.
        other_donor: Files of `selfrepair.measure.other_donor.measure_other_donor`, in the same order.
        thresholds: Top tokens of each head.
        layers_out: Parquet file, a row a choice and layer; a CSV is written beside it.
        model_out: Parquet file, a row a choice.
    """
    run = read_settings(heads_table)
    n_prompts = run["n_prompts"]
    weights = run_weights(run)
    rng = np.random.default_rng(run["bootstrap_seed"])
    by_head: dict[str, list[dict[str, np.ndarray]]] = {choice: [] for choice in CHOICES}
    layers = []
    with open_hdf5(ablations[0], "ablations") as dataset:
        ablated = heads_of(dataset)
    for layer in sorted({layer for layer, _ in ablated}):
        heads = [pair for pair in ablated if pair[0] == layer]
        rows = [ablated.index(pair) for pair in heads]
        # A layer at a time, so that memory does not grow with the model.
        tokens = _read_layer(ablations, other_donor, heads, rows, n_prompts)
        shape = tokens["direct_effect"].shape
        counted = np.broadcast_to(np.arange(shape[2]) >= run["first_position"], shape[1:]).ravel()
        top = read_top_tokens(thresholds, heads, slice(0, n_prompts))
        flat = {name: value.reshape(len(heads), -1) for name, value in tokens.items()}
        picked = pick_tokens(flat, top.reshape(len(heads), -1), counted, rng)
        for choice in CHOICES:
            by_head[choice].append(repair_of_choice(tokens, picked[choice].reshape(shape), weights))
        layers.append(layer)
    depth = relative_depth(np.array(layers), run["n_layers"])
    table: list[dict[str, object]] = []
    for at, layer in enumerate(layers):
        found = {choice: over_heads(by_head[choice][at]) for choice in CHOICES}
        n_heads = by_head["top"][at]["self_repair"].shape[1]
        common = {"layer": layer, "relative_depth": depth[at], "n_heads": n_heads}
        table += [{**common, **row} for row in _rows(found)]
    write_table(pd.DataFrame(table), layers_out, run)
    whole = {
        choice: over_heads({name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]})
        for choice, parts in by_head.items()
    }
    table = [{"n_heads": len(ablated), **row} for row in _rows(whole)]
    write_table(pd.DataFrame(table), model_out, run)


def _read_layer(
    ablations: Sequence[Path],
    other_donor: Sequence[Path],
    heads: Sequence[tuple[int, int]],
    rows: Sequence[int],
    n_prompts: int,
) -> dict[str, np.ndarray]:
    """Ablated heads of one layer on all prompts, by quantity [head, prompt, pos-1]; ``rows`` is where ablations hold them."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*EFFECTS, "other_donor")}
    layer = heads[0][0]
    for dataset, _ in open_shards(ablations, "ablations", n_prompts=n_prompts):
        for name in EFFECTS:
            parts[name].append(dataset[name][list(rows)].values)
    for dataset, _ in open_shards(other_donor, "other_donor", n_prompts=n_prompts):
        effects = dataset["ablated_direct_effect"][layer].values
        parts["other_donor"].append(effects[[head for _, head in heads]])
    return {name: np.concatenate(part, axis=1) for name, part in parts.items()}


def _rows(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for choice, values in found.items():
        differences = {f"{name}_minus_top": values[name] - found["top"][name] for name in COMPARED}
        rows.append({"choice": choice, **with_interval(values), **with_interval(differences)})
    return rows
