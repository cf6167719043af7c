"""How the final norm's scale changes when a head is ablated: shares, means and a histogram of clean / ablated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import heads_of, open_hdf5, rows_of
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.tables.columns import ranked_heads
from selfrepair.tables.counted_tokens import read_ablations, same_scale
from selfrepair.tables.statistics import N_PROMPTS, N_TOKENS, Resamples, Totals, estimated, prompt_sums

RATIO_EDGES = np.linspace(0.5, 1.5, 401)
"""Edges of the bins of clean / ablated scale; what lies outside is counted in two bins of its own."""


def tabulate_layernorm_scale(
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
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    with open_hdf5(shards[0], "ablations") as dataset:
        n_ablated = len(heads_of(dataset))
        groups = [[row] for row in rows_of(chosen, chosen_heads, dataset, shards[0])]
    if every := n_ablated == run["n_layers"] * run["n_heads"]:
        groups.append(list(range(n_ablated)))
    heads = ranked_heads(chosen, pooled=every)
    resamples = Resamples.of_run(run)
    totals: dict[str, Totals] = {}
    bins: dict[str, np.ndarray] = {}
    edges = np.concatenate([[0], RATIO_EDGES, [np.inf]])
    for shard in read_ablations(shards, thresholds, run["first_position"]):
        clean, ablated = shard.dataset["clean_scale"].values, shard.dataset["ablated_scale"].values
        ratio = clean[None] / ablated
        same = same_scale(clean[None], ablated)
        for selection, counted in shard.counted.items():
            values = {"above": (ratio > 1) & ~same, "same": same, "ratio": ratio}
            sums = prompt_sums(values, counted)
            of_groups = {name: np.stack([of[rows].sum(0) for rows in groups]) for name, of in sums.items()}
            of_groups[N_PROMPTS] = of_groups[N_TOKENS] > 0
            totals.setdefault(selection, Totals(resamples)).add(of_groups)
            found = [np.histogram(ratio[rows][counted[rows]], edges)[0] for rows in groups]
            bins[selection] = bins.get(selection, 0) + np.array(found)
    summaries, histograms = [], []
    for selection, of in totals.items():
        labels = {"selection": [selection] * len(groups), **heads}
        columns = {
            "n_tokens": of.n_tokens,
            "n_prompts": of.n_prompts,
            **estimated("share_above_1", of.mean("above")),
            "share_unchanged": of.mean("same")[0],
            **estimated("mean_ratio", of.mean("ratio")),
        }
        summaries.append(pd.DataFrame({**labels, **columns}))
        row, bin_ = np.indices(bins[selection].shape).reshape(2, -1)
        columns = {
            **{name: pd.Series(values).to_numpy()[row] for name, values in labels.items()},
            "ratio_low": edges[bin_],
            "ratio_high": edges[bin_ + 1],
            "n_tokens": bins[selection].ravel(),
            "share": (bins[selection] / bins[selection].sum(1, keepdims=True)).ravel(),
        }
        histograms.append(pd.DataFrame(columns))
    write_table(pd.concat(summaries, ignore_index=True), summary, run)
    write_table(pd.concat(histograms, ignore_index=True), histogram, run)
