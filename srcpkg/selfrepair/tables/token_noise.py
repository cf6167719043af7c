"""Every token of the chosen heads, to see how much of what a head does is one token's."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.tables.counted_tokens import read_ablations

TOKEN_COLUMNS = ("direct_effect", "logit_change", "self_repair")


def tabulate_token_noise(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    out: Path,
) -> None:
    """Write every token of the chosen heads, a row a (head, token).

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads (`selfrepair.measure.chosen_heads`).
        out: Parquet file; a CSV is written beside it.

    Raises:
        ValueError: Ablations that hold top tokens alone.
    """
    run = read_settings(heads_table)
    if run["tokens"] != "all":
        raise ValueError("these ablations hold top tokens alone: set ablations.*.tokens to all to list every token")
    chosen = read_chosen_heads(chosen_heads)
    layer, head = np.array(chosen).T
    parts = []
    for shard in read_ablations(shards, thresholds, run, chosen, chosen_heads):
        row, prompt, pos = np.nonzero(shard.counted["all"])
        columns = {
            "rank": row + 1,
            "layer": layer[row],
            "head": head[row],
            "prompt": prompt + shard.first,
            "pos": pos,
            **{name: shard.dataset[name].values[row, prompt, pos] for name in TOKEN_COLUMNS},
            "selected": shard.counted["top"][row, prompt, pos],
        }
        parts.append(pd.DataFrame(columns))
    tokens = pd.concat(parts, ignore_index=True).sort_values(["rank", "prompt", "pos"], ignore_index=True)
    write_table(tokens, out, run)
