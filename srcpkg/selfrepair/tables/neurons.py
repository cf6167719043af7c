"""Tables of what the neurons of one MLP repair: how much each, on how few, by erasing less or not, always the same or not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from selfrepair.files.hdf5 import open_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.tables.statistics import estimated, ratios, run_weights

SHARES_OF_EFFECT = (0.5, 0.1, 0.05, 0.025, 0.01)
"""Shares of a head's direct effect that a neuron may repair; the paper's."""

AMONG_TOP = (1, 5, 10)
"""Numbers of leading neurons among which a neuron may be."""

N_LISTED = 100
"""Neurons that table neuron_consistency lists for each head and number of leading neurons."""

QUADRANTS = {
    "anti_erasure": "Anti-Erasure: negative, then less negative",
    "negative_to_positive": "negative, then positive",
    "more_positive": "positive, then more so",
    "no_repair": "no neuron repairs",
}
"""What the neuron that repairs most does: its direct effect clean, then with the head ablated."""


def tabulate_neurons(*, shards: Sequence[Path], heads_table: Path, tables: dict[str, Path]) -> None:
    """Condense the neurons of all shards into tables (docs/definitions.md, Neurons).

    Args:
        shards: Neurons files in the order of their prompts.
        heads_table: Table "heads" of the same ablations, for its settings.
        tables: "neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants" and "neuron_consistency":
            Parquet files to write; a CSV is written beside each. Where the shards hold no neurons, each is a row a head, with
            the reason in column ``note``.
    """
    run = read_settings(heads_table)
    dataset = _joined(shards, run["n_prompts"])
    if "note" in dataset.attrs:
        heads = {
            "rank": range(1, dataset.sizes["head_row"] + 1),
            "layer": dataset["layer"],
            "head": dataset["head_index"],
        }
        table = pd.DataFrame({**heads, "note": str(dataset.attrs["note"])})
        for path in tables.values():
            write_table(table, path, {**run, "neuron_layer": int(dataset.attrs["neuron_layer"])})
        return
    weights = run_weights(run)
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in tables}
    for row, (layer, head) in enumerate(zip(dataset["layer"].values, dataset["head_index"].values, strict=True)):
        tokens = dataset.isel(token=dataset["head"].values == row)
        labels = {
            "rank": row + 1,
            "layer": int(layer),
            "head": int(head),
            "n_tokens": tokens.sizes["token"],
            "n_prompts": len(np.unique(tokens["prompt"])),
        }
        rows["neuron_share"].append(_share(tokens, weights).assign(**labels))
        rows["neuron_concentration"].append(_concentration(tokens, weights).assign(**labels))
        each = _leaders(tokens)
        rows["erasure_neurons"].append(each.assign(**{name: labels[name] for name in ("rank", "layer", "head")}))
        rows["erasure_quadrants"].append(_quadrants(each, weights).assign(**labels))
        rows["neuron_consistency"].append(_consistency(tokens, weights).assign(**labels))
    own = {name: int(dataset.attrs[name]) for name in ("neuron_layer", "n_neurons", "top_percent")}
    for name, parts in rows.items():
        table = pd.concat(parts, ignore_index=True)
        first = [column for column in ("rank", "layer", "head", "n_tokens", "n_prompts") if column in table]
        write_table(table[[*first, *table.columns.drop(first)]], tables[name], {**run, **own})


def _joined(shards: Sequence[Path], n_prompts: int) -> xr.Dataset:
    """All shards as one, prompts counted from the first."""
    parts = []
    for dataset, first in open_shards(shards, "neurons", n_prompts=n_prompts):
        part = dataset.load()
        if "note" in part.attrs:  # no neurons, in this shard as in all others
            return part
        parts.append(part.assign(prompt=part["prompt"] + first))
    return xr.concat(
        parts, dim="token", data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
    )


def _estimates(name: str, values: np.ndarray, tokens: xr.Dataset | pd.DataFrame, weights: np.ndarray) -> dict:
    """A column of means over tokens with its interval, a row for each column of ``values`` [token, row]; NaN are left out."""
    seen = ~np.isnan(values)
    sums, counts = np.zeros((2, weights.shape[1], values.shape[1]))
    np.add.at(sums, np.asarray(tokens["prompt"]), np.where(seen, values, 0))
    np.add.at(counts, np.asarray(tokens["prompt"]), seen)
    return estimated(name, ratios(sums.T, counts.T, weights))


def _share(tokens: xr.Dataset, weights: np.ndarray) -> pd.DataFrame:
    """How often the Nth best neuron repairs more than some share of the head's direct effect."""
    repair = _repair(tokens)
    effect = np.abs(tokens["head_direct_effect"].values)[:, None]
    frames = []
    for share in SHARES_OF_EFFECT:
        columns = {"share_of_effect": share, "nth": np.arange(1, repair.shape[1] + 1)}
        frames.append(pd.DataFrame({**columns, **_estimates("token_share", repair > share * effect, tokens, weights)}))
    return pd.concat(frames, ignore_index=True)


def _concentration(tokens: xr.Dataset, weights: np.ndarray) -> pd.DataFrame:
    """Cumulative shares over neurons, and the sums they are shares of."""
    curves = ("share_of_change", "share_of_repair", "share_of_direct_effect")
    counts = tokens["neurons"].values
    columns = {"neurons": counts, "neuron_fraction": counts / int(tokens.attrs["n_neurons"])}
    for name in curves:
        columns |= _estimates(name, tokens[name].values, tokens, weights)
    change = tokens["mlp_ablated_direct_effect"].values - tokens["mlp_direct_effect"].values
    for name, values in (("total_absolute_change", tokens["total_absolute_change"].values), ("mlp_repair", change)):
        columns |= {key: value[0] for key, value in _estimates(name, values[:, None], tokens, weights).items()}
    return pd.DataFrame(columns)


def _leaders(tokens: xr.Dataset) -> pd.DataFrame:
    """The neuron that repairs most on each token, and what it does."""
    clean, ablated = (tokens[name].values[:, 0] for name in ("direct_effect", "ablated_direct_effect"))
    quadrant = np.select(
        [ablated <= clean, (clean < 0) & (ablated <= 0), clean < 0],
        ["no_repair", "anti_erasure", "negative_to_positive"],
        "more_positive",
    )
    return pd.DataFrame(
        {
            "prompt": tokens["prompt"].values,
            "pos": tokens["pos"].values,
            "neuron": tokens["neuron"].values[:, 0],
            "direct_effect": clean,
            "ablated_direct_effect": ablated,
            "quadrant": quadrant,
            **{name: tokens[name].values for name in ("mlp_direct_effect", "mlp_ablated_direct_effect")},
            "head_direct_effect": tokens["head_direct_effect"].values,
        }
    )


def _quadrants(leaders: pd.DataFrame, weights: np.ndarray) -> pd.DataFrame:
    """Shares of tokens by what the leading neuron does."""
    names = list(QUADRANTS)
    within = leaders["quadrant"].to_numpy()[:, None] == np.array(names)
    return pd.DataFrame({"quadrant": names, **_estimates("token_share", within, leaders, weights)})


def _consistency(tokens: xr.Dataset, weights: np.ndarray) -> pd.DataFrame:
    """How often each neuron is among those that repair most, the most frequent first."""
    frames = []
    best = tokens["neuron"].values
    for top in (top for top in AMONG_TOP if top <= best.shape[1]):
        neurons, counts = np.unique(best[:, :top], return_counts=True)
        listed = neurons[np.argsort(-counts, kind="stable")][:N_LISTED]
        among = (best[:, :top, None] == listed).any(1)
        columns = {
            "top": top,
            "n_neurons": len(neurons),
            "neuron_rank": np.arange(1, len(listed) + 1),
            "neuron": listed,
        }
        frames.append(pd.DataFrame({**columns, **_estimates("token_share", among, tokens, weights)}))
    return pd.concat(frames, ignore_index=True)


def _repair(tokens: xr.Dataset) -> np.ndarray:
    """Repair of the best neurons [token, best], logits."""
    return tokens["ablated_direct_effect"].values - tokens["direct_effect"].values
