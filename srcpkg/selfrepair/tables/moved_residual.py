"""Whether the next layer's heads answer to the ablation of a head as they do to a residual stream without its layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import heads_of, open_hdf5, open_shards, rows_of, same_heads
from selfrepair.files.tables import read_settings, write_table
from selfrepair.tables.statistics import N_PROMPTS, N_TOKENS, Resamples, Totals, ratio, with_interval

NO_NEXT_LAYER = "in the last layer: no layer follows"
ONE_NEXT_HEAD = "one head in the next layer: nothing to correlate"


def tabulate_moved_residual(
    *,
    ablations: Sequence[Path],
    moved: Sequence[Path],
    heads_table: Path,
    tables: Mapping[str, Path],
) -> None:
    """Correlate, over the heads of the next layer, what a head's ablation and what a moved residual stream change.

    Intervals are over prompts; heads stay as they are.

    Args:
        ablations: Ablations files of one kind in the order of their prompts.
        moved: Moved residual files, likewise.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "correlations" (a row a chosen head; ``note`` says where there is no next layer, or a single head in it) and
            "heads" (a row a chosen head and a head of its next layer): Parquet files to write; a CSV is written beside each.
    """
    run = read_settings(heads_table)
    n_prompts = run["n_prompts"]
    with open_hdf5(moved[0], "moved_residual") as dataset:
        heads = heads_of(dataset)
    totals = Totals(Resamples.of_run(run))
    both = zip(
        open_shards(ablations, "ablations", n_prompts=n_prompts),
        open_shards(moved, "moved_residual", n_prompts=n_prompts),
        moved,
        strict=True,
    )
    for (ablated, _), (shifted, _), path in both:
        same_heads(path, shifted, heads, moved[0])
        n_layers, n_heads = ablated.sizes["by_layer"], ablated.sizes["by_head"]
        rows = rows_of(heads, moved[0], ablated, ablations[0])
        counts = ablated["n_selected"].values[rows].astype(float)
        # Of heads in the last layer there is nothing to compare.
        following = [min(layer + 1, n_layers - 1) for layer, _ in heads]
        changed = [ablated["repair_by_head"][row, :, at].values for row, at in zip(rows, following, strict=True)]
        totals.add(
            {
                N_TOKENS: counts,
                N_PROMPTS: counts > 0,
                "change_when_ablated": np.moveaxis(np.stack(changed), 1, 2),
                "change_when_moved": np.moveaxis(shifted["moved_change"].values, 1, 2),
            }
        )
    n_resamples = len(totals[N_TOKENS])
    changes = {name: totals[name] for name in ("change_when_ablated", "change_when_moved")}
    correlations, points = [], []
    for row, (layer, head) in enumerate(heads):
        after = layer + 1
        columns = {
            "layer": [layer],
            "head": [head],
            "next_layer": pd.array([after if after < n_layers else None], dtype="Int64"),
            "n_heads": [n_heads if after < n_layers else 0],
            "n_tokens": [totals.n_tokens[row]],
            "n_prompts": [totals.n_prompts[row]],
            "note": [NO_NEXT_LAYER if after == n_layers else ONE_NEXT_HEAD if n_heads == 1 else ""],
        }
        correlation = np.full((n_resamples, 1), np.nan)
        if after < n_layers:
            n_tokens = totals[N_TOKENS][:, row, None]
            values = {name: ratio(of[:, row], n_tokens) for name, of in changes.items()}
            correlation = _correlation(*values.values())[:, None]
            keys = {"layer": layer, "head": head, "next_layer": after, "next_head": np.arange(n_heads)}
            points.append(pd.DataFrame({**keys, **with_interval(values)}))
        correlations.append(pd.DataFrame({**columns, **with_interval({"correlation": correlation})}))
    write_table(pd.concat(correlations, ignore_index=True), tables["correlations"], run)
    names = ["layer", "head", "next_layer", "next_head"]
    for name in ("change_when_ablated", "change_when_moved"):
        names += [name, f"{name}_low", f"{name}_high"]
    table = pd.concat(points, ignore_index=True) if points else pd.DataFrame(columns=names, dtype=float)
    write_table(table[names], tables["heads"], run)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson correlation over the last axis; NaN where one of the two does not vary."""
    x, y = (values - values.mean(-1, keepdims=True) for values in (x, y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
