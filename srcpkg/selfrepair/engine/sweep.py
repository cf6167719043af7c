"""Heads ablated one at a time on prompts whose clean run is known, with every quantity of docs/definitions.md."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from selfrepair.engine.batches import Batch
from selfrepair.engine.clean import CleanRun
from selfrepair.engine.heads import Heads, group_by_layer
from selfrepair.engine.replacements import Replacement
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.rounding import identity_tolerance
from selfrepair.model.model import Model
from selfrepair.quantities import PARTS, QUANTITIES, held
from selfrepair.workflow.progress import Progress


@runtime_checkable
class Keeper(Protocol):
    """Keeps what a sweep has finished, a layer at a time."""

    def take(self, layer: int) -> Mapping[str, np.ndarray] | None:
        """What was found of a layer's heads before, by name [head, prompt, ...]; None where it has to be found."""

    def finished(self, layer: int, rows: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Be told that a layer's heads are finished: rows of ``arrays``, which stay as they are from now on."""


def sweep(
    model: Model,
    tokens: Tensor,
    clean: CleanRun,
    replacement: Replacement,
    heads: Heads,
    progress: Progress,
    selected: np.ndarray | None = None,
    only_selected: bool = False,
    keeper: Keeper | None = None,
) -> xr.Dataset:
    """Ablate each head alone on some prompts whose clean run is known.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        replacement: Gives, for a layer, what takes the place of ``z`` [prompt, pos, head, d_head].
        heads: The (layer, head) pairs.
        progress: Told of every finished head.
        selected: Boolean [head, prompt, pos-1]; adds each head's repair by every component, summed over these tokens
            of each prompt.
        only_selected: Compute nothing that these tokens do not need; values of other tokens are NaN.
        keeper: Asked for each layer before it is swept, and told of it after.

    Returns:
        As `ablate_heads`; with ``selected`` also repair_by_head [head, prompt, by_layer, by_head] and repair_by_mlp
        [head, prompt, by_layer], logits, and the number of tokens summed over, n_selected [head, prompt].

    Raises:
        ValueError: The identity of the parts does not hold.
    """
    replay = SuffixReplay(model, tokens, clean)
    index = {pair: row for row, pair in enumerate(heads)}
    shape = (len(heads), tokens.shape[0], tokens.shape[1] - 1)
    dtype = torch.zeros(0, dtype=model.dtype).numpy().dtype
    values = {name: np.full(shape, np.nan, dtype) for name in (*model.quantities, "ablated_scale")}
    sums = {
        "repair_by_head": np.zeros((*shape[:2], model.n_layers, model.n_heads), dtype),
        "repair_by_mlp": np.zeros((*shape[:2], model.n_layers), dtype),
    }
    filled = {**values, **sums}
    for layer, of_layer in group_by_layer(heads).items():
        rows = np.array([index[layer, head] for head in of_layer])
        if keeper is not None and (before := keeper.take(layer)) is not None:
            for name, value in filled.items():
                value[rows] = before[name]
            progress.skip(len(of_layer))
            continue
        mask = torch.from_numpy(np.ones(shape, bool)[rows] if selected is None else selected[rows])
        run = replay.ablate_selected if only_selected else replay.ablate
        for batch, result in run(layer, of_layer, replacement(layer), mask):
            here = rows[batch.rows]
            found = {name: value.cpu().numpy() for name, value in result.values.items()}
            found["ablated_scale"] = result.ablated_scale.cpu().numpy()
            check_identity(found, result.summed.cpu().numpy(), model)
            _place(values, found, here, batch, batch.of_selection(mask).numpy() if only_selected else None)
            for name, value in sums.items():
                of_batch = getattr(result, name).cpu().numpy()
                if batch.prompts is None:
                    value[here] = of_batch
                else:
                    value[here, batch.prompts] = of_batch[0]
        progress.advance(len(of_layer))
        if keeper is not None:
            keeper.finished(layer, rows, filled)
    dataset = _labelled(values, clean, heads)
    if selected is not None:
        attrs = {
            "units": "logits",
            "description": "repair of the ablated head, summed over its top tokens of the prompt",
        }
        for name, value in sums.items():
            dataset[name] = (("head", "prompt", "by_layer", "by_head")[: value.ndim], value, attrs)
        attrs = {"description": "top tokens of the head in the prompt"}
        dataset["n_selected"] = (("head", "prompt"), selected.sum(-1), attrs)
    return dataset


def _place(
    values: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    rows: np.ndarray,
    batch: Batch,
    wanted: np.ndarray | None,
) -> None:
    """Write a batch's results where they belong in arrays [head, prompt, pos-1]; of pairs, the wanted tokens alone."""
    for name, value in values.items():
        if batch.prompts is None:
            value[rows] = found[name]
        else:
            assert wanted is not None
            pair, pos = np.nonzero(wanted[0])
            value[rows[pair], np.array(batch.prompts)[pair], pos] = found[name][0, pair, pos]


def check_identity(values: dict[str, np.ndarray], summed: np.ndarray, model: Model) -> None:
    """Check that self_repair is the sum of its parts (`selfrepair.quantities.PARTS`) on every token.

    Args:
        values: Arrays of one shape, by quantity, in logits.
        summed: Sizes of the terms that cancel, of the same shape (`selfrepair.engine.replay.Ablated`).
        model: The model, for its rounding and its name.

    Raises:
        ValueError: A difference beyond float rounding, or values that are not finite.
    """
    off = np.abs(values["self_repair"] - sum(values[part] for part in held(PARTS, values)))
    allowed = identity_tolerance(model) * summed
    if not (off <= allowed).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(off - allowed, nan=np.inf)), off.shape)
        raise ValueError(
            f"self_repair is not the sum of its parts for {model.name}: off by {off[worst]:.3g} logits where rounding explains "
            f"{allowed[worst]:.1g}; the definitions do not cover this model, or its weights are not finite"
        )


def _labelled(values: dict[str, np.ndarray], clean: CleanRun, heads: Heads) -> xr.Dataset:
    variables: dict[str, tuple] = {name: (("head", "prompt", "pos"), value) for name, value in values.items()}
    variables["clean_scale"] = (("prompt", "pos"), clean.scale.cpu().numpy())
    dataset = xr.Dataset(
        variables,
        coords={
            "layer": ("head", np.array([layer for layer, _ in heads])),
            "head_index": ("head", np.array([head for _, head in heads])),
        },
    )
    for name in variables:
        quantity = QUANTITIES[name]
        dataset[name].attrs = {"long_name": quantity.label, "units": quantity.unit, "description": quantity.description}
    return dataset


def arrays(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """A dataset's variables as plain arrays."""
    return {str(name): variable.values for name, variable in dataset.variables.items()}
