"""Heads ablated with other donors than the run's own: what of a result is the donor's, and what the token's.

A prompt's donors are the next prompts of its shard, in a ring (docs/definitions.md, Ablations); further ones follow on.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from selfrepair.engine.clean import CleanRun, Directions, head_direct_effects, project, prompt_chunks
from selfrepair.engine.proof import Proof, prove_heads, repeat_heads
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.ablations import arrays, check_heads, layers_run, plain_replacements, sweep
from selfrepair.measure.activations import open_activations
from selfrepair.measure.thresholds import read_selected
from selfrepair.measure.tokens import Prompts, assign_donors, read_shard
from selfrepair.model.loading import load_model
from selfrepair.model.model import Model
from selfrepair.quantities import HEAD_TOKEN
from selfrepair.workflow.progress import Progress


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
    return head_direct_effects(replacement[:, :-1] - model.value_constant[layer], project(model, layer, scaled))


def project_other_donor(
    *,
    model_manifest: Path,
    tokens: Path,
    activations: Path,
    out: Path,
    prompts: tuple[int, int],
    compute: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Write every head's ablated direct effect with another donor: the prompt that follows the run's donors in the ring.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        activations: The shard's activations file.
        out: HDF5 file: ablated_direct_effect [layer, head, prompt, predicting_pos], logits.
        prompts: First prompt of the shard, and the one after its last.
        compute: device, dtype, center_unembed.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The shard holds no prompt but donors of the run.
    """
    model = load_model(model_manifest.parent, **compute)
    shard = read_shard(tokens, slice(*prompts))
    ids = torch.from_numpy(shard.tokens).long()
    n_prompts, length = ids.shape
    other = assign_donors(n_prompts, n_prompts, shard.donors.shape[1] + 1)[:, -1:]
    dtype = torch.zeros(0, dtype=model.dtype).numpy().dtype
    with (
        open_activations(activations, model) as cached,
        write_hdf5(out, kind="other_donor", provenance=provenance) as file,
        torch.inference_mode(),
    ):
        file.dims(layer=model.n_layers, head=model.n_heads, prompt=n_prompts, predicting_pos=length - 1)
        effects = file.variable(
            "ablated_direct_effect",
            ("layer", "head", "prompt", "predicting_pos"),
            dtype,
            chunk={"layer": 1, "prompt": 1},
            units="logits",
            description="o' . d / s of each head with the donor after the run's own",
        )
        for layer in range(model.n_layers):
            for chunk in prompt_chunks(model, n_prompts, length):
                z = cached.donor_z(layer, other[chunk])
                found = ablated_direct_effect(model, ids[chunk], cached.clean_run(chunk), layer, z)
                effects[layer, :, chunk] = found.movedim(-1, 0).cpu().numpy()


def ablate_with_donors(
    *,
    model_manifest: Path,
    tokens: Path,
    activations: Path,
    thresholds: Path,
    out: Path,
    prompts: tuple[int, int],
    heads: Sequence[tuple[int, int]],
    donors: int,
    compute: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Ablate heads on their top tokens with each of several donors alone.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        activations: The shard's activations file.
        thresholds: Top tokens of each head.
        out: HDF5 file: what an ablation gives [donor, head, prompt, pos], NaN where a token is none of the head's top tokens.
        prompts: First prompt of the shard, and the one after its last.
        heads: The (layer, head) pairs.
        donors: How many; donor k of a prompt is the k-th prompt after it in its shard, in a ring.
        compute: device, dtype, center_unembed.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: The shard holds fewer other prompts.
    """
    model = load_model(model_manifest.parent, **compute)
    chosen = check_heads(model, heads)
    shard = read_shard(tokens, slice(*prompts))
    ids = torch.from_numpy(shard.tokens).long()
    selected = read_selected(thresholds, chosen, slice(*prompts))
    rows = assign_donors(len(ids), len(ids), donors)
    chunks = prompt_chunks(model, *ids.shape)
    proof = Proof(model, "ablations with several donors", seed=prompts[0])
    repeated = proof.choose(np.asarray(selected.any(-1)), layers_run(model, chosen))
    proven = int(proof.rng.integers(donors))  # with one of the donors
    found: list[list[xr.Dataset]] = [[] for _ in range(donors)]
    label = f"{donors} donors of prompts {prompts[0]} to {prompts[1] - 1}"
    with (
        open_activations(activations, model) as cached,
        Progress(donors * len(chunks) * len(chosen), label, "head") as bar,
    ):
        for donor, chunk in itertools.product(range(donors), chunks):
            of_donor = Prompts(shard.tokens, rows[:, donor : donor + 1])
            clean, z = cached.clean_run(chunk), partial(cached.donor_z, donors=of_donor.donors[chunk])
            part = sweep(model, ids[chunk], clean, z, chosen, bar, selected[:, chunk], only_selected=True)
            if donor == proven:
                again = plain_replacements(model, "resample", of_donor.donor_tokens(chunk), None)
                checked = {**arrays(part), "selected": selected[:, chunk]}
                within = proof.within(repeated, chunk)
                prove_heads(proof, repeat_heads(proof, within, chosen, ids[chunk], again), checked)
            found[donor].append(part[list(HEAD_TOKEN)])
    dataset = xr.concat([xr.concat(parts, dim="prompt") for parts in found], dim="donor")
    attrs = {"coordinates": "layer head_index", **proof.attrs()}
    with write_hdf5(out, kind="donor_noise", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset, chunk={"donor": 1, "head": 1})
