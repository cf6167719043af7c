"""The final norm with its scale really frozen: what ablation does to the logit when the norm divides by the clean scale.

The closed form (docs/definitions.md, Effects) takes the LayerNorm part off the logit change. Here the ablated final residual
goes through the model's own final norm, made to divide by the clean scale, and through its own unembedding. The two must agree.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.batches import group_by_layer
from selfrepair.engine.clean import prompt_chunks
from selfrepair.engine.proof import Proof, Repeated, correct_logits, repeat_heads
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.rounding import repeated_tolerance
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.ablations import (
    Replacement,
    check_heads,
    constant_replacement,
    layers_run,
    plain_replacements,
)
from selfrepair.measure.activations import open_activations
from selfrepair.measure.mean_activations import read_mean_activations
from selfrepair.measure.thresholds import read_selected
from selfrepair.measure.tokens import read_shard
from selfrepair.model.calls import hooked
from selfrepair.model.loading import load_model
from selfrepair.model.model import Model
from selfrepair.quantities import QUANTITIES
from selfrepair.workflow.progress import Progress

NAME = "frozen_layernorm_logit_change"
UNEMBED_AT_ONCE = 256
"""Tokens that are unembedded at a time: their logits over the whole vocabulary are the largest thing in memory."""


@contextmanager
def frozen_scale(model: Model, scale: Float[Tensor, "*batch"]) -> Iterator[None]:
    """Let the model's own final norm divide by ``scale`` instead of by its input's.

    Args:
        model: The model.
        scale: What the norm divides its input [*batch, d_model] by.
    """
    norm = model.final_norm

    def divide(_: nn.Module, args: tuple[Any, ...], __: Tensor) -> Tensor:
        resid = args[0]
        centred = resid - resid.mean(-1, keepdim=True) if norm.centred else resid
        return norm.weight * (centred / scale[..., None]) + norm.bias

    with hooked(lambda: [model.final_norm_module.register_forward_hook(divide)]):
        yield


def own_correct_logit(
    model: Model, resid: Float[Tensor, "token d_model"], targets: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Correct logits by the model's own final norm and unembedding, in logits; centred over the vocabulary if the model's are.

    Args:
        model: The model.
        resid: Final residuals [token, d_model].
        targets: Correct tokens [token].
    """
    unembed = model.hf.get_output_embeddings()
    parts = []
    # The norm sees all tokens at once, as a frozen scale has one number for each of them.
    normed = model.final_norm_module(resid)
    for some in torch.arange(len(targets)).split(UNEMBED_AT_ONCE):
        logits = unembed(normed[some])
        correct = logits.gather(-1, targets[some, None])[:, 0]
        parts.append(correct - logits.mean(-1) if model.center_unembed else correct)
    return torch.cat(parts)


def frozen_layernorm_change(
    replay: SuffixReplay,
    tokens: Int[Tensor, "prompt pos"],
    layer: int,
    heads: list[int],
    replacement: Float[Tensor, "prompt pos head d_head"],
    selected: Bool[Tensor, "row prompt predicted"],
) -> tuple[Float[Tensor, "row prompt predicted"], Float[Tensor, "row prompt predicted"]]:
    """The logit change of each head's ablation with the final scale frozen at its clean value.

    Args:
        replay: Of the prompts.
        tokens: Their token ids [prompt, pos].
        layer: The heads' layer.
        heads: Head indices.
        replacement: What takes the place of the layer's ``z``.
        selected: The tokens wanted of each head [len(heads), prompt, pos-1].

    Returns:
        frozen_layernorm_logit_change [len(heads), prompt, pos-1] and what it may differ from the closed form by, in logits; NaN
        where a token is not wanted.
    """
    model, clean = replay.model, replay.clean
    targets = tokens[:, 1:].to(model.device)
    change, rounding = (torch.full(selected.shape, torch.nan, dtype=model.dtype, device=model.device) for _ in range(2))
    for batch, resid in replay.ablated_residuals(layer, heads, replacement, selected):
        assert batch.prompts is not None
        pair, pos = torch.nonzero(batch.of_selection(selected)[0], as_tuple=True)
        row, prompt = torch.tensor(batch.rows)[pair], torch.tensor(batch.prompts)[pair]
        with torch.inference_mode(), frozen_scale(model, clean.scale[prompt, pos]):
            frozen = own_correct_logit(model, resid[0, pair, pos], targets[prompt, pos])
            change[row, prompt, pos] = frozen - clean.correct_logit[prompt, pos]
            along = replay.d_length[prompt, pos] + model.offset_length / clean.scale[prompt, pos]
            summed = replay.effect_sizes[prompt, pos] + resid[0, pair, pos].norm(dim=-1) * along
            rounding[row, prompt, pos] = repeated_tolerance(model) * summed
    return change, rounding


def freeze_layernorm(
    *,
    model_manifest: Path,
    tokens: Path,
    activations: Path,
    thresholds: Path,
    mean_activations: Path | None,
    out: Path,
    prompts: tuple[int, int],
    kind: str,
    heads: list[tuple[int, int]],
    compute: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Ablate heads on a shard with the final scale frozen, at their top tokens, and write what that does to the logit.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        activations: The shard's activations file.
        thresholds: Top tokens of each head.
        mean_activations: Averages of z; wanted for kind "mean".
        out: HDF5 file: frozen_layernorm_logit_change [head, prompt, pos], and rounding, what it may differ from the closed form
            by; NaN at other tokens.
        prompts: First prompt of the shard, and the one after its last.
        kind: "resample", "mean" or "zero".
        heads: The (layer, head) pairs.
        compute: device, dtype, center_unembed.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    model = load_model(model_manifest.parent, **compute)
    chosen = check_heads(model, heads)
    index = {pair: row for row, pair in enumerate(chosen)}
    shard = read_shard(tokens, slice(*prompts))
    selected = torch.from_numpy(read_selected(thresholds, chosen, slice(*prompts)))
    mean_z = None
    if mean_activations is not None:
        mean_z = torch.from_numpy(read_mean_activations(mean_activations)).to(model.device)
    ids = torch.from_numpy(shard.tokens).long()
    dtype = torch.zeros(0, dtype=model.dtype).numpy().dtype
    change, rounding = np.full(selected.shape, np.nan, dtype), np.full(selected.shape, np.nan, dtype)
    chunks = prompt_chunks(model, *ids.shape)
    proof = Proof(model, "logit changes with the final scale frozen", seed=prompts[0])
    repeated = proof.choose(selected.any(-1).numpy(), layers_run(model, chosen))
    with (
        open_activations(activations, model) as cached,
        Progress(len(chunks) * len(chosen), f"{kind} ablation with the final scale frozen", "head") as bar,
    ):
        for chunk in chunks:
            replay = SuffixReplay(model, ids[chunk], cached.clean_run(chunk))
            if kind == "resample":
                replacement: Replacement = partial(cached.donor_z, donors=shard.donors[chunk])
            else:
                replacement = constant_replacement(model, kind, ids[chunk].shape, mean_z)
            for layer, of_layer in group_by_layer(chosen).items():
                rows = [index[layer, head] for head in of_layer]
                wanted = selected[rows][:, chunk]
                found = frozen_layernorm_change(replay, ids[chunk], layer, of_layer, replacement(layer), wanted)
                change[rows, chunk], rounding[rows, chunk] = (each.cpu().numpy() for each in found)
                bar.advance(len(of_layer))
            donors = shard.donor_tokens(chunk) if kind == "resample" else None
            again = plain_replacements(model, kind, donors, mean_z)
            within = proof.within(repeated, chunk)
            prove_frozen(proof, repeat_heads(proof, within, chosen, ids[chunk], again), change[:, chunk])
    quantity = QUANTITIES[NAME]
    dataset = xr.Dataset(
        {
            NAME: (("head", "prompt", "pos"), change, {"units": quantity.unit, "description": quantity.description}),
            "rounding": (
                ("head", "prompt", "pos"),
                rounding,
                {"units": "logits", "description": "what it may differ from the closed form by"},
            ),
        },
        coords={
            "layer": ("head", np.array([layer for layer, _ in chosen])),
            "head_index": ("head", np.array([head for _, head in chosen])),
        },
    )
    attrs = {"ablation": kind, "coordinates": "layer head_index", **proof.attrs()}
    with write_hdf5(out, kind="frozen_layernorm", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset, chunk={"head": 1, "prompt": 1})


def prove_frozen(proof: Proof, repeated: Iterable[Repeated], found: Float[np.ndarray, "head prompt predicted"]) -> None:
    """Hold `frozen_layernorm_change` against plain runs: what the model's own norm gives is multiplied by s' / s.

    Args:
        proof: Where it is counted.
        repeated: From `selfrepair.engine.proof.repeat_heads`.
        found: frozen_layernorm_logit_change.

    Raises:
        ValueError: A difference beyond rounding.
    """
    model = proof.model
    for each in repeated:
        clean, ablated = each.of.clean, each.effects.seen
        with torch.inference_mode():
            bias = model.final_norm.bias
            frozen = (ablated.normed - bias) * (ablated.scale / clean.scale)[:, None] + bias
            wanted = correct_logits(model, frozen, each.of.tokens) - clean.logit
        proof.compare(f"{NAME} {each.where}", found[each.row, each.prompt], wanted, each.effects.summed)
