"""Tables of what the neurons of one MLP repair: how much each, on how few, by erasing less or not, always the same or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Shaped

from selfrepair.files.hdf5 import heads_of, open_shards
from selfrepair.files.tables import read_settings, write_table
from selfrepair.tables.sample import Sample
from selfrepair.tables.statistics import Resamples, Totals, estimated, ratio

SHARES_OF_EFFECT = (0.5, 0.1, 0.05, 0.025, 0.01)
"""Shares of a head's direct effect that a neuron may repair; the paper's."""

AMONG_TOP = (1, 5, 10)
"""Numbers of leading neurons among which a neuron may be."""

N_LISTED = 100
"""Neurons that table neuron_consistency lists for each head and number of leading neurons."""

CURVES = ("share_of_change", "share_of_repair", "share_of_direct_effect")
"""Cumulative shares over neurons."""

QUADRANTS = {
    "anti_erasure": "Anti-Erasure: negative, then less negative",
    "negative_to_positive": "negative, then positive",
    "more_positive": "positive, then more so",
    "no_repair": "no neuron repairs",
}
"""What the neuron that repairs most does: its direct effect clean, then with the head ablated."""


def tabulate_neurons(*, shards: Sequence[Path], heads_table: Path, tables: dict[str, Path]) -> None:
    """Condense the neurons of all shards into tables (docs/definitions.md, Neurons).

    Args:
        shards: Neurons files in the order of their prompts.
        heads_table: Table "heads" of the same ablations, for its settings.
        tables: "neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants" and "neuron_consistency":
            Parquet files to write; a CSV is written beside each. "erasure_neurons" lists tokens, a sample of them where they
            are many (`selfrepair.tables.sample`). Where the shards hold no neurons, each is a row a head, with the reason in
            column ``note``.
    """
    run = read_settings(heads_table)
    resamples = Resamples.of_run(run)
    of_heads: list[_Head] = []
    best: list[_Best] = []
    for dataset, first in open_shards(shards, "neurons", n_prompts=run["n_prompts"]):
        heads = heads_of(dataset)
        if "note" in dataset.attrs:  # no neurons, in this shard as in all others
            _write_note(dataset, heads, tables, run)
            return
        of_heads = of_heads or [_Head(resamples, run["bootstrap_seed"]) for _ in heads]
        shard = dataset.load()
        counts = shard["neurons"].values
        best.append(_Best.of_shard(shard))
        for row, of_head in enumerate(of_heads):
            of_head.add(shard.isel(token=shard["head"].values == row), first, int(shard.attrs["n_prompts"]))
    own = {name: int(shard.attrs[name]) for name in ("neuron_layer", "n_neurons", "top_percent")}
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in tables}
    for row, ((layer, head), of_head) in enumerate(zip(heads, of_heads, strict=True)):
        labels = {"rank": row + 1, "layer": layer, "head": head}
        found = {
            "neuron_share": of_head.share(),
            "neuron_concentration": of_head.concentration(counts, own["n_neurons"]),
            "erasure_quadrants": of_head.quadrants(),
            "neuron_consistency": of_head.consistency([of_shard.of_head(row) for of_shard in best]),
        }
        for name, table in found.items():
            rows[name].append(
                _labelled(table, {**labels, "n_tokens": of_head.n_tokens, "n_prompts": of_head.n_prompts})
            )
        leaders = of_head.leaders.rows()
        named = {"quadrant": np.array(list(QUADRANTS), object)[leaders["quadrant"]]}
        rows["erasure_neurons"].append(_labelled(pd.DataFrame(leaders | named), labels))
    drawn = max((of_head.leaders.settings for of_head in of_heads), key=lambda found: found.get("listed_of", 0))
    for name, parts in rows.items():
        more = drawn if name == "erasure_neurons" else {}
        write_table(pd.concat(parts, ignore_index=True), tables[name], {**run, **own, **more})


def _write_note(
    dataset: xr.Dataset, heads: Sequence[tuple[int, int]], tables: Mapping[str, Path], run: Mapping[Any, Any]
) -> None:
    layer, head = np.array(heads).T
    columns = {"rank": range(1, len(heads) + 1), "layer": layer, "head": head, "note": str(dataset.attrs["note"])}
    for path in tables.values():
        write_table(pd.DataFrame(columns), path, {**run, "neuron_layer": int(dataset.attrs["neuron_layer"])})


def _labelled(table: pd.DataFrame, labels: Mapping[str, int]) -> pd.DataFrame:
    return table.assign(**labels)[[*labels, *table.columns]]


@dataclass(frozen=True)
class _Best:
    """The best neurons of tokens of a shard: little, so that they are kept until it is known which occur often.

    Attributes:
        head: Each token's, by its place among the heads.
        prompt: Each token's, counted from the shard's first.
        neuron: The most repairing first; `none` in the place of one that does not repair.
        n_prompts: Of the shard.
        none: A number that no neuron has.
    """

    head: Shaped[np.ndarray, " token"]
    prompt: Shaped[np.ndarray, " token"]
    neuron: Shaped[np.ndarray, "token best"]
    n_prompts: int
    none: int

    @classmethod
    def of_shard(cls, shard: xr.Dataset) -> "_Best":
        """In the fewest bytes, and none of them a view, which would keep all that the shard holds."""
        n_neurons, n_prompts = int(shard.attrs["n_neurons"]), int(shard.attrs["n_prompts"])
        first = np.s_[:, : max(AMONG_TOP)]
        repairs = shard["ablated_direct_effect"].values[first] > shard["direct_effect"].values[first]
        return cls(
            shard["head"].values.astype(np.uint16),
            shard["prompt"].values.astype(np.min_scalar_type(n_prompts)),
            np.where(repairs, shard["neuron"].values[first], n_neurons).astype(np.min_scalar_type(n_neurons)),
            n_prompts,
            n_neurons,
        )

    def of_head(self, row: int) -> "_Best":
        """Those of one head's tokens."""
        own = self.head == row
        return _Best(self.head[own], self.prompt[own], self.neuron[own], self.n_prompts, self.none)


class _Head:
    """What the neurons do on the tokens of one head, which come a shard at a time."""

    def __init__(self, resamples: Resamples, seed: int) -> None:
        self._resamples = resamples
        self._totals = Totals(resamples)
        self.leaders = Sample(seed)
        """The neuron that repairs most on each token, and what it does."""
        self.n_tokens = self.n_prompts = 0

    def add(self, tokens: xr.Dataset, first: int, n_prompts: int) -> None:
        """Add the head's tokens of a shard, whose prompts are ``first`` and those after it."""
        prompt = tokens["prompt"].values
        self.n_tokens += tokens.sizes["token"]
        self.n_prompts += len(np.unique(prompt))
        clean, ablated = tokens["direct_effect"].values, tokens["ablated_direct_effect"].values
        effect = np.abs(tokens["head_direct_effect"].values)[:, None, None]
        change = tokens["mlp_ablated_direct_effect"].values - tokens["mlp_direct_effect"].values
        quadrant = _quadrants_of(clean[:, 0], ablated[:, 0])
        values = {
            "share": (ablated - clean)[:, None] > np.array(SHARES_OF_EFFECT)[:, None] * effect,
            **{name: tokens[name].values for name in CURVES},
            "total_absolute_change": tokens["total_absolute_change"].values,
            "mlp_repair": change,
            "quadrant": quadrant[:, None] == np.arange(len(QUADRANTS)),
        }
        sums: dict[str, np.ndarray] = {}
        for name, of in values.items():
            sums |= _sums(name, of, prompt, n_prompts)
        self._totals.add(sums)
        of_tokens = ("mlp_direct_effect", "mlp_ablated_direct_effect", "head_direct_effect")
        self.leaders.add(
            {
                "prompt": prompt + first,
                "pos": tokens["pos"].values,
                "neuron": tokens["neuron"].values[:, 0],
                "direct_effect": clean[:, 0],
                "ablated_direct_effect": ablated[:, 0],
                "quadrant": quadrant,
                **{name: tokens[name].values for name in of_tokens},
            }
        )

    def share(self) -> pd.DataFrame:
        """How often the Nth best neuron repairs more than some share of the head's direct effect."""
        found = _mean(self._totals, "share")
        share, nth = np.indices(found.shape[1:]).reshape(2, -1)
        columns = {"share_of_effect": np.array(SHARES_OF_EFFECT)[share], "nth": nth + 1}
        return pd.DataFrame({**columns, **estimated("token_share", found.reshape(len(found), -1))})

    def concentration(self, counts: Shaped[np.ndarray, " point"], n_neurons: int) -> pd.DataFrame:
        """Cumulative shares over so many neurons, and the sums they are shares of."""
        columns = {"neurons": counts, "neuron_fraction": counts / n_neurons}
        for name in (*CURVES, "total_absolute_change", "mlp_repair"):
            columns |= estimated(name, _mean(self._totals, name))
        return pd.DataFrame(columns)

    def quadrants(self) -> pd.DataFrame:
        """Shares of tokens by what the leading neuron does."""
        return pd.DataFrame({"quadrant": list(QUADRANTS), **estimated("token_share", _mean(self._totals, "quadrant"))})

    def consistency(self, shards: Sequence[_Best]) -> pd.DataFrame:
        """How often each neuron is among those that repair most on the head's tokens, the most frequent first."""
        frames = []
        for top in (top for top in AMONG_TOP if top <= shards[0].neuron.shape[1]):
            leading = np.concatenate([best.neuron[:, :top] for best in shards])
            neurons, counts = np.unique(leading[leading != shards[0].none], return_counts=True)
            listed = neurons[np.argsort(-counts, kind="stable")][:N_LISTED]
            totals = Totals(self._resamples)
            for best in shards:
                among = (best.neuron[:, :top, None] == listed).any(1)
                totals.add(_sums("among", among, best.prompt, best.n_prompts))
            columns = {
                "top": top,
                "n_neurons": len(neurons),
                "neuron_rank": np.arange(1, len(listed) + 1),
                "neuron": listed.astype(np.int32),
            }
            frames.append(pd.DataFrame({**columns, **estimated("token_share", _mean(totals, "among"))}))
        return pd.concat(frames, ignore_index=True)


def _sums(
    name: str, values: Shaped[np.ndarray, "token *rest"], prompt: Shaped[np.ndarray, " token"], n_prompts: int
) -> dict[str, Shaped[np.ndarray, "*rest prompt"]]:
    """Sums by prompt, and how many were summed, for `_mean`; NaN are left out."""
    seen = ~np.isnan(values)
    sums, counts = np.zeros((2, n_prompts, *values.shape[1:]))
    np.add.at(sums, prompt, np.where(seen, values, 0))
    np.add.at(counts, prompt, seen)
    return {name: np.moveaxis(sums, 0, -1), f"{name} counted": np.moveaxis(counts, 0, -1)}


def _mean(totals: Totals, name: str) -> Shaped[np.ndarray, "resample *rest"]:
    return ratio(totals[name], totals[f"{name} counted"])


def _quadrants_of(
    clean: Shaped[np.ndarray, " token"], ablated: Shaped[np.ndarray, " token"]
) -> Shaped[np.ndarray, " token"]:
    """Places in `QUADRANTS`."""
    names = ["no_repair", "anti_erasure", "negative_to_positive", "more_positive"]
    of_name = [list(QUADRANTS).index(name) for name in names]
    conditions = [ablated <= clean, (clean < 0) & (ablated <= 0), clean < 0]
    return np.select(conditions, of_name[:-1], of_name[-1]).astype(np.uint8)
