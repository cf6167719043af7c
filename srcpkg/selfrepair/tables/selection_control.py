"""Control: how far self-repair on top tokens owes to how they are chosen.

Tokens picked by a noisy quantity are those where the noise happens to be large, and what is measured with the same noise is
then too large as well (regression to the mean). Here each head's self-repair is measured on as many tokens picked in other
ways, one of which shares no donor with the measurement.
"""

import math
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from selfrepair.files.hdf5 import open_shards
from selfrepair.files.sealed import writing
from selfrepair.files.tables import read_settings, write_table
from selfrepair.measure.largest import Largest
from selfrepair.measure.thresholds import open_top_tokens
from selfrepair.tables.columns import relative_depth
from selfrepair.tables.counted_tokens import read_ablations
from selfrepair.tables.statistics import (
    Resamples,
    Totals,
    mean_over_heads,
    pooled_fraction,
    prompt_sums,
    ratio,
    with_interval,
)

CHOICES = ("top", "absolute", "removed", "other_donor", "random")
"""Tokens picked by direct effect; by its size; by the effect that ablation removes, with the donor that is measured or with
another; at random."""

ORDERED = ("direct_effect", "ablated_direct_effect", "other_donor")
"""What tokens are picked by; the last is the ablated direct effect with another donor."""
EFFECTS = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair")
COMPARED = ("self_repair", "pooled_repair_fraction", "repair_slope")
"""What is also given as a difference from the top tokens, resample by resample."""


class Choices:
    """For each head as many tokens as its top tokens, picked in each of the ways of `CHOICES`.

    Tokens come a shard at a time: some passes over all shards with `look`, each ended by `narrow`, then one with `pick`.

    Args:
        first_position: Positions before this one are not picked.
        seed: Of the random choice.
    """

    def __init__(self, first_position: int, seed: int) -> None:
        self._first_position, self._seed = first_position, seed
        self._largest = {choice: Largest() for choice in CHOICES[1:]}

    def look(self, tokens: Mapping[str, Float[np.ndarray, "head prompt predicted"]], first: int) -> None:
        """Look at a shard.

        Args:
            tokens: The quantities of `ORDERED`, logits.
            first: The shard's first prompt.
        """
        for choice, values in self._order(tokens, first):
            self._largest[choice].look(values.reshape(len(values), -1))

    def narrow(self, count: int) -> bool:
        """End a pass; whether another is needed.

        Args:
            count: Top tokens of a head.
        """
        more = [largest.narrow(count) for largest in self._largest.values()]
        return any(more)

    def pick(
        self,
        tokens: Mapping[str, Float[np.ndarray, "head prompt predicted"]],
        first: int,
        top: Bool[np.ndarray, "head prompt predicted"],
    ) -> dict[str, Bool[np.ndarray, "head prompt predicted"]]:
        """The picked tokens of a shard, by choice.

        Args:
            tokens: As for `look`.
            first: The shard's first prompt.
            top: The heads' top tokens.
        """
        picked = {"top": top}
        for choice, values in self._order(tokens, first):
            found = self._largest[choice].pick(values.reshape(len(values), -1))
            picked[choice] = np.zeros_like(top)
            picked[choice][..., self._first_position :] = found.reshape(values.shape)
        return picked

    def _order(self, tokens: Mapping[str, np.ndarray], first: int) -> Iterator[tuple[str, np.ndarray]]:
        """By choice, what the tokens are picked by."""
        effect, own, other = (tokens[name][..., self._first_position :] for name in ORDERED)
        # The same numbers in every pass.
        rng = np.random.default_rng([self._seed, first])
        yield "absolute", np.abs(effect)
        yield "removed", effect - own
        yield "other_donor", effect - other
        yield "random", rng.random(effect.shape, dtype=effect.dtype.type)


def choice_sums(
    tokens: Mapping[str, Float[np.ndarray, "head prompt predicted"]],
    picked: Bool[np.ndarray, "head prompt predicted"],
) -> dict[str, Float[np.ndarray, "head prompt"]]:
    """Sums over picked tokens of the effects, of the removed effect squared, and of it times self-repair.

    Args:
        tokens: The quantities of `EFFECTS`, logits.
        picked: The tokens.
    """
    values = {name: tokens[name].astype(np.float64) for name in EFFECTS}
    removed = values["direct_effect"] - values["ablated_direct_effect"]
    products = {"removed_squared": removed**2, "removed_times_repair": removed * values["self_repair"]}
    return prompt_sums({**values, **products}, picked)


def over_heads(by_head: Mapping[str, Float[np.ndarray, "resample head"]]) -> dict[str, Float[np.ndarray, " resample"]]:
    """Means over heads of the effects; of their sums, the pooled repair fraction and the repair slope.

    The slope is that of the line through the origin that fits self-repair to the removed effect, over tokens: unlike the pooled
    fraction it is defined where effects of both signs cancel.

    Args:
        by_head: Means over tokens of what `choice_sums` adds up.
    """
    means = {name: mean_over_heads(values) for name, values in by_head.items()}
    return {
        **{name: means[name] for name in EFFECTS},
        "pooled_repair_fraction": pooled_fraction(means),
        "repair_slope": ratio(means["removed_times_repair"], means["removed_squared"]),
    }


def tabulate_selection_control(
    *,
    heads_table: Path,
    ablations: Sequence[Path],
    other_donor: Sequence[Path],
    thresholds: Path,
    layers_out: Path,
    model_out: Path,
) -> None:
    """Write self-repair on tokens picked in several ways, by layer and over the model.

    Args:
        heads_table: Table "heads" of the same ablations.
        ablations: Ablations files of all tokens, in the order of their prompts.
        other_donor: Files of `selfrepair.measure.other_donor.measure_other_donor`, in the same order.
        thresholds: Top tokens of each head.
        layers_out: Parquet file, a row a choice and layer; a CSV is written beside it.
        model_out: Parquet file, a row a choice.
    """
    run = read_settings(heads_table)
    first_position, seed = run["first_position"], run["bootstrap_seed"]
    with open_top_tokens(thresholds) as top:
        count = top.n_top
    choices, resamples = Choices(first_position, seed), Resamples.of_run(run)
    totals = {choice: Totals(resamples) for choice in CHOICES}
    with writing(layers_out):
        layers_out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=layers_out.parent) as handle:
        copy = _Copy(handle, layers_out)
        others = open_shards(other_donor, "other_donor")
        for shard, (other, _) in zip(read_ablations(ablations, thresholds, first_position), others, strict=True):
            layer, head = np.array(shard.heads).T
            tokens = {name: shard.dataset[name].values for name in EFFECTS}
            tokens["other_donor"] = other["ablated_direct_effect"].values[layer, head]
            choices.look(tokens, shard.first)
            copy.add(shard.first, {**tokens, "top": shard.counted["top"]})
        while choices.narrow(count):
            for first, tokens in copy.shards(ORDERED):
                choices.look(tokens, first)
        for first, tokens in copy.shards((*EFFECTS, "other_donor", "top")):
            for choice, picked in choices.pick(tokens, first, tokens["top"]).items():
                totals[choice].add(choice_sums(tokens, picked))
    names = (*EFFECTS, "removed_squared", "removed_times_repair")
    by_head = {choice: {name: of.mean(name) for name in names} for choice, of in totals.items()}

    def of_heads(inside: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        return {choice: over_heads({name: of[:, inside] for name, of in by.items()}) for choice, by in by_head.items()}

    table: list[dict[str, object]] = []
    layers = np.unique(layer)
    for at, depth in zip(layers.tolist(), relative_depth(layers, run["n_layers"]).tolist(), strict=True):
        inside = layer == at
        common = {"layer": at, "relative_depth": depth, "n_heads": int(inside.sum())}
        table += [{**common, **row} for row in _rows(of_heads(inside))]
    write_table(pd.DataFrame(table), layers_out, run)
    table = [{"n_heads": len(layer), **row} for row in _rows(of_heads(layer >= 0))]
    write_table(pd.DataFrame(table), model_out, run)


class _Copy:
    """Arrays of all shards in one file: a shard is opened once, and looked at as often as it takes.

    Args:
        handle: Of an empty file.
        out: The result, for errors.
    """

    def __init__(self, handle: IO[bytes], out: Path) -> None:
        self._handle, self._out = handle, out
        self._shards: list[tuple[int, int, int]] = []
        """First prompt of each, how many it has, and where it begins."""
        self._like: dict[str, np.ndarray] = {}
        """Arrays of no prompts."""

    def add(self, first: int, arrays: Mapping[str, Shaped[np.ndarray, "head prompt predicted"]]) -> None:
        """Add a shard's arrays, of the same names, heads, positions and types each time.

        Args:
            first: The shard's first prompt.
            arrays: By name.

        Raises:
            ValueError: The system refuses to write.
        """
        self._like = {name: values[:, :0].copy() for name, values in arrays.items()}
        self._shards.append((first, next(iter(arrays.values())).shape[1], self._handle.tell()))
        for values in arrays.values():
            with writing(self._out, values.nbytes):
                self._handle.write(np.ascontiguousarray(values).data)

    def shards(
        self, names: Collection[str]
    ) -> Iterator[tuple[int, dict[str, Shaped[np.ndarray, "head prompt predicted"]]]]:
        """Each shard's first prompt and some of its arrays."""
        with writing(self._out):
            self._handle.flush()
        for first, n_prompts, place in self._shards:
            arrays = {}
            for name, like in self._like.items():
                n_heads, _, length = like.shape
                shape = (n_heads, n_prompts, length)
                if name in names:
                    self._handle.seek(place)
                    content = self._handle.read(math.prod(shape) * like.itemsize)
                    arrays[name] = np.frombuffer(content, like.dtype).reshape(shape)
                place += math.prod(shape) * like.itemsize
            yield first, arrays


def _rows(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for choice, values in found.items():
        differences = {f"{name}_minus_top": values[name] - found["top"][name] for name in COMPARED}
        rows.append({"choice": choice, **with_interval(values), **with_interval(differences)})
    return rows
