"""Direct effects with another donor than the run's own, which need no run: what of a top token's effect is the donor's.

A prompt's donors are the next prompts of its shard, in a ring (docs/definitions.md, Ablations); this one follows them.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from selfrepair.engine.clean import CleanRun, Directions, head_direct_effects, project
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import Shard
from selfrepair.measure.tokens import assign_donors
from selfrepair.model.model import Model


def ablated_direct_effect(
    model: Model,
    tokens: Tensor,
    clean: CleanRun,
    layer: int,
    replacement: Float[Tensor, "prompt pos head d_head"],
) -> Float[Tensor, "prompt predicted head"]:
    """Ablated direct effect of every head of a layer: ``replacement`` as its ``z``, projected; nothing is run.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run, whose scale is used.
        layer: The layer.
        replacement: What takes the place of ``z``.

    Returns:
        Logits [prompt, pos-1, head].
    """
    scaled = Directions.of(model, tokens).d / clean.scale[..., None]
    projected = project(model, layer, scaled, clean.postnorm_scale("attention", layer))
    return head_direct_effects(replacement[:, :-1] - model.value_constant[layer], projected)


def measure_other_donor(shard: Shard, *, out: Path, provenance: dict[str, Any]) -> None:
    """Write every head's ablated direct effect with another donor: the prompt that follows the run's donors in the ring.

    Args:
        shard: The shard.
        out: HDF5 file: ablated_direct_effect [layer, head, prompt, predicting_pos], logits.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The shard holds no prompt but donors of the run.
    """
    model, (n_prompts, length) = shard.model, shard.tokens.shape
    other = assign_donors(n_prompts, n_prompts, shard.donors.shape[1] + 1)[:, -1:]
    with write_hdf5(out, kind="other_donor", provenance=provenance) as file:
        file.dims(layer=model.n_layers, head=model.n_heads, prompt=n_prompts, predicting_pos=length - 1)
        effects = file.variable(
            "ablated_direct_effect",
            ("layer", "head", "prompt", "predicting_pos"),
            shard.dtype,
            chunk={"layer": 1, "prompt": 1},
            units="logits",
            description="o' . d / s of each head with the donor after the run's own",
        )
        for batch in shard.batches("another donor", "layer", model.n_layers):
            for layer in range(model.n_layers):
                with torch.inference_mode():
                    z = shard.cached.donor_z(layer, other[batch.rows])
                    found = ablated_direct_effect(model, batch.tokens, batch.clean, layer, z)
                effects[layer, :, batch.rows] = found.movedim(-1, 0).cpu().numpy()
                batch.progress.advance()
