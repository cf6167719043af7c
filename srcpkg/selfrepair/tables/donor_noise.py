"""Control: how much of the spread of self-repair is the donors', and how much the tokens'."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from selfrepair.files.hdf5 import open_shards, same_heads
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.statistics import ratios, run_weights, with_interval


def variance_over_donors(
    values: Float[np.ndarray, "donor token"],
    prompt: Int[np.ndarray, " token"],
    weights: Float[np.ndarray, "resample prompt"],
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Split the variance of a quantity into what donors and what tokens make up (analysis of variance, one way).

    The value of a token with a donor is taken as the token's own, plus noise of the donor. With K donors, the variance over
    tokens of the donors' mean holds 1/K of the noise; it is subtracted.

    Args:
        values: The quantity of each token with each donor, at least two.
        prompt: Prompt of each token.
        weights: How often each prompt counts.

    Returns:
        By name [resample]: donor_variance (within tokens), token_variance (between tokens, may be negative where it is small),
        donor_share of their sum, averaged_donor_share: of what is left of it in the mean over the donors; mean, and
        one_donor_mean, of the first donor alone.
    """
    n_donors, n_prompts = len(values), weights.shape[1]

    def over_tokens(value: np.ndarray) -> np.ndarray:
        return ratios(np.bincount(prompt, value, minlength=n_prompts), counts, weights)

    counts = np.bincount(prompt, minlength=n_prompts).astype(float)
    mean = values.mean(0, dtype=np.float64)
    n_tokens = weights @ counts
    centre = mean.mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        # About the centre of all, so that no digits are lost.
        between = (over_tokens((mean - centre) ** 2) - over_tokens(mean - centre) ** 2) * n_tokens / (n_tokens - 1)
        within = over_tokens(values.var(0, ddof=1, dtype=np.float64))
        found = {
            "donor_variance": within,
            "token_variance": between - within / n_donors,
            "donor_share": within / (between + within * (1 - 1 / n_donors)),
            "averaged_donor_share": within / n_donors / between,
            "mean": over_tokens(mean),
            "one_donor_mean": over_tokens(values[0].astype(np.float64)),
        }
    return {name: np.where(np.isfinite(value), value, np.nan) for name, value in found.items()}


def tabulate_donor_noise(
    *,
    heads_table: Path,
    shards: Sequence[Path],
    chosen_heads: Path,
    heads_out: Path,
    tokens_out: Path,
) -> None:
    """Write the variance of self-repair over donors and over tokens, a row a head, and every value, a row a token and donor.

    Args:
        heads_table: Table "heads" of the main kind of ablation, for the run's settings.
        shards: Files of `selfrepair.measure.donor_noise.measure_donor_noise`, in the order of their prompts.
        chosen_heads: The heads.
        heads_out: Parquet file; a CSV is written beside it.
        tokens_out: Parquet file; a CSV is written beside it.
    """
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    parts = []
    for dataset, first in open_shards(shards, "donor_noise", n_prompts=run["n_prompts"]):
        same_heads(shards[0], dataset, chosen, chosen_heads)
        values = {name: dataset[name].values for name in ("direct_effect", "ablated_direct_effect", "self_repair")}
        donor, row, prompt, pos = np.nonzero(np.isfinite(values["self_repair"]))
        listed = {name: value[donor, row, prompt, pos] for name, value in values.items()}
        parts.append(pd.DataFrame({"row": row, "prompt": prompt + first, "pos": pos, "donor": donor + 1, **listed}))
    tokens = pd.concat(parts, ignore_index=True)
    heads = pd.DataFrame(chosen, columns=["layer", "head"])
    heads.insert(0, "rank", np.arange(1, len(heads) + 1))
    attrs = {**run, "noise_donors": int(tokens["donor"].max())}
    weights = run_weights(run)
    rows = []
    for number, of_head in tokens.groupby("row"):
        wide = of_head.pivot_table(index=["prompt", "pos"], columns="donor", values="self_repair")
        prompt = wide.index.get_level_values("prompt").to_numpy()
        found = variance_over_donors(wide.to_numpy(float).T, prompt, weights)
        counts = {"n_tokens": len(wide), "n_prompts": len(np.unique(prompt)), "n_donors": wide.shape[1]}
        rows.append({"row": number, **counts, **with_interval(found)})
    table = heads.join(pd.DataFrame(rows).set_index("row"), how="inner")
    table.insert(3, "relative_depth", relative_depth(table["layer"].to_numpy(), run["n_layers"]))
    write_table(table, heads_out, attrs)
    listed_tokens = heads.join(tokens.set_index("row"), how="inner")
    order = ["rank", "prompt", "pos", "donor"]
    write_table(listed_tokens.sort_values(order, ignore_index=True), tokens_out, attrs)
