"""Ablation of whole layers: what later components make up for when all of an attention or an MLP is another prompt's.

After McGrath et al., "The Hydra Effect: Emergent Self-repair in Language Model Computations" (2023, arXiv 2307.15771).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.engine.clean import CleanRun, output
from selfrepair.engine.proof import Edit, PlainPrompt, Proof, plain_run, prove_values, replaced_mlp, replaced_z
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.sweep import check_identity
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import PromptBatch, Shard
from selfrepair.model.calls import gives, hooked
from selfrepair.model.model import COMPONENTS, Model
from selfrepair.quantities import QUANTITIES
from selfrepair.workflow.progress import Progress

OfLayer = Callable[[int], Tensor]


def measure_layer_ablations(shard: Shard, *, out: Path, provenance: dict[str, Any]) -> None:
    """Ablate every layer's attention and every layer's MLP by resampling, on a shard.

    Args:
        shard: The shard.
        out: HDF5 file: the variables of `ablate_layers`.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    model, (n_prompts, length) = shard.model, shard.tokens.shape
    proof = shard.proof("ablations of layers")
    repeated = proof.draw(np.ones((len(COMPONENTS) * model.n_layers, n_prompts), bool), layers_run(model))
    with write_hdf5(out, kind="layer_ablations", provenance=provenance, attrs={"ablation": "resample"}) as file:
        file.dims(component=len(COMPONENTS), layer=model.n_layers, prompt=n_prompts, pos=length - 1)
        dims, chunk = ("component", "layer", "prompt", "pos"), {"component": 1, "layer": 1, "prompt": 1}
        variables = {
            name: file.variable(
                name, dims, shard.dtype, chunk=chunk, units="logits", description=QUANTITIES[name].description
            )
            for name in model.quantities
        }
        for batch in shard.batches("ablation of layers", "layer", model.n_layers):
            found = ablate_layers(
                model, batch.tokens, batch.clean, batch.replacement("resample"), _donor_mlp(batch), batch.progress
            )
            prove_layers(proof, proof.within(repeated, batch.rows), batch.tokens, batch.donor_tokens, found)
            for name, variable in variables.items():
                variable[:, :, batch.rows] = found[name]
        file.attrs(**proof.attrs())


def _donor_mlp(batch: PromptBatch) -> OfLayer:
    """Gives, for a layer, what the MLP of each prompt's donors gives, averaged [prompt, pos, d_model]."""
    rows, of_donor = np.unique(batch.donors, return_inverse=True)
    donor = batch.shard.cached.clean_run(rows)
    at = torch.from_numpy(of_donor.reshape(batch.donors.shape)).to(batch.shard.model.device)
    return lambda layer: mlp_output(batch.shard.model, layer, donor)[at].mean(1)


def layers_run(model: Model) -> np.ndarray:
    """Layers that run again for the ablation of each component of each layer, components first."""
    return np.tile(np.arange(model.n_layers, 0, -1), len(COMPONENTS))


def prove_layers(
    proof: Proof,
    drawn: Sequence[tuple[int, list[int]]],
    tokens: Int[Tensor, "prompt pos"],
    donors: Int[Tensor, "prompt donor pos"],
    found: Mapping[str, np.ndarray],
) -> None:
    """Repeat some of `ablate_layers` by plain runs.

    Args:
        proof: Where it is counted.
        drawn: Prompts, each with numbers ``component * n_layers + layer``.
        tokens: Token ids.
        donors: Token ids of each prompt's donors.
        found: What `ablate_layers` gives.

    Raises:
        ValueError: A difference beyond rounding.
    """
    model = proof.model
    for prompt, numbers in drawn:
        of_prompt, until = PlainPrompt(model, tokens[prompt]), max(number % model.n_layers for number in numbers)
        runs = {
            each.exact: [plain_run(model, donor, until=until, exact=each.exact) for donor in donors[prompt]]
            for each in of_prompt.both
        }
        for number in numbers:
            row, layer = divmod(number, model.n_layers)
            component = COMPONENTS[row]

            def edits(exact: bool, runs: Any = runs, layer: int = layer, component: str = component) -> Edit:
                if component == "mlp":
                    return replaced_mlp(model, layer, torch.stack([run.mlp[layer] for run in runs[exact]]).mean(0))
                z = torch.stack([run.z[layer] for run in runs[exact]]).mean(0)
                return replaced_z(model, layer, slice(None), z)

            plain = of_prompt.ablated(edits, layer, None, component)
            values = {name: value[row, layer, prompt] for name, value in found.items()}
            prove_values(proof, f"with the {component} of layer {layer} ablated", plain, values)
            proof.ablations += 1


def ablate_layers(
    model: Model,
    tokens: Tensor,
    clean: CleanRun,
    donor_z: OfLayer,
    donor_mlp: OfLayer,
    progress: Progress,
) -> dict[str, Float[np.ndarray, "component layer prompt predicted"]]:
    """Ablate whole attentions and whole MLPs, one at a time, at all positions.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        donor_z: Gives, for a layer, the donors' ``z`` [prompt, pos, head, d_head].
        donor_mlp: Gives, for a layer, what the donors' MLP gives [prompt, pos, d_model], before its post-norm.
        progress: Told of every finished layer.

    Returns:
        By quantity of the model, in logits, components in the order of `COMPONENTS`. The direct effect of an attention
        is that of all its heads; ``self_repair_from_*`` are changes of later components and of the final norm.

    Raises:
        ValueError: The parts do not add up.
    """
    replay = SuffixReplay(model, tokens, clean)
    shape = (len(COMPONENTS), model.n_layers, tokens.shape[0], tokens.shape[1] - 1)
    values = {name: np.zeros(shape, torch.zeros(0, dtype=model.dtype).numpy().dtype) for name in model.quantities}
    for layer in range(model.n_layers):
        with torch.inference_mode():
            own = mlp_output(model, layer, clean)
            changes = {
                "attention": torch.einsum("pthd,hdm->ptm", donor_z(layer) - clean.z[layer], model.W_O[layer]),
                "mlp": donor_mlp(layer) - own,
            }
        for row, component in enumerate(COMPONENTS):
            result = replay.ablate_layer(layer, component, changes[component], own if component == "mlp" else None)
            found = {name: value[0].cpu().numpy() for name, value in result.values.items()}
            check_identity(found, result.summed[0].cpu().numpy(), model)
            for name, value in values.items():
                value[row, layer] = found[name]
        progress.advance()
    return values


def mlp_output(model: Model, layer: int, clean: CleanRun) -> Float[Tensor, "prompt pos d_model"]:
    """What the MLP of a layer gives in a clean run, which holds no such thing: the layer is run again from its residual."""
    captured: list[Tensor] = []
    resid = clean.resid_pre[layer]
    call = model.layer_calls(resid.shape[1])[layer]

    def keep(_: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
        captured.append(output(out, resid.shape[:2]).to(model.dtype, copy=True))  # some layers add in place

    with torch.inference_mode(), model.running():
        attention = model.attention_out(layer)(clean.z[layer].flatten(-2)).to(model.dtype)
        given = gives(model.attention(layer), attention)
        with hooked(lambda: [model.mlp(layer).register_forward_hook(keep)]), given:
            call.replay(model.layers[layer], resid)
    return captured[0]
