"""Condensed tables: one row a head, a layer or a model, every mean with its interval."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from selfrepair.files.tables import write_table
from selfrepair.measure.thresholds import open_top_tokens
from selfrepair.quantities import MEANS, OF_SOME_MODELS, SELECTIONS, held
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.noise import Noise
from selfrepair.tables.statistics import (
    CONFIDENCE,
    Resamples,
    Totals,
    mean_over_heads,
    means,
    pooled_fraction,
    prompt_sums,
    token_values,
    with_interval,
)


def tabulate_heads(
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
    with open_top_tokens(thresholds) as top:
        n_prompts = top.n_prompts
    resamples = Resamples.drawn(n_prompts, n_bootstrap, bootstrap_seed)
    totals = {selection: Totals(resamples) for selection in SELECTIONS}
    noise = Noise()
    for shard in read_ablations(shards, thresholds, first_position):
        heads, n_pos, computed = shard.heads, shard.dataset.sizes["pos"], shard.dataset.attrs["tokens"]
        parallel = bool(shard.dataset.attrs["parallel_attention_mlp"])
        of_some = {name: _plain(shard.dataset.attrs[name]) for name in held(OF_SOME_MODELS, shard.dataset.attrs)}
        noise.add(shard.dataset.attrs)
        tokens = token_values(shard.dataset)
        for selection, counted in shard.counted.items():
            totals[selection].add(prompt_sums(tokens, counted))
    config = _model_config(model_manifest)
    attrs = {
        **labels,
        **config,
        "parallel_attention_mlp": parallel,
        **of_some,
        "tokens": computed,
        "n_prompts": n_prompts,
        "prompt_length": n_pos + 1,
        "n_tokens": n_prompts * (n_pos - first_position),
        "first_position": first_position,
        "n_bootstrap": n_bootstrap,
        "bootstrap_seed": bootstrap_seed,
        "confidence": CONFIDENCE,
    }
    layer = np.array([at for at, _ in heads])
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in tables}
    for selection in shard.counted:
        n_tokens = totals[selection].n_tokens
        by_head = means(totals[selection])
        columns = {
            "selection": selection,
            "computed_tokens": computed,
            "layer": layer,
            "head": [at for _, at in heads],
            "relative_depth": relative_depth(layer, config["n_layers"]),
            "n_tokens": n_tokens,
            "n_prompts": totals[selection].n_prompts,
        }
        rows["heads"].append(pd.DataFrame({**columns, **with_interval(by_head), **noise.columns(n_tokens)}))
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
        of_layer = noise.columns(np.array([n_tokens[layer == at].sum() for at in layers]))
        rows["layers"].append(pd.DataFrame({**columns, **with_interval(by_layer), **of_layer}))
        by_model = {name: values[:, None] for name, values in _over_heads(by_head, layer >= 0).items()}
        columns = {"selection": [selection], "computed_tokens": computed, "n_heads": len(heads)}
        rows["model"].append(
            pd.DataFrame({**columns, **with_interval(by_model), **noise.columns(n_tokens.sum(keepdims=True))})
        )
    for name, parts in rows.items():
        write_table(pd.concat(parts, ignore_index=True), tables[name], attrs)


def _plain(value: Any) -> Any:
    """A file's attribute as what a table keeps."""
    return value if isinstance(value, str) else float(value)


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
    result = {name: mean_over_heads(by_head[name][:, heads]) for name in held(MEANS, by_head)}
    return {**result, "pooled_repair_fraction": pooled_fraction(result)}
