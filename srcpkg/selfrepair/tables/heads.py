"""Condensed tables: one row a head, a layer or a model, every mean with its interval; and the tokens of a few heads."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import heads_of, open_shards, rows_of
from selfrepair.files.tables import read_table, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.measure.thresholds import read_top_tokens
from selfrepair.quantities import MEANS, SELECTIONS
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.tables.statistics import PromptSums, estimate_weights, estimated, mean_over_heads, means, token_values

CONFIDENCE = 0.95

TOKEN_COLUMNS = ("direct_effect", "logit_change", "self_repair")


def condense_ablations(
    *,
    model_manifest: Path,
    shards: Sequence[Path],
    thresholds: Path,
    tables: dict[str, Path],
    labels: dict[str, Any],
    first_position: int,
    n_bootstrap: int,
    bootstrap_seed: int,
) -> None:
    """Condense the ablations of one kind into tables (definitions.md, Selecting and condensing).

    Args:
        model_manifest: Of the model snapshot: names the weights, and its config the layers.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        tables: "heads", "layers" and "model": Parquet files to write; a CSV is written beside each.
        labels: Settings that the tables carry in their attrs. Rows of selection "all" are left out where the ablations hold top
            tokens alone; column computed_tokens says which they hold.
        first_position: Positions before this one count nowhere.
        n_bootstrap: Resamples of prompts.
        bootstrap_seed: Of the resampling.
    """
    sums: dict[str, list[PromptSums]] = {selection: [] for selection in SELECTIONS}
    heads: list[tuple[int, int]] = []
    n_prompts = 0
    for dataset, first in open_shards(shards, "ablations", remake="ablate_heads"):
        heads, computed = heads_of(dataset), dataset.attrs["tokens"]
        parallel = bool(dataset.attrs["parallel_attention_mlp"])
        n_here, n_pos = dataset.sizes["prompt"], dataset.sizes["pos"]
        tokens = token_values(dataset)
        n_prompts = first + n_here
        if computed == "all":
            counted = np.zeros((len(heads), n_here, n_pos), bool)
            counted[..., first_position:] = True
            sums["all"].append(PromptSums.of(tokens, counted))
        sums["top"].append(PromptSums.of(tokens, read_top_tokens(thresholds, heads, slice(first, n_prompts))))
    config = _model_config(model_manifest)
    attrs = {
        **labels,
        **config,
        "parallel_attention_mlp": parallel,
        "tokens": computed,
        "n_prompts": n_prompts,
        "prompt_length": n_pos + 1,
        "n_tokens": n_prompts * (n_pos - first_position),
        "first_position": first_position,
        "n_bootstrap": n_bootstrap,
        "bootstrap_seed": bootstrap_seed,
        "confidence": CONFIDENCE,
    }
    weights = estimate_weights(n_prompts, n_bootstrap, bootstrap_seed)
    layer = np.array([at for at, _ in heads])
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in tables}
    for selection in SELECTIONS:
        if not sums[selection]:
            continue
        joined = PromptSums.join(sums[selection])
        by_head = means(joined, weights)
        columns = {
            "selection": selection,
            "computed_tokens": computed,
            "layer": layer,
            "head": [at for _, at in heads],
            "relative_depth": relative_depth(layer, config["n_layers"]),
            "n_tokens": joined.counts.sum(1).astype(int),
            "n_prompts": (joined.counts > 0).sum(1),
        }
        rows["heads"].append(pd.DataFrame({**columns, **_with_interval(by_head)}))
        layers = np.unique(layer)
        each_layer = [_over_heads(by_head, layer == at) for at in layers]
        by_layer = {name: np.stack([of[name] for of in each_layer], axis=1) for name in by_head}
        columns = {
            "selection": selection,
            "computed_tokens": computed,
            "layer": layers,
            "relative_depth": relative_depth(layers, config["n_layers"]),
            "n_heads": [int((layer == at).sum()) for at in layers],
        }
        rows["layers"].append(pd.DataFrame({**columns, **_with_interval(by_layer)}))
        by_model = {name: values[:, None] for name, values in _over_heads(by_head, layer >= 0).items()}
        columns = {"selection": [selection], "computed_tokens": computed, "n_heads": len(heads)}
        rows["model"].append(pd.DataFrame({**columns, **_with_interval(by_model)}))
    for name, parts in rows.items():
        write_table(pd.concat(parts, ignore_index=True), tables[name], attrs)


def relative_depth(layer: np.ndarray, n_layers: int) -> np.ndarray:
    """0 for the first layer to 1 for the last; 0 in a model of one layer."""
    return layer / max(n_layers - 1, 1)


def tabulate_tokens(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    out: Path,
    first_position: int,
) -> None:
    """Write every token of the chosen heads, a row a (head, token).

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads (`selfrepair.measure.chosen_heads`).
        out: Parquet file; a CSV is written beside it.
        first_position: Positions before this one count nowhere.

    Raises:
        ValueError: Ablations that hold top tokens alone.
    """
    table = read_table(heads_table)
    if table.attrs["tokens"] != "all":
        raise ValueError("these ablations hold top tokens alone: set ablations.*.tokens to all to list every token")
    chosen = read_chosen_heads(chosen_heads)
    parts = []
    n_prompts = table.attrs["n_prompts"]
    for dataset, first in open_shards(shards, "ablations", remake="ablate_heads", n_prompts=n_prompts):
        part = dataset.isel(head=rows_of(chosen, chosen_heads, dataset, shards[0]))
        values = {name: part[name].values for name in TOKEN_COLUMNS}
        shape = values["direct_effect"].shape
        selected = read_top_tokens(thresholds, chosen, slice(first, first + shape[1]))
        rank, prompt, pos = np.indices(shape)
        columns = {
            "rank": rank + 1,
            "layer": np.array([at for at, _ in chosen])[rank],
            "head": np.array([head for _, head in chosen])[rank],
            "prompt": prompt + first,
            "pos": pos,
            **values,
            "selected": selected,
        }
        flat = pd.DataFrame({name: column[..., first_position:].reshape(-1) for name, column in columns.items()})
        parts.append(flat)
    tokens = pd.concat(parts, ignore_index=True).sort_values(["rank", "prompt", "pos"], ignore_index=True)
    write_table(tokens, out, table.attrs)


def _model_config(manifest: Path) -> dict[str, Any]:
    from transformers import AutoConfig

    weights = verify_manifest(manifest, kind="model", weights=False)["weights"]
    config = AutoConfig.from_pretrained(manifest.parent, local_files_only=True)
    return {
        "weights": weights,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
    }


def _over_heads(by_head: dict[str, np.ndarray], heads: np.ndarray) -> dict[str, np.ndarray]:
    """Every quantity over some heads: the mean, and for the pooled fraction the ratio of the heads' sums."""
    result = {name: mean_over_heads(by_head[name][:, heads]) for name in MEANS}
    with np.errstate(divide="ignore", invalid="ignore"):
        removed = result["direct_effect"] - result["ablated_direct_effect"]
        return {**result, "pooled_repair_fraction": result["self_repair"] / removed}


def _with_interval(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of estimates (the first row) and their intervals (over the other rows)."""
    columns: dict[str, np.ndarray] = {}
    for name in _ordered(values):
        columns |= estimated(name, values[name], CONFIDENCE)
    return columns


def _ordered(values: dict[str, np.ndarray]) -> Iterable[str]:
    return (*MEANS, *(name for name in values if name not in MEANS))
