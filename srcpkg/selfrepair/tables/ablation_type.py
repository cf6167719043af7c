"""What one kind of ablation does to the strongest of the chosen heads: its tokens, and means of what repairs it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.quantities import PARTS, held
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.sample import Sample
from selfrepair.tables.statistics import Resamples, Totals, prompt_sums, with_interval

MEANS = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair", *PARTS)
"""What is averaged beside residual_norm_ratio."""


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
            token, of a sample where they are many (`selfrepair.tables.sample`).
        means: Likewise, the means of these and of what repairs; a row a selection.
    """
    run = read_settings(heads_table)
    layer, head = strongest = read_chosen_heads(chosen_heads)[0]
    labels = {"ablation": run["ablation"], "layer": layer, "head": head}
    listed = Sample(run["bootstrap_seed"])
    resamples = Resamples.of_run(run)
    totals: dict[str, Totals] = {}
    for shard in read_ablations(shards, thresholds, run["first_position"], [strongest], chosen_heads):
        values = {name: shard.dataset[name].values[0] for name in held(MEANS, shard.dataset)}
        values["residual_norm_ratio"] = shard.dataset["ablated_scale"].values[0] / shard.dataset["clean_scale"].values
        computed = next(reversed(shard.counted.values()))[0]
        prompt, pos = np.nonzero(computed)
        columns = {name: values[name][prompt, pos] for name in ("direct_effect", "logit_change", "residual_norm_ratio")}
        selected = shard.counted["top"][0][prompt, pos]
        listed.add({"prompt": prompt + shard.first, "pos": pos, **columns, "selected": selected})
        for selection, counted in shard.counted.items():
            totals.setdefault(selection, Totals(resamples)).add(prompt_sums(values, counted[0]))
    rows = []
    for selection, of in totals.items():
        over_tokens = with_interval({name: of.mean(name) for name in values})
        counts = {"n_tokens": int(of.n_tokens), "n_prompts": int(of.n_prompts)}
        rows.append({**labels, "selection": selection, **counts, **over_tokens})
    write_table(pd.DataFrame({**labels, **listed.rows()}), tokens, {**run, **listed.settings})
    write_table(pd.DataFrame(rows), means, run)
