"""The residual stream moved one layer down: what the heads of a layer write when they read the input of the layer before."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfrepair.engine.clean import CleanRun, Directions, head_direct_effects, project
from selfrepair.engine.heads import Heads
from selfrepair.engine.proof import PlainPrompt, Proof, plain_run, replaced_attention_input
from selfrepair.engine.single_attention import Attentions
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import Shard


def measure_moved_residual(shard: Shard, *, heads: Heads, out: Path, provenance: dict[str, Any]) -> None:
    """Let the attention after each head read the residual one layer earlier, on a shard.

    Args:
        shard: With thresholds.
        heads: The (layer, head) pairs.
        out: HDF5 file: moved_change [head, prompt, next_head], summed over the head's top tokens; layer and head_index.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    selected = shard.top_tokens(heads)
    attentions = Attentions(shard.model, shard.tokens.shape[1])
    parts = [
        moved_changes(attentions, batch.tokens, batch.clean, heads, selected[:, batch.rows])
        for batch in shard.batches("moved residual")
    ]
    changes = np.concatenate(parts, axis=1)
    proof = shard.proof("changes by a moved residual")
    prove_moved(proof, shard.tokens, heads, selected, changes)
    attrs = {"coordinates": "layer head_index", **proof.attrs()}
    with write_hdf5(out, kind="moved_residual", provenance=provenance, attrs=attrs) as file:
        file.dims(head=len(heads), prompt=len(shard.tokens), next_head=shard.model.n_heads)
        file.put("layer", ("head",), np.array([layer for layer, _ in heads]))
        file.put("head_index", ("head",), np.array([head for _, head in heads]))
        file.put(
            "moved_change",
            ("head", "prompt", "next_head"),
            changes,
            units="logits",
            description="change of each next head's direct effect, summed over the head's top tokens",
        )


def moved_changes(
    attentions: Attentions,
    tokens: Tensor,
    clean: CleanRun,
    heads: Sequence[tuple[int, int]],
    selected: Bool[np.ndarray, "head prompt predicted"],
) -> Float[np.ndarray, "head prompt next_head"]:
    """Change of the direct effect of every head of the next layer when its attention reads ``resid_pre`` of the layer before.

    Args:
        attentions: Of the model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        heads: The (layer, head) pairs whose next layer is looked at.
        selected: Tokens that are summed over, for each of them.

    Returns:
        In logits, summed over the selected tokens of each prompt, float64; NaN for heads of the last layer.
    """
    model = attentions.model
    changes = np.full((len(heads), tokens.shape[0], model.n_heads), np.nan)
    scaled = Directions.of(model, tokens).d / clean.scale[..., None]
    for layer in sorted({layer for layer, _ in heads} - {model.n_layers - 1}):
        after = layer + 1
        with torch.inference_mode():
            z = attentions.z(after, clean.resid_pre[layer])[:, :-1] - model.value_constant[after]
            projected = project(model, after, scaled, clean.postnorm_scale("attention", after))
            change = head_direct_effects(z, projected) - clean.head_direct_effect[after]
        values = change.cpu().numpy().astype(float)
        for row, (of, _) in enumerate(heads):
            if of == layer:
                changes[row] = np.einsum("pth,pt->ph", values, selected[row])
    return changes


def prove_moved(
    proof: Proof,
    tokens: Int[Tensor, "prompt pos"],
    heads: Sequence[tuple[int, int]],
    selected: Bool[np.ndarray, "head prompt predicted"],
    found: Float[np.ndarray, "head prompt next_head"],
) -> None:
    """Repeat one head's `moved_changes` in one prompt by a plain run.

    Args:
        proof: Where it is counted.
        tokens: Token ids of the shard's prompts.
        heads: The (layer, head) pairs.
        selected: Tokens that are summed over, for each of them.
        found: What `moved_changes` gives.

    Raises:
        ValueError: A difference beyond rounding.
    """
    model = proof.model
    followed = np.array([layer < model.n_layers - 1 for layer, _ in heads])
    candidates = np.argwhere(selected.any(-1) & followed[:, None])
    if not len(candidates):
        return
    row, prompt = proof.rng.choice(candidates).tolist()
    layer, head = heads[row]
    made, summed = [], torch.zeros(())
    of_prompt, wanted = PlainPrompt(model, tokens[prompt]), torch.from_numpy(selected[row, prompt]).to(model.device)
    for plain in of_prompt.both:
        with torch.inference_mode():
            with model.running(plain.exact):
                hidden = model.read_by_attention(layer + 1, plain.clean.run.resid[layer][None])[0]
            edit = replaced_attention_input(model, layer + 1, hidden)
            run = plain_run(model, tokens[prompt], [edit], until=layer + 1, exact=plain.exact)
            moved = plain.head_effects(run, layer + 1)
            made.append((moved - plain.clean.heads[layer + 1])[wanted].sum(0))
            summed = (plain.clean.sizes + moved.abs().sum(1))[wanted].sum()
    change, *rounded = made
    proof.compare(f"moved_change of head (layer {layer}, head {head})", found[row, prompt], change, summed, *rounded)
    proof.ablations += 1
