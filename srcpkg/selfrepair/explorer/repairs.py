"""What repairs each head: its strongest components, with intervals over prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from selfrepair.files.hdf5 import heads_of, open_shards
from selfrepair.tables.statistics import N_TOKENS, Resamples, Totals, ratio, with_interval

STRONGEST = 12
"""Components that are listed of each head, of either sign."""


def strongest_repairers(shards: Sequence[Path], run: Mapping[Any, Any]) -> pd.DataFrame:
    """The components whose mean repair of each head is largest, of either sign.

    Files are read twice, one at a time: of so many pairs only the strongest get intervals, and these are known when all shards
    have been read.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        run: Settings that the run's tables carry.

    Returns:
        Columns layer, head, by ("head" or "mlp"), by_layer, by_head and repair (logits, a mean over the head's top tokens) with
        its interval; heads in the files' order, the strongest component of each first.
    """
    sums: np.ndarray = np.zeros(())
    counts: np.ndarray = np.zeros(())
    for dataset, _ in open_shards(shards, "ablations"):
        heads, n_heads = heads_of(dataset), dataset.sizes["by_head"]
        sums = sums + _by_component(dataset).sum(axis=1)
        counts = counts + dataset["n_selected"].values.sum(axis=1)
    means = np.nan_to_num(ratio(sums, counts[:, None]))
    order = np.argsort(-np.abs(means), axis=1, kind="stable")[:, :STRONGEST]
    totals = Totals(Resamples.of_run(run))
    for dataset, _ in open_shards(shards, "ablations"):
        strongest = np.take_along_axis(_by_component(dataset), order[:, None, :], axis=2)
        totals.add({"repair": np.moveaxis(strongest, 1, 2), N_TOKENS: dataset["n_selected"].values})
    repair = ratio(totals["repair"], totals[N_TOKENS][:, :, None])
    table = pd.DataFrame(_names(heads, order, n_heads), columns=["layer", "head", "by", "by_layer", "by_head"])
    table = table.assign(**with_interval({"repair": repair.reshape(len(repair), -1)}))
    return table[np.take_along_axis(means, order, axis=1).ravel() != 0].reset_index(drop=True)


def _by_component(dataset: Any) -> Float[np.ndarray, "head prompt component"]:
    """Sums by prompt of each head's repair: by the heads of a layer, then by its MLP, layer after layer."""
    of_mlp = dataset["repair_by_mlp"].values[..., None]
    both = np.concatenate([dataset["repair_by_head"].values, of_mlp], axis=-1).astype(np.float64)
    return np.nan_to_num(both).reshape(*both.shape[:2], -1)


def _names(heads: Sequence[tuple[int, int]], order: Int[np.ndarray, "head strongest"], n_heads: int) -> list[tuple]:
    """Each ablated head, with what a component is."""
    found = []
    for (layer, head), components in zip(heads, order.tolist(), strict=True):
        for component in components:
            by_layer, by_head = divmod(component, n_heads + 1)
            mlp = by_head == n_heads
            found.append((layer, head, "mlp" if mlp else "head", by_layer, None if mlp else by_head))
    return found
