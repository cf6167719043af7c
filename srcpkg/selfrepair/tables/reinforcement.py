"""How every head answers to its own output in its input: self-reinforcement, beside controls, and what each head is called."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import join_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import ratios, run_weights, with_interval

CONTROLS = ("random", "other")


def tabulate_reinforcement(*, shards: Sequence[Path], heads_table: Path, out: Path) -> None:
    """Write how every head answers to its own output in its input, a row a (head, scale).

    Args:
        shards: Reinforcement files in the order of their prompts.
        heads_table: Table "heads" of the run; its settings are taken over.
        out: Parquet file; a CSV is written beside it. ``label`` is "reinforcing" where the direct effect rises, and more than
            with either control, each by an interval above zero; "repressing" where it falls likewise; "neither" otherwise.
            Where the shards hold none, a row with the reason in column ``note``.
    """
    run = read_settings(heads_table)
    sums = join_shards(shards, "reinforcement", n_prompts=run["n_prompts"])
    if "note" in sums.attrs:
        write_table(pd.DataFrame({"note": [str(sums.attrs["note"])]}), out, {**run, "ablation": ""})
        return
    n_layers, n_heads, n_prompts = sums["n_selected"].shape
    weights = run_weights(run)
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
    write_table(table.sort_values(["layer", "head", "scale"], ignore_index=True), out, {**run, "ablation": ""})


def _labels(table: pd.DataFrame) -> np.ndarray:
    names = ["change", *(f"change_beyond_{control}" for control in CONTROLS)]
    # A model of one head a layer has no other head to compare with.
    names = [name for name in names if table[name].notna().any()]
    rises = (table[[f"{name}_low" for name in names]] > 0).all(axis=1)
    falls = (table[[f"{name}_high" for name in names]] < 0).all(axis=1)
    return np.select([rises, falls], ["reinforcing", "repressing"], "neither")
