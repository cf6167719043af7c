"""The final norm with its scale really frozen: what ablation does to the logit when the norm divides by the clean scale.

The closed form (docs/definitions.md, Effects) takes the LayerNorm part off the logit change. Here the ablated final residual
goes through the model's own final norm, made to divide by the clean scale, and through its own unembedding. The two must agree.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.heads import Heads, check_heads, group_by_layer
from selfrepair.engine.proof import Proof, Repeated, correct_logits
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.rounding import repeated_tolerance
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import Shard
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model
from selfrepair.quantities import QUANTITIES

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
        with model.running(exact=True):
            logits = model.logit_factor * unembed(normed[some])
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


def measure_frozen_layernorm(shard: Shard, *, kind: str, heads: Heads, out: Path, provenance: dict[str, Any]) -> None:
    """Ablate heads on a shard with the final scale frozen, at their top tokens, and write what that does to the logit.

    Args:
        shard: With thresholds.
        kind: "resample", "mean" or "zero".
        heads: The (layer, head) pairs.
        out: HDF5 file: frozen_layernorm_logit_change [head, prompt, pos], and rounding, what it may differ from the closed form
            by; NaN at other tokens.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    heads = check_heads(shard.model, heads)
    index = {pair: row for row, pair in enumerate(heads)}
    selected = torch.from_numpy(shard.top_tokens(heads))
    change, rounding = (np.full(selected.shape, np.nan, shard.dtype) for _ in range(2))
    what = "logit changes with the final scale frozen"
    repeats = shard.repeats(what, kind, heads, selected.any(-1).numpy())
    for batch in shard.batches(f"{kind} ablation with the final scale frozen", "head", len(heads)):
        replay, replacement = SuffixReplay(shard.model, batch.tokens, batch.clean), batch.replacement(kind)
        for layer, of_layer in group_by_layer(heads).items():
            rows = [index[layer, head] for head in of_layer]
            wanted = selected[rows][:, batch.rows]
            found = frozen_layernorm_change(replay, batch.tokens, layer, of_layer, replacement(layer), wanted)
            change[rows, batch.rows], rounding[rows, batch.rows] = (each.cpu().numpy() for each in found)
            batch.progress.advance(len(of_layer))
        prove_frozen(repeats.proof, repeats.of(batch), change[:, batch.rows])
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
            "layer": ("head", np.array([layer for layer, _ in heads])),
            "head_index": ("head", np.array([head for _, head in heads])),
        },
    )
    attrs = {"ablation": kind, "coordinates": "layer head_index", **repeats.proof.attrs()}
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
        made = []
        for clean, ablated in ((effects.seen.of.clean, effects.seen) for effects in each.effects.both):
            with torch.inference_mode():
                bias = model.final_norm.bias
                frozen = (ablated.normed - bias) * (ablated.scale / clean.scale)[:, None] + bias
                made.append(correct_logits(model, frozen, each.of.tokens) - clean.logit)
        wanted, *rounded = made
        proof.compare(f"{NAME} {each.where}", found[each.row, each.prompt], wanted, each.effects.summed, *rounded)
