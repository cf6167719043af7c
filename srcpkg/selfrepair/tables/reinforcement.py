"""How every head answers to its own output in its input: self-reinforcement, beside controls, and what each head is called."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import open_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import N_PROMPTS, N_TOKENS, Resamples, Totals, with_interval

CONTROLS = ("random", "other")
ADDED = ("own", *CONTROLS)
"""What is added to a head's input: its own output, or a control of the same length."""


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
    totals = Totals(Resamples.of_run(run))
    for dataset, _ in open_shards(shards, "reinforcement", n_prompts=run["n_prompts"]):
        if "note" in dataset.attrs:
            write_table(pd.DataFrame({"note": [str(dataset.attrs["note"])]}), out, {**run, "ablation": ""})
            return
        n_layers, n_heads, _ = dataset["n_selected"].shape
        scales, counts = dataset["scale"].values, _by_head(dataset["n_selected"].values)
        totals.add(
            {
                N_TOKENS: counts,
                N_PROMPTS: counts > 0,
                **{name: _by_head(dataset[name].values) for name in ("direct_effect", "relative_length")},
                **{
                    f"{added} {at}": _by_head(dataset["reinforced_direct_effect"].values[..., row, at])
                    for row, added in enumerate(ADDED)
                    for at in range(len(scales))
                },
            }
        )
    layer, head = (at.ravel() for at in np.indices((n_layers, n_heads)))
    clean = totals.mean("direct_effect")
    parts = []
    for at, scale in enumerate(scales):
        with_own, with_random, with_other = (totals.mean(f"{added} {at}") for added in ADDED)
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
            "relative_length": scale * totals.mean("relative_length"),
        }
        columns = {
            "layer": layer,
            "head": head,
            "relative_depth": relative_depth(layer, n_layers),
            "scale": scale,
            "n_tokens": totals.n_tokens,
            "n_prompts": totals.n_prompts,
        }
        parts.append(pd.DataFrame({**columns, **with_interval(values)}))
    table = pd.concat(parts, ignore_index=True)
    table["label"] = _labels(table)
    write_table(table.sort_values(["layer", "head", "scale"], ignore_index=True), out, {**run, "ablation": ""})


def _by_head(sums: np.ndarray) -> np.ndarray:
    """Sums [layer, head, prompt] as [layer * head, prompt]."""
    return sums.reshape(-1, sums.shape[-1])


def _labels(table: pd.DataFrame) -> np.ndarray:
    names = ["change", *(f"change_beyond_{control}" for control in CONTROLS)]
    # A model of one head a layer has no other head to compare with.
    names = [name for name in names if table[name].notna().any()]
    rises = (table[[f"{name}_low" for name in names]] > 0).all(axis=1)
    falls = (table[[f"{name}_high" for name in names]] < 0).all(axis=1)
    return np.select([rises, falls], ["reinforcing", "repressing"], "neither")
