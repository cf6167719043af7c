"""Who repairs whom: each head's repair by every later component, summed over its top tokens."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, Int

from selfrepair.files.hdf5 import heads_of, open_hdf5, open_shards, rows_of
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.quantities import POSTNORMS
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.statistics import (
    N_PROMPTS,
    N_TOKENS,
    Resamples,
    Totals,
    mean_over_heads,
    prompt_sums,
    ratio,
    with_interval,
)

N_PAIRS = 6
"""Pairs that are listed, of heads and of MLPs each."""
WHOLE = {"postnorms": POSTNORMS, "layernorm": "self_repair_from_layernorm", "all": "self_repair"}
"""What repairs a head beside single components, and the quantity of its tokens that says how much."""

HALF = "prompts_of_half"
"""Of a pair, the fewest prompts that carry half of its mean repair."""

Head = tuple[int, int]
Repairer = tuple[Head, str, int | None, int | None]
"""An ablated head, what repairs it ("head", "mlp", "postnorms", "layernorm" or "all"), and the layer and head of that."""


def tabulate_repair(
    *,
    shards: Sequence[Path],
    thresholds: Path,
    chosen_heads: Path,
    heads_table: Path,
    tables: Mapping[str, Path],
) -> None:
    """Write who repairs whom: by layer, for the chosen heads in full, and the strongest pairs of all heads.

    Args:
        shards: Ablations files of one kind in the order of their prompts.
        thresholds: Top tokens of each head.
        chosen_heads: The heads whose repair is written in full.
        heads_table: Table "heads" of the same ablations; its settings are taken over.
        tables: "by_layer", "rows" and "pairs": Parquet files to write; a CSV is written beside each. In "rows" the repairs of a
            head by heads, MLPs, post-norms and the final norm add up to the row whose ``by`` is "all", its condensed
            self-repair.
    """
    run = read_settings(heads_table)
    chosen = read_chosen_heads(chosen_heads)
    parallel = run["parallel_attention_mlp"]
    resamples = Resamples.of_run(run)
    by_layer, every, of_chosen = LayerRepair(resamples, parallel), PairRepair(), Totals(resamples)
    for shard in read_ablations(shards, thresholds, run["first_position"]):
        dataset = shard.dataset
        repair = dataset[["repair_by_head", "repair_by_mlp", "n_selected", "layer", "head_index"]].load()
        by_layer.add(repair)
        every.add(repair)
        at = rows_of(chosen, chosen_heads, dataset, shards[0])
        values = {by: dataset[name][at].values for by, name in WHOLE.items() if name in dataset}
        of_chosen.add(prompt_sums(values, shard.counted["top"][at]))
    write_table(by_layer.table(), tables["by_layer"], run)
    whole = {(head, by): of_chosen[by][:, row] for by in values for row, head in enumerate(chosen)}
    rows = [key for head in chosen for key in _components(head, every.n_layers, every.n_heads, parallel, whole)]
    # Of so many pairs only the strongest get intervals, and these are known when all shards have been read.
    strongest = every.strongest(N_PAIRS)
    found = _repairs(rows + strongest, shard.heads, shards, whole, resamples, listed=len(strongest))
    write_table(found.iloc[: len(rows)].drop(columns=HALF, errors="ignore"), tables["rows"], run)
    table = found.iloc[len(rows) :].reset_index(drop=True)
    table.insert(0, "rank", table.groupby("by").cumcount() + 1)
    write_table(table, tables["pairs"], run)


def repair_of_head(head: Head, shards: Sequence[Path], run: Mapping[Any, Any]) -> pd.DataFrame:
    """What repairs one head, component by component.

    Args:
        head: (layer, head).
        shards: Ablations files of one kind that hold the head, in the order of their prompts.
        run: Settings that the run's tables carry.

    Returns:
        Columns of the table "rows" of `tabulate_repair`, without those of norms and the sum.

    Raises:
        ValueError: A shard that cannot be read or lacks the head.
    """
    with open_hdf5(shards[0], "ablations") as dataset:
        heads = heads_of(dataset)
    parallel = run["parallel_attention_mlp"]
    rows = _components(head, int(run["n_layers"]), int(run["n_heads"]), parallel, {})
    return _repairs(rows, heads, shards, {}, Resamples.of_run(run))


class LayerRepair:
    """Mean over the heads of a layer of their repair by the heads, and by the MLP, of each layer that can change.

    Args:
        resamples: How often each prompt counts.
        parallel: Attention and MLP of a layer read the same residual, so that a head's own layer cannot change.
    """

    def __init__(self, resamples: Resamples, parallel: bool) -> None:
        self._totals, self._parallel = Totals(resamples), parallel
        self._layers = np.empty(0, int)
        self._n_layers = 0

    def add(self, repair: xr.Dataset) -> None:
        """Add a shard: repair_by_head, repair_by_mlp, n_selected, layer of an ablations file."""
        self._layers, self._n_layers = repair["layer"].values, repair.sizes["by_layer"]
        by = {"heads": repair["repair_by_head"].values.sum(-1), "mlp": repair["repair_by_mlp"].values}
        sums = {}
        for name, layer, here, later in self._cells():
            sums[f"{name} {layer}"] = np.moveaxis(by[name][here][:, :, later], 1, 2)
        self._totals.add({**sums, N_TOKENS: repair["n_selected"].values})

    def table(self) -> pd.DataFrame:
        """A row an ablated layer and one that repairs.

        Returns:
            Columns layer, by ("heads" or "mlp"), by_layer, n_heads and repair (logits, mean over the layer's ablated heads)
            with its interval.
        """
        keys, values = [], []
        for name, layer, here, later in self._cells():
            n_tokens = self._totals[N_TOKENS][:, here, None]
            values.append(mean_over_heads(ratio(self._totals[f"{name} {layer}"], n_tokens)))
            keys += [(layer, name, at, int(here.sum())) for at in later.tolist()]
        table = pd.DataFrame(keys, columns=["layer", "by", "by_layer", "n_heads"])
        return table.assign(**with_interval({"repair": np.concatenate(values, axis=1)}))

    def _cells(self) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
        """What repairs, the ablated layer, which heads are its, and the layers that repair."""
        for name in ("heads", "mlp"):
            for layer in np.unique(self._layers).tolist():
                later = np.arange(layer + (name == "heads" or self._parallel), self._n_layers)
                yield name, layer, self._layers == layer, later


class PairRepair:
    """Mean repair of every head by every head and every MLP, without intervals."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}
        self._heads: list[Head] = []
        self.n_layers = self.n_heads = 0
        """Layers of the model, and heads of each."""

    def add(self, repair: xr.Dataset) -> None:
        """Add a shard: repair_by_head, repair_by_mlp, n_selected, layer and head_index of an ablations file."""
        self._heads = heads_of(repair)
        self.n_layers, self.n_heads = repair.sizes["by_layer"], repair.sizes["by_head"]
        for name in ("repair_by_head", "repair_by_mlp", "n_selected"):
            self._sums[name] = self._sums.get(name, 0) + repair[name].values.sum(1, dtype=float)

    def strongest(self, count: int) -> list[Repairer]:
        """The pairs of largest repair or breakage: ``count`` where a head changes, then ``count`` where an MLP does.

        Args:
            count: How many of each, or as many as there are with any repair at all.
        """
        heads = self._heads
        by_head: list[Repairer] = [
            (heads[row], "head", at, of) for row, at, of in self._largest("repair_by_head", count)
        ]
        by_mlp: list[Repairer] = [(heads[row], "mlp", at, None) for row, at in self._largest("repair_by_mlp", count)]
        return by_head + by_mlp

    def _largest(self, name: str, count: int) -> Iterator[list[int]]:
        sums = self._sums[name]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.nan_to_num(sums / self._sums["n_selected"].reshape(-1, *(1 for _ in sums.shape[1:])))
        order = np.argsort(-np.abs(means), axis=None, kind="stable")[:count]
        for place in order[means.flat[order] != 0]:
            yield [int(at) for at in np.unravel_index(place, means.shape)]


def _components(
    head: Head, n_layers: int, n_heads: int, parallel: bool, whole: Mapping[tuple[Head, str], np.ndarray]
) -> list[Repairer]:
    """All that can repair a head, and the sum of it."""
    layer = head[0]
    return [
        *((head, "head", at, of) for at in range(layer + 1, n_layers) for of in range(n_heads)),
        *((head, "mlp", at, None) for at in range(layer + parallel, n_layers)),
        *((head, by, None, None) for by in WHOLE if (head, by) in whole),
    ]


def _repairs(
    rows: Sequence[Repairer],
    heads: Sequence[Head],
    shards: Sequence[Path],
    whole: Mapping[tuple[Head, str], Float[np.ndarray, " resample"]],
    resamples: Resamples,
    listed: int = 0,
) -> pd.DataFrame:
    """Mean repair of each pair with its interval; ``heads`` are those of the shards.

    Of the last pairs, as many as are ``listed``, also how few prompts carry half of the mean (`prompts_of_half`).
    """
    ablated = sorted({head for head, *_ in rows}, key=list(heads).index)
    place = {head: row for row, head in enumerate(ablated)}
    row_of = np.array([place[head] for head, *_ in rows], int)
    totals = Totals(resamples)
    of_listed: list[np.ndarray] = []
    for dataset, _ in open_shards(shards, "ablations"):
        of_heads = dataset.isel(head=rows_of(ablated, shards[0], dataset, shards[0]))
        counts = of_heads["n_selected"].values
        values = _sums(rows, row_of, of_heads)
        totals.add({"repair": values, N_TOKENS: counts, N_PROMPTS: counts > 0})
        of_listed.append(values[len(rows) - listed :])
    sums = totals["repair"].copy()
    for number, (head, by, layer, _) in enumerate(rows):
        if layer is None:
            sums[:, number] = whole[head, by]
    columns: dict[str, Any] = {
        "layer": [head[0] for head, *_ in rows],
        "head": [head[1] for head, *_ in rows],
        "by": [by for _, by, _, _ in rows],
        "by_layer": pd.array([layer for _, _, layer, _ in rows], dtype="Int64"),
        "by_head": pd.array([of for _, _, _, of in rows], dtype="Int64"),
        "n_tokens": totals.n_tokens[row_of],
        "n_prompts": totals.n_prompts[row_of],
    }
    if listed:
        halves = [prompts_of_half(of_prompts) for of_prompts in np.concatenate(of_listed, axis=1)]
        columns[HALF] = pd.array([*[None] * (len(rows) - listed), *halves], dtype="Int64")
    return pd.DataFrame({**columns, **with_interval({"repair": ratio(sums, totals[N_TOKENS][:, row_of])})})


def prompts_of_half(sums: Float[np.ndarray, " prompt"]) -> int:
    """The fewest prompts whose sums make up half of the whole; 1 where one prompt carries that much.

    Args:
        sums: A quantity summed within each prompt.
    """
    whole = sums.sum()
    carried = np.cumsum(np.sort(sums * np.sign(whole))[::-1])
    return int(np.argmax(carried >= abs(whole) / 2)) + 1


def _sums(
    rows: Sequence[Repairer], row_of: Int[np.ndarray, " pair"], repair: xr.Dataset
) -> Float[np.ndarray, "pair prompt"]:
    """Sums by prompt of each pair's repair; zeros for what is no single component's."""
    by_head, by_mlp = (repair[name].values for name in ("repair_by_head", "repair_by_mlp"))
    sums = np.zeros((len(rows), repair.sizes["prompt"]))
    for number, (row, (_, by, layer, of)) in enumerate(zip(row_of, rows, strict=True)):
        if by == "head":
            sums[number] = by_head[row, :, layer, of]
        elif by == "mlp":
            sums[number] = by_mlp[row, :, layer]
    return sums
