"""The share of a head's direct effect that the final norm repairs, in each reading of it, here and in the paper's files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from selfrepair.files.tables import read_settings, read_table, write_table
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.statistics import N_TOKENS, Resamples, Totals, estimated, prompt_sums, token_values

PART, CLIPPED = "self_repair_from_layernorm", "clipped_fraction_from_layernorm"
ALL_LAYERS, SECOND_TO_LAST = "all", "second-to-last"
READINGS = ("clipped per token", "ratio per head, mean", "ratio per head, median", "pooled")
"""What "the share of direct effect that LayerNorm repairs" can mean (docs/definitions.md, Shares of the direct effect)."""
THIS_RUN = "this run"


def tabulate_layernorm_claim(
    *, heads_table: Path, shards: Sequence[Path], thresholds: Path, published: Path, out: Path
) -> None:
    """Write the share of direct effect that the final norm repairs, over top tokens, in each reading of that share.

    Args:
        heads_table: Table "heads" of the same ablations.
        shards: Ablations files in the order of their prompts.
        thresholds: Top tokens of each head.
        published: The paper's per-head results, which have no intervals.
        out: Parquet file, a CSV beside it: a row a source, set of layers and reading.
    """
    run = read_settings(heads_table)
    totals = Totals(Resamples.of_run(run))
    for shard in read_ablations(shards, thresholds, run["first_position"]):
        layer = np.array([at for at, _ in shard.heads])
        tokens = token_values(shard.dataset)
        totals.add(prompt_sums({name: tokens[name] for name in (PART, "direct_effect", CLIPPED)}, shard.counted["top"]))
    rows: list[tuple[Any, ...]] = []
    for layers, at, inside in _layer_sets(layer, run["n_layers"]):
        found = shares_repaired(*(totals[name][:, inside] for name in (PART, "direct_effect", CLIPPED, N_TOKENS)))
        for reading, values in found.items():
            share = map(float, estimated("fraction", values).values())
            rows.append((THIS_RUN, layers, at, reading, *share, int(inside.sum()), int(totals.n_tokens[inside].sum())))
    for model, of_model in read_table(published).groupby("model", sort=False):
        for layers, at, inside in _layer_sets(of_model["layer"].to_numpy(), int(of_model["layer"].max()) + 1):
            effect, clipped = (of_model[name].to_numpy()[inside] for name in ("direct_effect", CLIPPED))
            # Every head has as many top tokens, so that means are sums up to a factor.
            found = shares_repaired(of_model[PART].to_numpy()[inside], effect, clipped, np.ones(len(effect)))
            for reading, value in found.items():
                rows.append((model, layers, at, reading, float(value), np.nan, np.nan, len(effect), None))
    columns = [
        "source",
        "layers",
        "layer",
        "reading",
        "fraction",
        "fraction_low",
        "fraction_high",
        "n_heads",
        "n_tokens",
    ]
    table = pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "n_tokens": "Int64"})
    write_table(table, out, run)


def shares_repaired(
    layernorm: Float[np.ndarray, "*resample head"],
    effect: Float[np.ndarray, "*resample head"],
    clipped: Float[np.ndarray, "*resample head"],
    counts: Float[np.ndarray, "*resample head"],
) -> dict[str, Any]:
    """Every reading of "the share of direct effect that LayerNorm repairs", over some heads.

    Args:
        layernorm: Sums over tokens of self_repair_from_layernorm [..., head], logits.
        effect: Likewise of direct_effect.
        clipped: Likewise of clip(LayerNorm part / direct effect, 0, 1).
        counts: Tokens summed over.

    Returns:
        By `READINGS` [...]. A head without a token is left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        per_head, per_token = (np.ma.masked_invalid(values) for values in (layernorm / effect, clipped / counts))
        pooled = layernorm.sum(-1) / effect.sum(-1)
    over_heads = (per_token.mean(-1), per_head.mean(-1), np.ma.median(per_head, axis=-1))
    return dict(zip(READINGS, (*(np.ma.filled(values, np.nan) for values in over_heads), pooled), strict=True))


def _layer_sets(layer: np.ndarray, n_layers: int) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Name, number and heads of each set of layers that the claim is read over; sets without a head are left out."""
    yield ALL_LAYERS, None, np.ones(len(layer), bool)
    second_to_last = layer == n_layers - 2
    if second_to_last.any():
        yield SECOND_TO_LAST, n_layers - 2, second_to_last
