"""Ablation of attention heads: every quantity of docs/definitions.md for each (head, prompt, position)."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from selfrepair.engine.batches import Batch, group_by_layer
from selfrepair.engine.clean import CleanRun, prompt_chunks, run_clean
from selfrepair.engine.proof import PlainReplacements, Proof, plain_replacement, prove_heads, repeat_heads
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.rounding import identity_tolerance
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.activations import open_activations
from selfrepair.measure.mean_activations import read_mean_activations
from selfrepair.measure.thresholds import read_selected
from selfrepair.measure.tokens import read_shard
from selfrepair.model.calls import left_as_it_was
from selfrepair.model.loading import load_model
from selfrepair.model.model import Model
from selfrepair.model.token_ids import TokenIds, token_ids
from selfrepair.quantities import ABLATION_KINDS, HEAD_TOKEN, PARTS, QUANTITIES
from selfrepair.workflow.progress import Progress

Heads = Sequence[tuple[int, int]]
Replacement = Callable[[int], Float[Tensor, "prompt pos head d_head"]]


def ablate_heads(
    model: Model,
    tokens: TokenIds,
    donors: TokenIds | None = None,
    heads: Heads | None = None,
    kind: str = "resample",
    progress: bool = False,
) -> xr.Dataset:
    """Ablate heads one at a time, at all positions, and measure what compensates.

    Args:
        model: From `selfrepair.load_model`.
        tokens: Token ids [prompt, pos], integers of any type.
        donors: Token ids [prompt, pos] of each prompt's donor; wanted for kind "resample", and for no other.
        heads: The (layer, head) pairs to ablate; None means all.
        kind: "resample" (z of the donor prompt), "mean" (z averaged over all given prompts and positions) or "zero"
            (the head writes nothing).
        progress: Show a bar on a terminal, log lines elsewhere.

    Returns:
        Dims ("head", "prompt", "pos"), pos being the predicting positions 0 .. T-2; coords layer and head_index of each
        head; variables as in docs/definitions.md, logits all but clean_scale [prompt, pos] and ablated_scale. The identity
        self_repair = from_heads + from_mlps + from_layernorm has been checked on every token.

    Raises:
        ValueError: Shapes that differ, ids outside the vocabulary, a head that does not exist, an unknown kind, or an
            identity that does not hold (a model that the definitions do not cover).
    """
    prompt_ids = token_ids(model, tokens, "tokens")
    donor_ids = _donor_ids(model, donors, prompt_ids, kind)
    chosen = check_heads(model, heads)
    chunks = prompt_chunks(model, *prompt_ids.shape)
    proof = Proof(model, f"{kind} ablations", seed=0)
    repeated = proof.choose(np.ones((len(chosen), len(prompt_ids)), bool), layers_run(model, chosen))
    parts = []
    with (
        left_as_it_was(model.hf),
        Progress(len(chunks) * len(chosen), "ablating heads", unit="head", show=progress) as bar,
    ):
        model.check_length(prompt_ids.shape[1])
        model.check_causal(prompt_ids[0])
        mean_z = mean_activation(model, [prompt_ids[chunk] for chunk in chunks]) if kind == "mean" else None
        for chunk in chunks:
            # A function of its own, so that nothing of one chunk is in memory while the next one runs.
            chunk_donors = None if donor_ids is None else donor_ids[chunk]
            part = _ablate_chunk(model, prompt_ids[chunk], chunk_donors, chosen, kind, mean_z, bar)
            of_prompt = None if chunk_donors is None else chunk_donors[:, None].numpy()
            again = plain_replacements(model, kind, of_prompt, mean_z)
            within = proof.within(repeated, chunk)
            prove_heads(proof, repeat_heads(proof, within, chosen, prompt_ids[chunk], again), arrays(part))
            parts.append(part)
    return _join(parts).assign_attrs(proof.attrs())


def _ablate_chunk(
    model: Model,
    tokens: Tensor,
    donors: Tensor | None,
    heads: Heads,
    kind: str,
    mean_z: Tensor | None,
    progress: Progress,
) -> xr.Dataset:
    if donors is None:
        replacement = constant_replacement(model, kind, tokens.shape, mean_z)
    else:
        replacement = run_clean(model, donors).z.__getitem__
    return sweep(model, tokens, run_clean(model, tokens), replacement, heads, progress)


def arrays(dataset: xr.Dataset) -> dict[str, np.ndarray]:
    """A dataset's variables as plain arrays."""
    return {str(name): variable.values for name, variable in dataset.variables.items()}


def layers_run(model: Model, heads: Heads) -> np.ndarray:
    """Layers that run again for each head's ablation [head]."""
    return np.array([model.n_layers - layer for layer, _ in heads])


def plain_replacements(
    model: Model,
    kind: str,
    donors: Int[np.ndarray, "prompt donor pos"] | None,
    mean_z: Float[Tensor, "layer head d_head"] | None,
) -> PlainReplacements:
    """What takes the place of ``z`` in plain runs of the prompts: as in the sweep, but from the donors' token ids.

    Args:
        model: The model.
        kind: "resample", "mean" or "zero".
        donors: Token ids of each prompt's donors, for "resample".
        mean_z: The mean, for "mean".
    """
    if donors is not None:
        return lambda prompt, until: plain_replacement(model, list(torch.from_numpy(donors[prompt]).long()), until)
    constant = constant_replacement(model, kind, (1, 1), mean_z)
    return lambda prompt, until: lambda layer: constant(layer)[0]


def ablate_shard(
    *,
    model_manifest: Path,
    tokens: Path,
    activations: Path,
    thresholds: Path,
    mean_activations: Path | None,
    out: Path,
    prompts: tuple[int, int],
    kind: str,
    heads: Heads | None,
    which: str,
    compute: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Ablate heads on a shard of prompts whose clean run is cached, and write what `ablate_heads` gives.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        activations: The shard's activations file.
        thresholds: Top tokens of each head; its repair by every component is summed over them.
        mean_activations: Averages of z; wanted for kind "mean".
        out: HDF5 file: the variables of `sweep`, each head's top tokens being the selected ones.
        prompts: First prompt of the shard, and the one after its last.
        kind: "resample", "mean" or "zero".
        heads: The (layer, head) pairs; None means all.
        which: "all" tokens, or only each head's "top" tokens; the others' values are NaN then.
        compute: device, dtype, center_unembed.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    model = load_model(model_manifest.parent, **compute)
    chosen = check_heads(model, heads)
    shard = read_shard(tokens, slice(*prompts))
    selected = read_selected(thresholds, chosen, slice(*prompts))
    mean_z = None
    if mean_activations is not None:
        mean_z = torch.from_numpy(read_mean_activations(mean_activations)).to(model.device)
    ids = torch.from_numpy(shard.tokens).long()
    chunks = prompt_chunks(model, *ids.shape)
    proof = Proof(model, f"{kind} ablations", seed=prompts[0])
    measured = np.asarray(selected.any(-1)) | (which != "top")
    repeated = proof.choose(measured, layers_run(model, chosen))
    parts = []
    with (
        open_activations(activations, model) as cached,
        Progress(
            len(chunks) * len(chosen), f"{kind} ablation of prompts {prompts[0]} to {prompts[1] - 1}", "head"
        ) as bar,
    ):
        for chunk in chunks:
            clean = cached.clean_run(chunk)
            if kind == "resample":
                replacement: Replacement = partial(cached.donor_z, donors=shard.donors[chunk])
            else:
                replacement = constant_replacement(model, kind, ids[chunk].shape, mean_z)
            part = sweep(model, ids[chunk], clean, replacement, chosen, bar, selected[:, chunk], which == "top")
            donors = shard.donor_tokens(chunk) if kind == "resample" else None
            again = plain_replacements(model, kind, donors, mean_z)
            found = {**arrays(part), "selected": selected[:, chunk]}
            within = proof.within(repeated, chunk)
            prove_heads(proof, repeat_heads(proof, within, chosen, ids[chunk], again), found)
            parts.append(part)
    dataset = _join(parts)
    attrs = {
        "ablation": kind,
        "tokens": which,
        "parallel_attention_mlp": int(model.parallel),
        # Tells xarray which variables label the heads.
        "coordinates": "layer head_index",
        **proof.attrs(),
    }
    with write_hdf5(out, kind="ablations", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset, chunk={"head": 1, "prompt": 1})


def check_heads(model: Model, heads: Heads | None) -> list[tuple[int, int]]:
    """The heads to ablate, all of the model's for None.

    Raises:
        ValueError: A head that the model does not have, one named twice, or none.
    """
    if heads is None:
        return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
    chosen = [(int(layer), int(head)) for layer, head in heads]
    if not chosen:
        raise ValueError("heads is empty: name at least one (layer, head), or None for all")
    for layer, head in chosen:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise ValueError(
                f"head (layer {layer}, head {head}) does not exist: {model.name} has layers 0 to {model.n_layers - 1} "
                f"and heads 0 to {model.n_heads - 1}"
            )
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"a head is named twice in {chosen}: name each once")
    return chosen


def mean_activation(model: Model, chunks: Sequence[Tensor]) -> Float[Tensor, "layer head d_head"]:
    """``z`` averaged over all prompts and positions of the given chunks of token ids [prompt, pos]."""
    total = torch.zeros(model.n_layers, model.n_heads, model.d_head, dtype=torch.float64, device=model.device)
    for chunk in chunks:
        for layer, z in enumerate(run_clean(model, chunk).z):
            total[layer] += z.sum((0, 1), dtype=torch.float64)
    return (total / sum(chunk.numel() for chunk in chunks)).to(model.dtype)


def constant_replacement(
    model: Model, kind: str, shape: Sequence[int], mean_z: Float[Tensor, "layer head d_head"] | None
) -> Replacement:
    """What takes the place of z in "mean" and "zero" ablation: the same at every one of ``shape`` = [prompt, pos]."""
    if kind == "mean" and mean_z is not None:
        constant = mean_z
    elif kind == "zero":
        constant = model.value_constant
    else:
        raise ValueError(f"no constant takes the place of z in {kind!r} ablation without its mean")
    return lambda layer: constant[layer].expand(*shape, -1, -1)


def sweep(
    model: Model,
    tokens: Tensor,
    clean: CleanRun,
    replacement: Replacement,
    heads: Heads,
    progress: Progress,
    selected: np.ndarray | None = None,
    only_selected: bool = False,
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

    Returns:
        As `ablate_heads`; with ``selected`` also repair_by_head [head, prompt, by_layer, by_head] and repair_by_mlp
        [head, prompt, by_layer], logits, and the number of tokens summed over, n_selected [head, prompt].

    Raises:
        ValueError: The identity of the three parts does not hold.
    """
    replay = SuffixReplay(model, tokens, clean)
    index = {pair: row for row, pair in enumerate(heads)}
    shape = (len(heads), tokens.shape[0], tokens.shape[1] - 1)
    dtype = torch.zeros(0, dtype=model.dtype).numpy().dtype
    values = {name: np.full(shape, np.nan, dtype) for name in (*HEAD_TOKEN, "ablated_scale")}
    sums = {
        "repair_by_head": np.zeros((*shape[:2], model.n_layers, model.n_heads), dtype),
        "repair_by_mlp": np.zeros((*shape[:2], model.n_layers), dtype),
    }
    for layer, of_layer in group_by_layer(heads).items():
        rows = np.array([index[layer, head] for head in of_layer])
        mask = torch.from_numpy(np.ones(shape, bool)[rows] if selected is None else selected[rows])
        run = replay.ablate_selected if only_selected else replay.ablate
        for batch, result in run(layer, of_layer, replacement(layer), mask):
            here = rows[batch.rows]
            found = {name: getattr(result, name).cpu().numpy() for name in values if name != "self_repair"}
            found["self_repair"] = found["logit_change"] - (found["ablated_direct_effect"] - found["direct_effect"])
            check_identity(found, result.summed.cpu().numpy(), model)
            _place(values, found, here, batch, batch.of_selection(mask).numpy() if only_selected else None)
            for name, value in sums.items():
                of_batch = getattr(result, name).cpu().numpy()
                if batch.prompts is None:
                    value[here] = of_batch
                else:
                    value[here, batch.prompts] = of_batch[0]
        progress.advance(len(of_layer))
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
    """Check self_repair = from_heads + from_mlps + from_layernorm on every token.

    Args:
        values: Arrays of one shape, by quantity, in logits.
        summed: Sizes of the terms that cancel, of the same shape (`selfrepair.engine.replay.Ablated`).
        model: The model, for its rounding and its name.

    Raises:
        ValueError: A difference beyond float rounding, or values that are not finite.
    """
    off = np.abs(values["self_repair"] - sum(values[part] for part in PARTS))
    allowed = identity_tolerance(model) * summed
    if not (off <= allowed).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(off - allowed, nan=np.inf)), off.shape)
        raise ValueError(
            f"self_repair is not the sum of its parts for {model.name}: off by {off[worst]:.3g} logits where rounding explains "
            f"{allowed[worst]:.1g}; the definitions do not cover this model, or its weights are not finite"
        )


def _join(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets of successive prompts as one."""
    return xr.concat(parts, dim="prompt", data_vars="minimal", coords="minimal", compat="override", join="override")


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


def _donor_ids(model: Model, donors: TokenIds | None, tokens: Tensor, kind: str) -> Tensor | None:
    if kind not in ABLATION_KINDS:
        raise ValueError(f"kind is {kind!r}; wanted one of {', '.join(ABLATION_KINDS)}")
    if kind != "resample":
        if donors is not None:
            raise ValueError(f"donors are given, but {kind!r} ablation takes none: leave them out, or use 'resample'")
        return None
    if donors is None:
        raise ValueError("kind 'resample' wants donors: the donor prompts' token ids, of the shape of tokens")
    ids = token_ids(model, donors, "donors")
    if ids.shape != tokens.shape:
        raise ValueError(
            f"donors have shape {tuple(ids.shape)}, tokens {tuple(tokens.shape)}: wanted one donor a prompt"
        )
    return ids
