"""Control: how much of the spread of self-repair is the donors', and how much the tokens'."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from selfrepair.files.hdf5 import open_shards, same_heads
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.sample import Sample
from selfrepair.tables.statistics import N_TOKENS, Resamples, Totals, prompt_sums, ratio, with_interval


def donor_sums(
    values: Float[np.ndarray, "donor *rest prompt predicted"],
    counted: Bool[np.ndarray, "*rest prompt predicted"],
    centre: Float[np.ndarray, "*rest one one"],
) -> dict[str, Float[np.ndarray, "*rest prompt"]]:
    """Sums by prompt that `variance_over_donors` needs.

    Args:
        values: A quantity of each token with each donor, at least two.
        counted: Tokens that count.
        centre: About where the values lie, the same for all shards, so that no digits are lost.
    """
    mean = values.mean(0, dtype=np.float64)
    parts = {
        "mean": mean,
        "one_donor_mean": values[0],
        "centred": mean - centre,
        "squared": (mean - centre) ** 2,
        "within": values.var(0, ddof=1, dtype=np.float64),
    }
    return prompt_sums(parts, counted)


def variance_over_donors(totals: Totals, n_donors: int) -> dict[str, Float[np.ndarray, "resample *rest"]]:
    """Split the variance of a quantity into what donors and what tokens make up (analysis of variance, one way).

    The value of a token with a donor is taken as the token's own, plus noise of the donor. With K donors, the variance over
    tokens of the donors' mean holds 1/K of the noise; it is subtracted.

    Args:
        totals: Of `donor_sums`.
        n_donors: Donors of each token.

    Returns:
        By name [resample, ...]: donor_variance (within tokens), token_variance (between tokens, may be negative where it is
        small), donor_share of their sum, averaged_donor_share: of what is left of it in the mean over the donors; mean, and
        one_donor_mean, of the first donor alone.
    """
    n_tokens = totals[N_TOKENS]
    within = totals.mean("within")
    between = ratio((totals.mean("squared") - totals.mean("centred") ** 2) * n_tokens, n_tokens - 1)
    return {
        "donor_variance": within,
        "token_variance": between - within / n_donors,
        "donor_share": ratio(within, between + within * (1 - 1 / n_donors)),
        "averaged_donor_share": ratio(within / n_donors, between),
        "mean": totals.mean("mean"),
        "one_donor_mean": totals.mean("one_donor_mean"),
    }


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
        tokens_out: Parquet file; a CSV is written beside it. Of a sample of tokens where they are many
            (`selfrepair.tables.sample`).
    """
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    totals = Totals(Resamples.of_run(run))
    listed: list[Sample] = []
    centre: np.ndarray | None = None
    for path, (dataset, first) in zip(
        shards, open_shards(shards, "donor_noise", n_prompts=run["n_prompts"]), strict=True
    ):
        same_heads(path, dataset, chosen, chosen_heads)
        values = {name: dataset[name].values for name in ("direct_effect", "ablated_direct_effect", "self_repair")}
        repair = values["self_repair"]
        counted = np.isfinite(repair).all(0)
        listed = listed or [Sample(run["bootstrap_seed"], each=len(repair)) for _ in chosen]
        if centre is None:
            centre = np.array([of[:, counted[row]].mean() if counted[row].any() else 0 for row, of in _by_head(repair)])
            centre = centre[:, None, None]
        totals.add(donor_sums(np.where(counted, repair, 0), counted, centre))
        for row, of_head in enumerate(listed):
            prompt, pos = np.nonzero(counted[row])
            of_tokens = {name: value[:, row, prompt, pos].T for name, value in values.items()}
            of_head.add({"prompt": prompt + first, "pos": pos, **of_tokens})
    n_donors = len(repair)
    heads = pd.DataFrame(chosen, columns=["layer", "head"])
    heads.insert(0, "rank", np.arange(1, len(heads) + 1))
    heads.insert(3, "relative_depth", relative_depth(heads["layer"].to_numpy(), run["n_layers"]))
    columns = {
        "n_tokens": totals.n_tokens,
        "n_prompts": totals.n_prompts,
        "n_donors": n_donors,
        **with_interval(variance_over_donors(totals, n_donors)),
    }
    table = heads.join(pd.DataFrame(columns))
    attrs = {**run, "noise_donors": n_donors}
    # A head whose top tokens the shards do not hold has nothing to say.
    write_table(table[table["n_tokens"] > 0].reset_index(drop=True), heads_out, attrs)
    parts = []
    for (_, head), of_head in zip(heads.iterrows(), listed, strict=True):
        rows = of_head.rows()
        parts.append(
            pd.DataFrame(
                {
                    **{name: int(head[name]) for name in ("rank", "layer", "head")},
                    **{name: np.repeat(rows[name], n_donors) for name in ("prompt", "pos")},
                    "donor": np.tile(np.arange(1, n_donors + 1), len(rows["prompt"])),
                    **{name: rows[name].ravel() for name in values},
                }
            )
        )
    drawn = max((of_head.settings for of_head in listed), key=lambda settings: settings.get("listed_of", 0))
    write_table(pd.concat(parts, ignore_index=True), tokens_out, {**attrs, **drawn})


def _by_head(values: Float[np.ndarray, "donor head prompt predicted"]) -> Iterator[tuple[int, np.ndarray]]:
    return enumerate(np.moveaxis(values, 1, 0))
