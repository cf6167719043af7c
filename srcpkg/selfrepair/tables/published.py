"""This run beside the paper's published per-head values (resources/published)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from selfrepair.files.tables import read_table, write_table
from selfrepair.quantities import OF_PAPER
from selfrepair.tables.columns import THIS_RUN, relative_depth
from selfrepair.tables.statistics import Resamples, estimated, with_interval

AGREEMENT = ("correlation", "rank_correlation", "slope", "difference")
"""Statistics of `agreement`."""

DEPTHS = ("first", "middle", "last")
"""Thirds of relative depth."""

QUANTILES = {"quantile_5": 0.05, "quantile_25": 0.25, "median": 0.5, "quantile_75": 0.75, "quantile_95": 0.95}


def tabulate_published(
    *,
    heads_table: Path,
    published: Path,
    model: str | None,
    pairs_out: Path,
    agreement_out: Path,
    distributions_out: Path,
) -> None:
    """Set condensed per-head values beside the published ones; a CSV is written beside each table.

    Args:
        heads_table: Table "heads" of this run.
        published: resources/published/self_repair_by_head.csv.
        model: Which published model the run's is; None where it is none of them.
        pairs_out: Parquet file, a row a quantity and head that both have; no rows without ``model``.
        agreement_out: Parquet file, a row a quantity (`agreement`); no rows without ``model``.
        distributions_out: Parquet file, a row a model, quantity and third of depth: quantiles over heads, of all models.

    Raises:
        ValueError: The published model has other layers or heads than the run's.
    """
    heads = read_table(heads_table)
    run = heads.attrs
    ours = heads[heads["selection"] == "top"]
    theirs = read_table(published)
    attrs = {**run, "published": model}
    pairs = _pairs(ours, theirs, model, run)
    write_table(pairs, pairs_out, attrs)
    rows = []
    for name, of_quantity in pairs.groupby("quantity", sort=False):
        x, y = of_quantity["published"].to_numpy(float), of_quantity["value"].to_numpy(float)
        # Heads are resampled here, not prompts.
        resamples = Resamples.drawn(len(x), run["n_bootstrap"], run["bootstrap_seed"])
        found = agreement(x, y, resamples.counts.astype(float))
        rows.append({"quantity": name, "n_heads": len(x), **with_interval(found)})
    columns = [f"{statistic}{end}" for statistic in AGREEMENT for end in ("", "_low", "_high")]
    write_table(pd.DataFrame(rows, columns=["quantity", "n_heads", *columns]), agreement_out, attrs)
    write_table(_distributions(ours, theirs, run), distributions_out, attrs)


def agreement(
    x: Float[np.ndarray, " head"], y: Float[np.ndarray, " head"], weights: Float[np.ndarray, "resample head"]
) -> dict[str, Float[np.ndarray, " resample"]]:
    """How values of the same heads in two measurements agree, each head counted ``weights`` times.

    Args:
        x: Published values.
        y: This run's.
        weights: [resample, head].

    Returns:
        By name [resample]: correlation (Pearson's), rank_correlation (Spearman's, with the ranks of all heads), slope of the
        least-squares line of y on x, and difference, the mean of y - x.
    """
    rank_x, rank_y = (pd.Series(values).rank().to_numpy() for values in (x, y))
    xx, xy, yy = _moments(x, y, weights)
    rank_xx, rank_xy, rank_yy = _moments(rank_x, rank_y, weights)
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "correlation": xy / np.sqrt(xx * yy),
            "rank_correlation": rank_xy / np.sqrt(rank_xx * rank_yy),
            "slope": xy / xx,
            "difference": weights @ (y - x) / weights.sum(1),
        }


def _moments(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance of x, covariance, variance of y, by resample."""
    # About the mean of all first, so that no digits are lost.
    x, y, share = x - x.mean(), y - y.mean(), weights / weights.sum(1, keepdims=True)
    mean_x, mean_y = share @ x, share @ y
    return share @ x**2 - mean_x**2, share @ (x * y) - mean_x * mean_y, share @ y**2 - mean_y**2


def _pairs(ours: pd.DataFrame, theirs: pd.DataFrame, model: str | None, run: Mapping[Any, Any]) -> pd.DataFrame:
    columns = ["quantity", "layer", "head", "relative_depth", "value", "value_low", "value_high", "published"]
    if model is None:
        return pd.DataFrame(columns=columns)
    theirs = theirs[theirs["model"] == model]
    shapes = [(run["n_layers"], run["n_heads"]), (theirs["layer"].max() + 1, theirs["head"].max() + 1)]
    if shapes[0] != shapes[1]:
        told = ["{} layers of {} heads".format(*shape) for shape in shapes]
        raise ValueError(
            f"models.{run['model']}.published is {model}, which has {told[1]}, but the model has {told[0]}: "
            "name the published model that it is, or leave the key out"
        )
    joined = ours.merge(theirs, on=["layer", "head"], suffixes=("", "_published"))
    parts = [
        joined[["layer", "head", "relative_depth"]].assign(
            quantity=name,
            value=joined[name],
            value_low=joined[f"{name}_low"],
            value_high=joined[f"{name}_high"],
            published=joined[f"{name}_published"],
        )
        for name in OF_PAPER
    ]
    return pd.concat(parts, ignore_index=True)[columns]


def _distributions(ours: pd.DataFrame, theirs: pd.DataFrame, run: Mapping[Any, Any]) -> pd.DataFrame:
    models = {THIS_RUN: ours}
    models |= {
        str(name): rows.assign(relative_depth=relative_depth(rows["layer"].to_numpy(), int(rows["layer"].max()) + 1))
        for name, rows in theirs.groupby("model", sort=False)
    }
    table = []
    for name, heads in models.items():
        third = np.minimum((heads["relative_depth"].to_numpy() * 3).astype(int), 2)
        for at, depth in enumerate(DEPTHS):
            for quantity in OF_PAPER:
                values = heads[quantity].to_numpy(float)[third == at]
                row = {
                    "model": name,
                    "depth": depth,
                    "quantity": quantity,
                    **_quantiles(values[np.isfinite(values)], run),
                }
                table.append(row)
    return pd.DataFrame(table)


def _quantiles(values: np.ndarray, run: Mapping[Any, Any]) -> dict[str, Any]:
    """Quantiles over heads, and the interval of the median, by a bootstrap over heads; a third may hold no layer."""
    if not len(values):
        return {"n_heads": 0, **dict.fromkeys([*QUANTILES, "median_low", "median_high"], np.nan)}
    draws = np.random.default_rng(run["bootstrap_seed"]).integers(len(values), size=(run["n_bootstrap"], len(values)))
    medians = np.concatenate([[np.median(values)], np.median(values[draws], axis=1)])
    return {
        "n_heads": len(values),
        **{name: float(np.quantile(values, at)) for name, at in QUANTILES.items()},
        **estimated("median", medians),
    }
