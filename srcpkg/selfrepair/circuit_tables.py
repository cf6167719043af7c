"""Tables of how components answer one another: self-reinforcement, the next layer, who repairs whom, ablated layers.

Every mean, slope and correlation has its 95% bootstrap interval over prompts, from sums that were kept by prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from selfrepair.chosen_heads import read_chosen_heads
from selfrepair.quantities import HEAD_TOKEN
from selfrepair.statistics import estimate_weights, estimated, ratios
from selfrepair.storage import open_hdf5
from selfrepair.strongest_pairs import (
    N_PAIRS,
    Pair,
    mean_repair,
    read_strongest_pairs,
    strongest_pairs,
    write_strongest_pairs,
)
from selfrepair.tables import CONFIDENCE, relative_depth, write_table

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
    sums = _joined(shards, "reinforcement", "reinforce_heads")
    attrs = {**pd.read_parquet(heads_table).attrs, "ablation": ""}
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


def tabulate_repair(*, shards: Sequence[Path], heads_table: Path, by_layer: Path, pairs: Path) -> None:
    """Condense who repairs whom over all ablated heads: by layer, and which pairs are strongest.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        by_layer: Parquet file to write, a row an ablated layer and a layer of later heads or a later MLP; a CSV is written
            beside it. Sums of all heads are kept by shard, so that it has no intervals.
        pairs: JSON file to write: the strongest pairs, of heads and of MLPs (`selfrepair.strongest_pairs`).
    """
    repair, attrs = mean_repair(shards), pd.read_parquet(heads_table).attrs
    write_table(repair_by_layer(repair, parallel=attrs["parallel_attention_mlp"]), by_layer, attrs)
    write_strongest_pairs(strongest_pairs(repair, N_PAIRS), pairs)


def repair_by_layer(repair: xr.Dataset, parallel: bool) -> pd.DataFrame:
    """Mean over the heads of a layer of their repair by the heads, and by the MLP, of each layer that can change.

    Args:
        repair: From `selfrepair.strongest_pairs.mean_repair`.
        parallel: Attention and MLP of a layer read the same residual, so that a head's own layer cannot change.

    Returns:
        Columns layer, by ("heads" or "mlp"), by_layer, n_heads and repair (logits, mean over the layer's ablated heads).
    """
    layers = repair["layer"].values
    by = {"heads": repair["repair_by_head"].values.sum(-1), "mlp": repair["repair_by_mlp"].values}
    rows = [
        {
            "layer": int(layer),
            "by": name,
            "by_layer": later,
            "n_heads": int((layers == layer).sum()),
            "repair": float(values[layers == layer, later].mean()),
        }
        for name, values in by.items()
        for layer in np.unique(layers)
        for later in range(int(layer) + (name == "heads" or parallel), values.shape[1])
    ]
    return pd.DataFrame(rows, columns=["layer", "by", "by_layer", "n_heads", "repair"])


def condense_traced_repair(
    *,
    shards: Sequence[Path],
    chosen_heads: Path,
    pairs: Path,
    heads_table: Path,
    tables: Mapping[str, Path],
    n_bootstrap: int,
    bootstrap_seed: int,
) -> None:
    """Write who repairs the chosen heads, and the strongest pairs of all heads, with intervals.

    Args:
        shards: Traced repair files in the order of their prompts.
        chosen_heads: The heads whose repair is written in full.
        pairs: The pairs to list.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "rows" and "pairs": Parquet files to write; a CSV is written beside each. In "rows" the repairs of a head by
            heads, MLPs and the final norm add up to the row whose ``by`` is "all", its condensed self-repair.
        n_bootstrap: Resamples of prompts.
        bootstrap_seed: Of the resampling.
    """
    traced = _joined(shards, "traced_repair", "trace_repair")
    attrs = pd.read_parquet(heads_table).attrs
    chosen, listed = read_chosen_heads(chosen_heads), read_strongest_pairs(pairs)
    rows = [key for head in chosen for key in _components(head, traced, attrs["parallel_attention_mlp"])]
    table = _repairs(traced, rows, n_bootstrap, bootstrap_seed)
    write_table(table, tables["rows"], attrs)
    keys = [((pair.layer, pair.head), *_component(pair)) for pair in listed]
    table = _repairs(traced, keys, n_bootstrap, bootstrap_seed)
    table.insert(0, "rank", table.groupby("by").cumcount() + 1)
    write_table(table, tables["pairs"], attrs)


Repairer = tuple[Head, str, int | None, int | None]
"""An ablated head, what repairs it ("head", "mlp", "layernorm" or "all"), and the layer and head of that."""


def _component(pair: Pair) -> tuple[str, int, int | None]:
    return "mlp" if pair.by_head is None else "head", pair.by_layer, pair.by_head


def _components(head: Head, traced: xr.Dataset, parallel: bool) -> list[Repairer]:
    """All that can repair a head, and the sum of it."""
    layer, n_layers, n_heads = head[0], traced.sizes["by_layer"], traced.sizes["by_head"]
    return [
        *((head, "head", at, of) for at in range(layer + 1, n_layers) for of in range(n_heads)),
        *((head, "mlp", at, None) for at in range(layer + parallel, n_layers)),
        (head, "layernorm", None, None),
        (head, "all", None, None),
    ]


def _repairs(traced: xr.Dataset, rows: Sequence[Repairer], n_bootstrap: int, seed: int) -> pd.DataFrame:
    row_of = _rows_of(traced)
    counts = np.array([traced["n_selected"].values[row_of[head]] for head, *_ in rows], float)
    sums = np.empty(counts.shape)
    for number, (head, by, layer, of) in enumerate(rows):
        row = row_of[head]
        if by == "head":
            sums[number] = traced["repair_by_head"].values[row, :, layer, of]
        elif by == "mlp":
            sums[number] = traced["repair_by_mlp"].values[row, :, layer]
        elif by == "layernorm":
            sums[number] = traced["repair_by_layernorm"].values[row]
        elif by == "all":
            sums[number] = traced["self_repair"].values[row]
        else:
            raise ValueError(f"by is {by!r}; wanted head, mlp, layernorm or all")
    values = {"repair": ratios(sums, counts, estimate_weights(counts.shape[1], n_bootstrap, seed))}
    columns = {
        "layer": [head[0] for head, *_ in rows],
        "head": [head[1] for head, *_ in rows],
        "by": [by for _, by, _, _ in rows],
        "by_layer": pd.array([layer for _, _, layer, _ in rows], dtype="Int64"),
        "by_head": pd.array([of for _, _, _, of in rows], dtype="Int64"),
        "n_tokens": counts.sum(1).astype(int),
        "n_prompts": (counts > 0).sum(1),
    }
    return pd.DataFrame({**columns, **with_interval(values)})


# --- the next layer --------------------------------------------------------------------------------------------------

NO_NEXT_LAYER = "in the last layer: no layer follows"


def correlate_next_layer(
    *,
    traced: Sequence[Path],
    moved: Sequence[Path],
    heads_table: Path,
    tables: Mapping[str, Path],
    n_bootstrap: int,
    bootstrap_seed: int,
) -> None:
    """Correlate, over the heads of the next layer, what a head's ablation and what a moved residual stream change.

    Args:
        traced: Traced repair files in the order of their prompts.
        moved: Moved residual files, likewise.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "correlations" (a row a chosen head; ``note`` says where there is no next layer) and "heads" (a row a chosen
            head and a head of its next layer): Parquet files to write; a CSV is written beside each.
        n_bootstrap: Resamples of prompts; heads stay as they are.
        bootstrap_seed: Of the resampling.
    """
    ablated = _joined(traced, "traced_repair", "trace_repair")
    shifted = _joined(moved, "moved_residual", "move_residual")
    attrs = pd.read_parquet(heads_table).attrs
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
    parts: dict[str, list[np.ndarray]] = {name: [] for name in HEAD_TOKEN}
    for shard in shards:
        with open_hdf5(shard, "layer_ablations", remake="ablate_layers") as dataset:
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
    attrs = {**pd.read_parquet(heads_table).attrs, "ablation": "resample"}
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


def _joined(shards: Sequence[Path], kind: str, remake: str) -> xr.Dataset:
    """Files of successive prompts as one; variables without prompts are the same in all."""
    parts = []
    for shard in shards:
        with open_hdf5(shard, kind, remake=remake) as dataset:
            parts.append(dataset.load())
    return xr.concat(parts, "prompt", data_vars="minimal", coords="minimal", compat="override", join="override")


def _rows_of(dataset: xr.Dataset) -> dict[Head, int]:
    """Row of each (layer, head) pair of a file with a dimension of heads."""
    pairs = zip(dataset["layer"].values.tolist(), dataset["head_index"].values.tolist(), strict=True)
    return {pair: row for row, pair in enumerate(pairs)}
