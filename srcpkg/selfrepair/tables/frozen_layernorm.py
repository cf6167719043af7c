"""The closed form of the LayerNorm part, beside runs with the final scale really frozen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from selfrepair.files.hdf5 import open_shards, same_heads
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.quantities import PARTS, held
from selfrepair.tables.columns import ranked_heads
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.statistics import Resamples, Totals, prompt_sums, with_interval


def tabulate_frozen_layernorm(
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
        frozen: Files of `selfrepair.measure.frozen_layernorm.measure_frozen_layernorm`, in the same order.
        out: Parquet file, a CSV beside it: means over top tokens, a row a head. really_frozen_logit_change is measured,
            frozen_layernorm_logit_change the closed form; largest_difference is between the two on any token, and
            layernorm_part_left the largest LayerNorm part that is left once the scale is frozen (logits).

    Raises:
        ValueError: The two differ by more than rounding.
    """
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    measured = ("direct_effect", "logit_change", "self_repair_from_layernorm")
    names = (*measured, "frozen_layernorm_logit_change", "really_frozen_logit_change")
    totals = Totals(Resamples.of_run(run))
    differences, allowed, left = np.zeros((3, len(chosen)))
    ablations = read_ablations(shards, thresholds, run["first_position"], chosen, chosen_heads)
    runs = open_shards(frozen, "frozen_layernorm", n_prompts=run["n_prompts"])
    for shard, path, (dataset, _) in zip(ablations, frozen, runs, strict=True):
        same_heads(path, dataset, chosen, chosen_heads)
        values = {
            name: shard.dataset[name].values.astype(np.float64)
            for name in held((*measured, *PARTS, "ablated_direct_effect"), shard.dataset)
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
        by_others = sum(values[part] for part in held(PARTS, values) if part != "self_repair_from_layernorm")
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
        for largest, of in ((allowed, rounding), (differences, difference), (left, np.abs(rest))):
            np.maximum(largest, np.where(counted, of, 0).max((1, 2)), out=largest)
        totals.add(prompt_sums({name: values[name] for name in names}, counted))
    columns = {
        "selection": "top",
        **ranked_heads(chosen),
        "n_tokens": totals.n_tokens,
        "n_prompts": totals.n_prompts,
        **with_interval({name: totals.mean(name) for name in names}),
        "largest_difference": differences,
        "allowed_difference": allowed,
        "layernorm_part_left": left,
    }
    write_table(pd.DataFrame(columns), out, run)
