"""Tables of how components answer one another: self-reinforcement, the next layer, who repairs whom, ablated layers.

Every mean, slope and correlation has its 95% bootstrap interval over prompts, from sums that were kept by prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from selfrepair.files.hdf5 import heads_of, open_shards, rows_of
from selfrepair.files.tables import read_table, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.measure.thresholds import read_selected
from selfrepair.quantities import HEAD_TOKEN
from selfrepair.tables.heads import CONFIDENCE, relative_depth
from selfrepair.tables.statistics import estimate_weights, estimated, mean_over_heads, ratios

Head = tuple[int, int]

# --- self-reinforcement ----------------------------------------------------------------------------------------------

CONTROLS = ("random", "other")


def condense_reinforcement(
    *, shards: Sequence[Path], heads_table: Path, out: Path, n_bootstrap: int, bootstrap_seed: int
) -> None:
    """Write how every head answers to its own output in its input, a row a (head, scale).

    Args:
        shards: Reinforcement files in the order of their prompts.
        heads_table: Table "heads" of the run; its settings are taken over.
        out: Parquet file; a CSV is written beside it. ``label`` is "reinforcing" where the direct effect rises, and more than
            with either control, each by an interval above zero; "repressing" where it falls likewise; "neither" otherwise.
        n_bootstrap: Resamples of prompts.
        bootstrap_seed: Of the resampling.
    """
    run = read_table(heads_table).attrs
    sums = _joined(shards, "reinforcement", "reinforce_heads", run.get("n_prompts"))
    attrs = {**run, "ablation": ""}
    n_layers, n_heads, n_prompts = sums["n_selected"].shape
    weights = estimate_weights(n_prompts, n_bootstrap, bootstrap_seed)
    counts = sums["n_selected"].values.reshape(-1, n_prompts).astype(float)

    def mean(values: np.ndarray) -> np.ndarray:
        """Mean over top tokens [resample, layer * head] of sums [layer, head, prompt]."""
        return ratios(values.reshape(-1, n_prompts), counts, weights)

    layer, head = (at.ravel() for at in np.indices((n_layers, n_heads)))
    clean = mean(sums["direct_effect"].values)
    parts = []
    for at, scale in enumerate(sums["scale"].values):
        with_own, with_random, with_other = (
            mean(sums["reinforced_direct_effect"].values[..., added, at]) for added in range(1 + len(CONTROLS))
        )
        values = {
            "direct_effect": clean,
            "direct_effect_with_own": with_own,
            "direct_effect_with_random": with_random,
            "direct_effect_with_other": with_other,
            "change": with_own - clean,
            "change_with_random": with_random - clean,
            "change_with_other": with_other - clean,
            "change_beyond_random": with_own - with_random,
            "change_beyond_other": with_own - with_other,
            "relative_length": scale * mean(sums["relative_length"].values),
        }
        columns = {
            "layer": layer,
            "head": head,
            "relative_depth": relative_depth(layer, n_layers),
            "scale": scale,
            "n_tokens": sums["n_selected"].values.sum(-1).ravel(),
            "n_prompts": (sums["n_selected"].values > 0).sum(-1).ravel(),
        }
        parts.append(pd.DataFrame({**columns, **with_interval(values)}))
    table = pd.concat(parts, ignore_index=True)
    table["label"] = _labels(table)
    write_table(table.sort_values(["layer", "head", "scale"], ignore_index=True), out, attrs)


def _labels(table: pd.DataFrame) -> np.ndarray:
    names = ["change", *(f"change_beyond_{control}" for control in CONTROLS)]
    # A model of one head a layer has no other head to compare with.
    names = [name for name in names if table[name].notna().any()]
    rises = (table[[f"{name}_low" for name in names]] > 0).all(axis=1)
    falls = (table[[f"{name}_high" for name in names]] < 0).all(axis=1)
    return np.select([rises, falls], ["reinforcing", "repressing"], "neither")


# --- who repairs whom ------------------------------------------------------------------------------------------------


N_PAIRS = 6
"""Pairs that are listed, of heads and of MLPs each."""
WHOLE = {"layernorm": "self_repair_from_layernorm", "all": "self_repair"}
"""What repairs a head beside single components, and the quantity of its tokens that says how much."""

Repairer = tuple[Head, str, int | None, int | None]
"""An ablated head, what repairs it ("head", "mlp", "layernorm" or "all"), and the layer and head of that."""


def tabulate_repair(
    *,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    heads_table: Path,
    tables: Mapping[str, Path],
    n_bootstrap: int,
    bootstrap_seed: int,
) -> None:
    """Write who repairs whom: by layer, for the chosen heads in full, and the strongest pairs of all heads.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads whose repair is written in full.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "by_layer", "rows" and "pairs": Parquet files to write; a CSV is written beside each. In "rows" the repairs of a
            head by heads, MLPs and the final norm add up to the row whose ``by`` is "all", its condensed self-repair.
        n_bootstrap: Resamples of prompts.
        bootstrap_seed: Of the resampling.
    """
    attrs = read_table(heads_table).attrs
    repair, chosen = _repair(shards, attrs.get("n_prompts")), read_chosen_heads(chosen_heads)
    rows_of(chosen, chosen_heads, repair, shards[0])
    parallel = attrs["parallel_attention_mlp"]
    weights = estimate_weights(repair.sizes["prompt"], n_bootstrap, bootstrap_seed)
    write_table(repair_by_layer(repair, parallel, weights), tables["by_layer"], attrs)
    rows = [key for head in chosen for key in _components(head, repair, parallel)]
    table = _repairs(rows, repair, _whole_repair(shards, thresholds, chosen), weights)
    write_table(table, tables["rows"], attrs)
    table = _repairs(strongest_pairs(repair, N_PAIRS), repair, {}, weights)
    table.insert(0, "rank", table.groupby("by").cumcount() + 1)
    write_table(table, tables["pairs"], attrs)


def repair_by_layer(repair: xr.Dataset, parallel: bool, weights: Float[np.ndarray, "resample prompt"]) -> pd.DataFrame:
    """Mean over the heads of a layer of their repair by the heads, and by the MLP, of each layer that can change.

    Args:
        repair: Sums by prompt of ablations files: repair_by_head, repair_by_mlp, n_selected, layer.
        parallel: Attention and MLP of a layer read the same residual, so that a head's own layer cannot change.
        weights: From `estimate_weights`.

    Returns:
        Columns layer, by ("heads" or "mlp"), by_layer, n_heads and repair (logits, mean over the layer's ablated heads) with
        its interval.
    """
    layers, counts = repair["layer"].values, repair["n_selected"].values.astype(float)
    by = {"heads": repair["repair_by_head"].values.sum(-1), "mlp": repair["repair_by_mlp"].values}
    keys, values = [], []
    for name, sums in by.items():
        for layer in np.unique(layers):
            here = layers == layer
            later = np.arange(layer + (name == "heads" or parallel), sums.shape[2])
            numerator = np.moveaxis(sums[here][:, :, later], 1, 2).astype(float)
            denominator = np.broadcast_to(counts[here][:, None], numerator.shape)
            values.append(mean_over_heads(ratios(numerator, denominator, weights)))
            keys += [(int(layer), name, at, int(here.sum())) for at in later.tolist()]
    table = pd.DataFrame(keys, columns=["layer", "by", "by_layer", "n_heads"])
    return table.assign(**with_interval({"repair": np.concatenate(values, axis=1)}))


def strongest_pairs(repair: xr.Dataset, count: int) -> list[Repairer]:
    """The pairs of largest repair or breakage: ``count`` where a head changes, then ``count`` where an MLP does.

    Args:
        repair: As for `repair_by_layer`, with head_index.
        count: How many of each, or as many as there are with any repair at all.
    """
    heads = list(_rows_of(repair))
    counts = repair["n_selected"].values.sum(1)

    def largest(name: str) -> Iterator[list[int]]:
        sums = repair[name].values.sum(1, dtype=float)
        means = sums / counts.reshape(-1, *(1 for _ in sums.shape[1:]))
        order = np.argsort(-np.abs(means), axis=None, kind="stable")[:count]
        for place in order[means.flat[order] != 0]:
            yield [int(at) for at in np.unravel_index(place, means.shape)]

    by_head: list[Repairer] = [(heads[row], "head", at, of) for row, at, of in largest("repair_by_head")]
    by_mlp: list[Repairer] = [(heads[row], "mlp", at, None) for row, at in largest("repair_by_mlp")]
    return by_head + by_mlp


def _repair(shards: Sequence[Path], n_prompts: int | None) -> xr.Dataset:
    """Each head's repair by every component, summed over its top tokens of each prompt, of all shards."""
    names = ["repair_by_head", "repair_by_mlp", "n_selected", "layer", "head_index"]
    return _joined(shards, "ablations", "ablate_heads", n_prompts, names)


def _whole_repair(
    shards: Sequence[Path], thresholds: Path, heads: Sequence[Head]
) -> dict[tuple[Head, str], Float[np.ndarray, " prompt"]]:
    """By head and name of `WHOLE`, the sum over the head's top tokens of each prompt."""
    sums: dict[str, list[np.ndarray]] = {by: [] for by in WHOLE}
    for dataset, first in open_shards(shards, "ablations", remake="ablate_heads"):
        row_of = _rows_of(dataset)
        part = dataset[list(WHOLE.values())].isel(head=[row_of[head] for head in heads]).load()
        after = first + part.sizes["prompt"]
        selected = read_selected(thresholds, heads, slice(first, after))
        for by, quantity in WHOLE.items():
            sums[by].append(np.where(selected, part[quantity].values, 0).sum(-1, dtype=float))
    joined = {by: np.concatenate(of, axis=1) for by, of in sums.items()}
    return {(head, by): of[row] for by, of in joined.items() for row, head in enumerate(heads)}


def _components(head: Head, repair: xr.Dataset, parallel: bool) -> list[Repairer]:
    """All that can repair a head, and the sum of it."""
    layer, n_layers, n_heads = head[0], repair.sizes["by_layer"], repair.sizes["by_head"]
    return [
        *((head, "head", at, of) for at in range(layer + 1, n_layers) for of in range(n_heads)),
        *((head, "mlp", at, None) for at in range(layer + parallel, n_layers)),
        *((head, by, None, None) for by in WHOLE),
    ]


def _repairs(
    rows: Sequence[Repairer],
    repair: xr.Dataset,
    whole: Mapping[tuple[Head, str], Float[np.ndarray, " prompt"]],
    weights: Float[np.ndarray, "resample prompt"],
) -> pd.DataFrame:
    row_of = _rows_of(repair)
    n_selected, by_head, by_mlp = (repair[name].values for name in ("n_selected", "repair_by_head", "repair_by_mlp"))
    counts = n_selected[np.array([row_of[head] for head, *_ in rows], int)].astype(float)
    sums = np.empty(counts.shape)
    for number, (head, by, layer, of) in enumerate(rows):
        row = row_of[head]
        if by == "head":
            sums[number] = by_head[row, :, layer, of]
        elif by == "mlp":
            sums[number] = by_mlp[row, :, layer]
        else:
            sums[number] = whole[head, by]
    columns = {
        "layer": [head[0] for head, *_ in rows],
        "head": [head[1] for head, *_ in rows],
        "by": [by for _, by, _, _ in rows],
        "by_layer": pd.array([layer for _, _, layer, _ in rows], dtype="Int64"),
        "by_head": pd.array([of for _, _, _, of in rows], dtype="Int64"),
        "n_tokens": counts.sum(1).astype(int),
        "n_prompts": (counts > 0).sum(1),
    }
    return pd.DataFrame({**columns, **with_interval({"repair": ratios(sums, counts, weights)})})


# --- the next layer --------------------------------------------------------------------------------------------------

NO_NEXT_LAYER = "in the last layer: no layer follows"


def correlate_next_layer(
    *,
    ablations: Sequence[Path],
    moved: Sequence[Path],
    heads_table: Path,
    tables: Mapping[str, Path],
    n_bootstrap: int,
    bootstrap_seed: int,
) -> None:
    """Correlate, over the heads of the next layer, what a head's ablation and what a moved residual stream change.

    Args:
        ablations: Ablations files of one kind in the order of their prompts.
        moved: Moved residual files, likewise.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "correlations" (a row a chosen head; ``note`` says where there is no next layer) and "heads" (a row a chosen
            head and a head of its next layer): Parquet files to write; a CSV is written beside each.
        n_bootstrap: Resamples of prompts; heads stay as they are.
        bootstrap_seed: Of the resampling.
    """
    attrs = read_table(heads_table).attrs
    ablated = _repair(ablations, attrs.get("n_prompts"))
    shifted = _joined(moved, "moved_residual", "move_residual", attrs.get("n_prompts"))
    rows_of(heads_of(shifted), moved[0], ablated, ablations[0])
    n_prompts, n_layers, n_heads = shifted.sizes["prompt"], ablated.sizes["by_layer"], ablated.sizes["by_head"]
    weights = estimate_weights(n_prompts, n_bootstrap, bootstrap_seed)
    row_of = _rows_of(ablated)
    correlations, points = [], []
    for row, (layer, head) in enumerate(_rows_of(shifted)):
        at, after = row_of[layer, head], layer + 1
        counts = ablated["n_selected"].values[at]
        columns = {
            "layer": [layer],
            "head": [head],
            "next_layer": pd.array([after if after < n_layers else None], dtype="Int64"),
            "n_heads": [n_heads if after < n_layers else 0],
            "n_tokens": [int(counts.sum())],
            "n_prompts": [int((counts > 0).sum())],
            "note": ["" if after < n_layers else NO_NEXT_LAYER],
        }
        correlation = np.full((len(weights), 1), np.nan)
        if after < n_layers:
            counts = np.broadcast_to(counts.astype(float), (n_heads, n_prompts))
            values = {
                "change_when_ablated": ratios(ablated["repair_by_head"].values[at, :, after].T, counts, weights),
                "change_when_moved": ratios(shifted["moved_change"].values[row].T, counts, weights),
            }
            correlation = _correlation(*values.values())[:, None]
            keys = {"layer": layer, "head": head, "next_layer": after, "next_head": np.arange(n_heads)}
            points.append(pd.DataFrame({**keys, **with_interval(values)}))
        correlations.append(pd.DataFrame({**columns, **with_interval({"correlation": correlation})}))
    write_table(pd.concat(correlations, ignore_index=True), tables["correlations"], attrs)
    names = ["layer", "head", "next_layer", "next_head"]
    for name in ("change_when_ablated", "change_when_moved"):
        names += [name, f"{name}_low", f"{name}_high"]
    table = pd.concat(points, ignore_index=True) if points else pd.DataFrame(columns=names, dtype=float)
    write_table(table[names], tables["heads"], attrs)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation over the last axis; NaN where one of the two does not vary."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


# --- ablated layers --------------------------------------------------------------------------------------------------

COMPENSATIONS = {
    "compensation": ("self_repair_from_heads", "self_repair_from_mlps"),
    "layernorm": ("self_repair_from_layernorm",),
    "self_repair": ("self_repair",),
}
"""What is regressed on the removed direct effect: later components, the final norm, and both."""


def condense_layer_ablation(
    *, shards: Sequence[Path], heads_table: Path, out: Path, first_position: int, n_bootstrap: int, bootstrap_seed: int
) -> None:
    """Write what follows the ablation of a layer's attention or MLP, a row a component and layer, over all tokens.

    Args:
        shards: Layer ablations files in the order of their prompts.
        heads_table: Table "heads" of the run; its settings are taken over.
        out: Parquet file; a CSV is written beside it. Means of each quantity; ``removed`` = direct effect - ablated direct
            effect; ``compensation`` = changes of later heads and MLPs; ``slope_X`` and ``r_squared_X`` of the regression over
            tokens of X on ``removed``, X being compensation, layernorm or self_repair.
        first_position: Positions before this one count nowhere.
        n_bootstrap: Resamples of prompts.
        bootstrap_seed: Of the resampling.
    """
    attrs = {**read_table(heads_table).attrs, "ablation": "resample"}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in HEAD_TOKEN}
    for dataset, _ in open_shards(shards, "layer_ablations", remake="ablate_layers", n_prompts=attrs.get("n_prompts")):
        for name, found in parts.items():
            found.append(dataset[name].values[..., first_position:].astype(float))
    tokens = {name: np.concatenate(found, axis=2) for name, found in parts.items()}
    tokens["removed"] = tokens["direct_effect"] - tokens["ablated_direct_effect"]
    tokens["compensation"] = tokens["self_repair_from_heads"] + tokens["self_repair_from_mlps"]
    n_components, n_layers, n_prompts, n_pos = tokens["removed"].shape
    weights = estimate_weights(n_prompts, n_bootstrap, bootstrap_seed)

    def mean(values: np.ndarray) -> np.ndarray:
        """Mean over tokens [resample, component * layer]."""
        sums = values.sum(-1).reshape(-1, n_prompts)
        return ratios(sums, np.full_like(sums, n_pos), weights)

    values = {name: mean(of) for name, of in tokens.items()}
    for name, of in COMPENSATIONS.items():
        y = np.sum([tokens[part] for part in of], axis=0)
        values[f"slope_{name}"], values[f"r_squared_{name}"] = _regression(tokens["removed"], y, mean)
    component, layer = (at.ravel() for at in np.indices((n_components, n_layers)))
    columns = {
        "component": np.array(["attention", "mlp"])[component],
        "layer": layer,
        "relative_depth": relative_depth(layer, n_layers),
        "n_tokens": n_prompts * n_pos,
        "n_prompts": n_prompts,
    }
    write_table(pd.DataFrame({**columns, **with_interval(values)}), out, attrs)


def _regression(
    x: np.ndarray, y: np.ndarray, mean: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and R^2 of y on x over tokens; NaN where one of the two does not vary."""
    # Shifting changes neither, and keeps small variances of long values exact.
    x, y = (values - values.mean((2, 3), keepdims=True) for values in (x, y))
    mean_x, mean_y = mean(x), mean(y)
    covariance = mean(x * y) - mean_x * mean_y
    variance_x, variance_y = mean(x**2) - mean_x**2, mean(y**2) - mean_y**2
    varies = (variance_x > 0) & (variance_y > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(varies, covariance / variance_x, np.nan)
        return slope, slope * covariance / variance_y


# --- shared ----------------------------------------------------------------------------------------------------------


def with_interval(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of quantities and of the ends of their intervals, from [resample, row]; the first resample is the estimate."""
    return {key: column for name, of in values.items() for key, column in estimated(name, of, CONFIDENCE).items()}


def _joined(
    shards: Sequence[Path], kind: str, remake: str, n_prompts: int | None, names: Sequence[str] | None = None
) -> xr.Dataset:
    """These variables (None: all) of files of successive prompts as one; those without prompts are the same in all."""
    parts = [
        dataset.load() if names is None else dataset[list(names)].load()
        for dataset, _ in open_shards(shards, kind, remake=remake, n_prompts=n_prompts)
    ]
    return xr.concat(parts, "prompt", data_vars="minimal", coords="minimal", compat="override", join="override")


def _rows_of(dataset: xr.Dataset) -> dict[Head, int]:
    """Row of each (layer, head) pair of a file with a dimension of heads."""
    return {pair: row for row, pair in enumerate(heads_of(dataset))}
