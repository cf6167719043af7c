"""The few heads that analyses of single heads are about."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from selfrepair.files.sealed import read_json, write_json
from selfrepair.files.tables import read_table

N_CHOSEN = 4
"""Heads that are taken where the config names none: as many as a figure of panels holds side by side."""


def choose_heads(*, heads_table: Path, out: Path, heads: Sequence[tuple[int, int]] | None) -> None:
    """Write the heads that analyses of single heads are about.

    Args:
        heads_table: Table "heads" of the main kind of ablation.
        out: JSON file: ``heads``, a list of [layer, head].
        heads: The (layer, head) pairs; None takes those of largest condensed self-repair that have an MLP after them.

    Raises:
        ValueError: A head that was not ablated.
    """
    table = read_table(heads_table)
    chosen = strongest_heads(table, N_CHOSEN) if heads is None else [(int(layer), int(head)) for layer, head in heads]
    ablated = set(zip(table["layer"], table["head"], strict=True))
    missing = [pair for pair in chosen if pair not in ablated]
    if missing:
        raise ValueError(f"heads {missing} were not ablated: name them under ablations.*.heads, or name others")
    write_json(out, {"heads": chosen})


def read_chosen_heads(path: Path) -> list[tuple[int, int]]:
    """The (layer, head) pairs that `choose_heads` wrote, the strongest first."""
    return [(layer, head) for layer, head in read_json(path)["heads"]]


def strongest_heads(table: pd.DataFrame, count: int) -> list[tuple[int, int]]:
    """The heads of largest condensed self-repair that have an MLP after them, largest first.

    Args:
        table: Table "heads".
        count: How many, or as many as there are.
    """
    last = table.attrs["n_layers"] - 1
    top = table[table["selection"] == "top"]
    if table.attrs["parallel_attention_mlp"]:
        # The last layer's MLP runs beside its heads, not after them.
        top = top[top["layer"] < last] if (top["layer"] < last).any() else top
    best = top.sort_values("self_repair", ascending=False, kind="stable").head(count)
    return [(int(layer), int(head)) for layer, head in zip(best["layer"], best["head"], strict=True)]
