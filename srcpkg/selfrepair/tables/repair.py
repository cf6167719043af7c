"""Who repairs whom: each head's repair by every later component, summed over its top tokens."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from selfrepair.files.hdf5 import heads_of, join_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.quantities import POSTNORMS
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.statistics import mean_over_heads, ratios, run_weights, with_interval

N_PAIRS = 6
"""Pairs that are listed, of heads and of MLPs each."""
WHOLE = {"postnorms": POSTNORMS, "layernorm": "self_repair_from_layernorm", "all": "self_repair"}
"""What repairs a head beside single components, and the quantity of its tokens that says how much."""

Head = tuple[int, int]
Repairer = tuple[Head, str, int | None, int | None]
"""An ablated head, what repairs it ("head", "mlp", "postnorms", "layernorm" or "all"), and the layer and head of that."""


def tabulate_repair(
    *,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    heads_table: Path,
    tables: Mapping[str, Path],
) -> None:
    """Write who repairs whom: by layer, for the chosen heads in full, and the strongest pairs of all heads.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads whose repair is written in full.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "by_layer", "rows" and "pairs": Parquet files to write; a CSV is written beside each. In "rows" the repairs of a
            head by heads, MLPs, post-norms and the final norm add up to the row whose ``by`` is "all", its condensed
            self-repair.
    """
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    whole = _whole_repair(shards, thresholds, run, chosen, chosen_heads)
    names = ["repair_by_head", "repair_by_mlp", "n_selected", "layer", "head_index"]
    repair = join_shards(shards, "ablations", n_prompts=run["n_prompts"], names=names)
    parallel = run["parallel_attention_mlp"]
    weights = run_weights(run)
    write_table(repair_by_layer(repair, parallel, weights), tables["by_layer"], run)
    rows = [key for head in chosen for key in _components(head, repair, parallel, {by for _, by in whole})]
    write_table(_repairs(rows, repair, whole, weights), tables["rows"], run)
    table = _repairs(strongest_pairs(repair, N_PAIRS), repair, {}, weights)
    table.insert(0, "rank", table.groupby("by").cumcount() + 1)
    write_table(table, tables["pairs"], run)


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
    heads = heads_of(repair)
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


def _whole_repair(
    shards: Sequence[Path], thresholds: Path, run: Mapping[Any, Any], heads: Sequence[Head], whose: Path
) -> dict[tuple[Head, str], Float[np.ndarray, " prompt"]]:
    """By head and name of `WHOLE`, the sum over the head's top tokens of each prompt."""
    sums: dict[str, list[np.ndarray]] = {by: [] for by in WHOLE}
    for shard in read_ablations(shards, thresholds, run, heads, whose):
        for by, quantity in WHOLE.items():
            if quantity not in shard.dataset:
                continue
            values = np.where(shard.counted["top"], shard.dataset[quantity].values, 0)
            sums[by].append(values.sum(-1, dtype=float))
    joined = {by: np.concatenate(of, axis=1) for by, of in sums.items() if of}
    return {(head, by): of[row] for by, of in joined.items() for row, head in enumerate(heads)}


def _components(head: Head, repair: xr.Dataset, parallel: bool, whole: Container[str]) -> list[Repairer]:
    """All that can repair a head, and the sum of it."""
    layer, n_layers, n_heads = head[0], repair.sizes["by_layer"], repair.sizes["by_head"]
    return [
        *((head, "head", at, of) for at in range(layer + 1, n_layers) for of in range(n_heads)),
        *((head, "mlp", at, None) for at in range(layer + parallel, n_layers)),
        *((head, by, None, None) for by in WHOLE if by in whole),
    ]


def _repairs(
    rows: Sequence[Repairer],
    repair: xr.Dataset,
    whole: Mapping[tuple[Head, str], Float[np.ndarray, " prompt"]],
    weights: Float[np.ndarray, "resample prompt"],
) -> pd.DataFrame:
    row_of = {head: row for row, head in enumerate(heads_of(repair))}
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
