"""Tables of what the final norm's scale does: how it changes, what that repairs, and which readings of the repair there are."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float

from selfrepair.files.hdf5 import heads_of, open_hdf5, open_shards, rows_of, same_heads
from selfrepair.files.tables import read_table, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.measure.thresholds import read_selected
from selfrepair.quantities import PARTS
from selfrepair.tables.statistics import PromptSums, estimate_weights, estimated, ratios, token_values

RATIO_EDGES = np.linspace(0.5, 1.5, 401)
"""Edges of the bins of clean / ablated scale; what lies outside is counted in two bins of its own."""

SAME_SCALE = 8
"""Rounding errors of the number type, relative, within which two scales are one: where nothing changed, as at a shared BOS."""

PART, CLIPPED = "self_repair_from_layernorm", "clipped_fraction_from_layernorm"
ALL_LAYERS, SECOND_TO_LAST = "all", "second-to-last"
READINGS = ("clipped per token", "ratio per head, mean", "ratio per head, median", "pooled")
"""What "the share of direct effect that LayerNorm repairs" can mean (docs/definitions.md, Shares of the direct effect)."""
THIS_RUN = "this run"


@dataclass(frozen=True)
class Ablations:
    """Ablations of some heads on a shard.

    Attributes:
        dataset: Values of these heads [head, prompt, pos].
        counted: By selection, the tokens that count [head, prompt, pos]; "all" only where all tokens were computed.
        first: The shard's first prompt.
    """

    dataset: xr.Dataset
    counted: dict[str, Bool[np.ndarray, "head prompt predicted"]]
    first: int


def tabulate_scale_ratios(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    summary: Path,
    histogram: Path,
) -> None:
    """Write how the final scale changes under one kind of ablation: clean / ablated, by head and pooled over all heads.

    Above 1 the scale has shrunk, and what is left of the residual counts for more.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads (`selfrepair.measure.chosen_heads`).
        summary: Parquet file, a CSV beside it: share above 1 and mean ratio of each chosen head, and of all heads together
            where all were ablated; a row a head and selection.
        histogram: Likewise, tokens by ratio: a row a head, selection and bin.
    """
    attrs = _attrs(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    with open_hdf5(shards[0], "ablations", remake="ablate_heads") as dataset:
        heads = heads_of(dataset)
        groups = [[row] for row in rows_of(chosen, chosen_heads, dataset, shards[0])]
    if len(heads) == attrs["n_layers"] * attrs["n_heads"]:
        groups.append(list(range(len(heads))))
    sums: dict[str, list[np.ndarray]] = {}
    bins: dict[str, np.ndarray] = {}
    edges = np.concatenate([[0], RATIO_EDGES, [np.inf]])
    for shard in _read(shards, thresholds, heads, attrs, shards[0]):
        clean, ablated = shard.dataset["clean_scale"].values, shard.dataset["ablated_scale"].values
        ratio = clean[None] / ablated
        same = np.abs(ratio - 1) <= SAME_SCALE * np.finfo(ratio.dtype).eps
        for selection, counted in shard.counted.items():
            by_head = np.stack(
                [
                    np.where(counted, value, 0).sum(-1, dtype=np.float64)
                    for value in (np.ones_like(ratio), (ratio > 1) & ~same, same, ratio)
                ]
            )
            sums.setdefault(selection, []).append(np.stack([by_head[:, rows].sum(1) for rows in groups], axis=1))
            found = [np.histogram(ratio[rows][counted[rows]], edges)[0] for rows in groups]
            bins[selection] = bins.get(selection, 0) + np.array(found)
    weights = _weights(attrs)
    summaries, histograms = [], []
    for selection, parts in sums.items():
        count, above, same_count, total = np.concatenate(parts, axis=-1)
        labels = _group_columns(chosen, len(groups), selection)
        summaries.append(
            pd.DataFrame(
                {
                    **labels,
                    "n_tokens": count.sum(1).astype(int),
                    "n_prompts": (count > 0).sum(1),
                    **estimated("share_above_1", ratios(above, count, weights), attrs["confidence"]),
                    "share_unchanged": same_count.sum(1) / count.sum(1),
                    **estimated("mean_ratio", ratios(total, count, weights), attrs["confidence"]),
                }
            )
        )
        row, bin_ = np.indices(bins[selection].shape).reshape(2, -1)
        histograms.append(
            pd.DataFrame(
                {
                    **{name: pd.Series(values).take(row).to_numpy() for name, values in labels.items()},
                    "ratio_low": edges[bin_],
                    "ratio_high": edges[bin_ + 1],
                    "n_tokens": bins[selection].ravel(),
                    "share": (bins[selection] / bins[selection].sum(1, keepdims=True)).ravel(),
                }
            )
        )
    write_table(pd.concat(summaries, ignore_index=True), summary, attrs)
    write_table(pd.concat(histograms, ignore_index=True), histogram, attrs)


def tabulate_ablation_type(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    tokens: Path,
    means: Path,
) -> None:
    """Write what one kind of ablation does to the first of the chosen heads: its tokens, and means with intervals.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads, the strongest first.
        tokens: Parquet file, a CSV beside it: direct_effect and logit_change in logits, residual_norm_ratio = s' / s; a row a
            token.
        means: Likewise, the means of these and of what repairs; a row a selection.
    """
    attrs = _attrs(heads_table)
    strongest = read_chosen_heads(chosen_heads)[0]
    names = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair", *PARTS, "residual_norm_ratio")
    parts = []
    sums: dict[str, list[np.ndarray]] = {}
    for shard in _read(shards, thresholds, [strongest], attrs, chosen_heads):
        dataset = shard.dataset.isel(head=0)
        dataset["residual_norm_ratio"] = dataset["ablated_scale"] / dataset["clean_scale"]
        values = {name: dataset[name].values for name in names}
        computed = next(reversed(shard.counted.values()))[0]
        prompt, pos = np.nonzero(computed)
        columns = {name: values[name][prompt, pos] for name in ("direct_effect", "logit_change", "residual_norm_ratio")}
        selected = shard.counted["top"][0][prompt, pos]
        parts.append(pd.DataFrame({"prompt": prompt + shard.first, "pos": pos, **columns, "selected": selected}))
        for selection, counted in shard.counted.items():
            found = [np.where(counted[0], value, 0).sum(-1, dtype=np.float64) for value in values.values()]
            sums.setdefault(selection, []).append(np.stack([counted[0].sum(-1), *found]))
    weights = _weights(attrs)
    rows = []
    for selection, found in sums.items():
        count, *totals = np.concatenate(found, axis=-1)
        columns = {}
        for name, total in zip(names, totals, strict=True):
            columns |= estimated(name, ratios(total[None], count[None], weights), attrs["confidence"])
        counts = {"n_tokens": [int(count.sum())], "n_prompts": int((count > 0).sum())}
        rows.append(pd.DataFrame({"selection": [selection], **counts, **columns}))
    labels = {"ablation": attrs["ablation"], "layer": strongest[0], "head": strongest[1]}
    for path, table in ((tokens, pd.concat(parts, ignore_index=True)), (means, pd.concat(rows, ignore_index=True))):
        write_table(
            pd.DataFrame({**{name: [value] * len(table) for name, value in labels.items()}}).join(table), path, attrs
        )


def tabulate_layernorm_claim(
    *, heads_table: Path, shards: Sequence[Path], thresholds: Path, published: Path, out: Path
) -> None:
    """Write the share of direct effect that the final norm repairs, over top tokens, in each reading of that share.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        published: The paper's per-head results, which have no intervals.
        out: Parquet file, a CSV beside it: a row a source, set of layers and reading.
    """
    attrs = _attrs(heads_table)
    with open_hdf5(shards[0], "ablations", remake="ablate_heads") as dataset:
        heads = heads_of(dataset)
    sums = [
        PromptSums.of(token_values(shard.dataset), shard.counted["top"])
        for shard in _read(shards, thresholds, heads, attrs, shards[0])
    ]
    joined = PromptSums.join(sums)
    weights = _weights(attrs)
    layer = np.array([at for at, _ in heads])
    of_head = {name: weights @ total.T for name, total in joined.totals.items()}
    counts = weights @ joined.counts.T
    rows: list[tuple[Any, ...]] = []
    for layers, at, chosen in _layer_sets(layer, attrs["n_layers"]):
        found = shares_repaired(
            of_head[PART][:, chosen],
            of_head["direct_effect"][:, chosen],
            of_head[CLIPPED][:, chosen],
            counts[:, chosen],
        )
        for reading, values in found.items():
            share = map(float, estimated("fraction", values, attrs["confidence"]).values())
            rows.append((THIS_RUN, layers, at, reading, *share, int(chosen.sum()), int(joined.counts[chosen].sum())))
    for model, of_model in read_table(published).groupby("model", sort=False):
        for layers, at, chosen in _layer_sets(of_model["layer"].to_numpy(), int(of_model["layer"].max()) + 1):
            effect, clipped = (of_model[name].to_numpy()[chosen] for name in ("direct_effect", CLIPPED))
            # Every head has as many top tokens, so that means are sums up to a factor.
            found = shares_repaired(of_model[PART].to_numpy()[chosen], effect, clipped, np.ones(len(effect)))
            for reading, value in found.items():
                rows.append((model, layers, at, reading, float(value), np.nan, np.nan, len(effect), None))
    columns = [
        "source",
        "layers",
        "layer",
        "reading",
        "fraction",
        "fraction_low",
        "fraction_high",
        "n_heads",
        "n_tokens",
    ]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "n_tokens": "Int64"})
    write_table(table, out, attrs)


def shares_repaired(
    layernorm: Float[np.ndarray, "*resample head"],
    effect: Float[np.ndarray, "*resample head"],
    clipped: Float[np.ndarray, "*resample head"],
    counts: Float[np.ndarray, "*resample head"],
) -> dict[str, Any]:
    """Every reading of "the share of direct effect that LayerNorm repairs", over some heads.

    Args:
        layernorm: Sums over tokens of self_repair_from_layernorm [..., head], logits.
        effect: Likewise of direct_effect.
        clipped: Likewise of clip(LayerNorm part / direct effect, 0, 1).
        counts: Tokens summed over.

    Returns:
        By `READINGS` [...]. A head without a token is left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        per_head, per_token = (np.ma.masked_invalid(values) for values in (layernorm / effect, clipped / counts))
        pooled = layernorm.sum(-1) / effect.sum(-1)
    over_heads = (per_token.mean(-1), per_head.mean(-1), np.ma.median(per_head, axis=-1))
    return dict(zip(READINGS, (*(np.ma.filled(values, np.nan) for values in over_heads), pooled), strict=True))


def compare_frozen_layernorm(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    frozen: Sequence[Path],
    out: Path,
) -> None:
    """Hold the closed form of the LayerNorm part to runs with the scale really frozen, and write both.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads (`selfrepair.measure.chosen_heads`).
        frozen: Files of `selfrepair.measure.frozen_layernorm.freeze_layernorm`, in the same order.
        out: Parquet file, a CSV beside it: means over top tokens, a row a head. really_frozen_logit_change is measured,
            frozen_layernorm_logit_change the closed form; largest_difference is between the two on any token, and
            layernorm_part_left the largest LayerNorm part that is left once the scale is frozen (logits).

    Raises:
        ValueError: The two differ by more than rounding.
    """
    attrs = _attrs(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    measured = ("direct_effect", "logit_change", "self_repair_from_layernorm")
    names = (*measured, "frozen_layernorm_logit_change", "really_frozen_logit_change")
    sums, differences, allowed, left = [], [], [], []
    ablations = _read(shards, thresholds, chosen, attrs, chosen_heads)
    runs = open_shards(frozen, "frozen_layernorm", remake="freeze_layernorm", n_prompts=attrs["n_prompts"])
    for shard, path, (dataset, _) in zip(ablations, frozen, runs, strict=True):
        same_heads(path, dataset, chosen, chosen_heads)
        values = {
            name: shard.dataset[name].values.astype(np.float64) for name in (*measured, *PARTS, "ablated_direct_effect")
        }
        really, rounding = dataset["frozen_layernorm_logit_change"].values, dataset["rounding"].values
        values["really_frozen_logit_change"] = really
        values["frozen_layernorm_logit_change"] = values["logit_change"] - values["self_repair_from_layernorm"]
        counted = shard.counted["top"]
        if not np.array_equal(counted, np.isfinite(really)):
            raise ValueError(
                f"{path} has other tokens than the heads' top tokens: remake it with `snakemake --forcerun {path}`"
            )
        difference = np.abs(really - values["frozen_layernorm_logit_change"])
        by_others = values["self_repair_from_heads"] + values["self_repair_from_mlps"]
        rest = really - (values["ablated_direct_effect"] - values["direct_effect"]) - by_others
        beyond = np.where(counted, difference - rounding, -np.inf)
        if not (beyond <= 0).all():
            row, prompt, pos = np.unravel_index(np.argmax(np.nan_to_num(beyond, nan=np.inf)), beyond.shape)
            layer, head = chosen[row]
            raise ValueError(
                f"{path}: with the final scale frozen, the logit change of head (layer {layer}, head {head}) is "
                f"{difference[row, prompt, pos]:.3g} logits from what the closed form says, where rounding explains "
                f"{rounding[row, prompt, pos]:.1g}: the ablations or the frozen runs are wrong, or of different models: remake "
                "both"
            )
        allowed.append(np.where(counted, rounding, 0).max((1, 2)))
        differences.append(np.where(counted, difference, 0).max((1, 2)))
        left.append(np.where(counted, np.abs(rest), 0).max((1, 2)))
        found = [np.where(counted, values[name], 0).sum(-1) for name in names]
        sums.append(np.stack([counted.sum(-1), *found]))
    count, *totals = np.concatenate(sums, axis=-1)
    columns: dict[str, Any] = {
        **_group_columns(chosen, len(chosen), "top"),
        "n_tokens": count.sum(1).astype(int),
        "n_prompts": (count > 0).sum(1),
    }
    weights = _weights(attrs)
    for name, total in zip(names, totals, strict=True):
        columns |= estimated(name, ratios(total, count, weights), attrs["confidence"])
    columns |= {
        "largest_difference": np.max(differences, axis=0),
        "allowed_difference": np.max(allowed, axis=0),
        "layernorm_part_left": np.max(left, axis=0),
    }
    write_table(pd.DataFrame(columns), out, attrs)


def _attrs(heads_table: Path) -> dict[Any, Any]:
    return dict(read_table(heads_table, columns=["layer"]).attrs)


def _read(
    shards: Sequence[Path], thresholds: Path, heads: list[tuple[int, int]], attrs: Mapping[Any, Any], whose: Path
) -> Iterator[Ablations]:
    """The shards' ablations of some heads that ``whose`` names, one after the other."""
    for dataset, first in open_shards(shards, "ablations", remake="ablate_heads", n_prompts=attrs["n_prompts"]):
        rows = rows_of(heads, whose, dataset, shards[0])
        part = dataset.drop_vars(["repair_by_head", "repair_by_mlp"]).isel(head=rows).load()
        counted = {"top": read_selected(thresholds, heads, slice(first, first + part.sizes["prompt"]))}
        if part.attrs["tokens"] == "all":
            everything = np.zeros_like(counted["top"])
            everything[..., attrs["first_position"] :] = True
            counted["all"] = everything
        yield Ablations(part, counted, first)


def _weights(attrs: Mapping[Any, Any]) -> Float[np.ndarray, "resample prompt"]:
    return estimate_weights(attrs["n_prompts"], attrs["n_bootstrap"], attrs["bootstrap_seed"])


def _group_columns(chosen: Sequence[tuple[int, int]], n_groups: int, selection: str) -> dict[str, Any]:
    """Columns that name the chosen heads by rank, and all heads together (rank 0, no layer) where they follow."""
    pooled = [None] * (n_groups - len(chosen))
    return {
        "selection": [selection] * n_groups,
        "rank": [*range(1, len(chosen) + 1), *(0 for _ in pooled)],
        "layer": pd.array([*(layer for layer, _ in chosen), *pooled], dtype="Int64"),
        "head": pd.array([*(head for _, head in chosen), *pooled], dtype="Int64"),
    }


def _layer_sets(layer: np.ndarray, n_layers: int) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Name, number and heads of each set of layers that the claim is read over; sets without a head are left out."""
    yield ALL_LAYERS, None, np.ones(len(layer), bool)
    second_to_last = layer == n_layers - 2
    if second_to_last.any():
        yield SECOND_TO_LAST, n_layers - 2, second_to_last
