"""Who repairs a few heads, prompt by prompt: what intervals of single pairs are made of.

The ablations of all heads keep these sums over whole shards; here the few heads that are looked at are ablated once more.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from selfrepair.ablation import Heads, Replacement, constant_replacement
from selfrepair.activations import open_activations
from selfrepair.averages import read_mean_activations
from selfrepair.chosen_heads import read_chosen_heads
from selfrepair.clean import CleanRun, prompt_chunks
from selfrepair.models import Model, load_model
from selfrepair.progress import Progress
from selfrepair.replay import SuffixReplay, group_by_layer
from selfrepair.selection import read_selected
from selfrepair.storage import write_hdf5
from selfrepair.strongest_pairs import read_strongest_pairs
from selfrepair.tokens import read_shard

VARIABLES = {
    "repair_by_head": (("by_layer", "by_head"), "repair of the ablated head by each other head"),
    "repair_by_mlp": (("by_layer",), "repair of the ablated head by each layer's MLP"),
    "repair_by_layernorm": ((), "the final norm's part of its self-repair"),
    "self_repair": ((), "self-repair of the ablated head"),
}
"""What `trace_repair` gives: dimensions beside head and prompt; description."""


def trace_repair_of_shard(
    *,
    model_manifest: Path,
    tokens: Path,
    activations: Path,
    thresholds: Path,
    mean_activations: Path | None,
    chosen_heads: Path,
    strongest_pairs: Path,
    out: Path,
    prompts: tuple[int, int],
    kind: str,
    compute: dict[str, Any],
    provenance: dict[str, Any],
) -> None:
    """Ablate the chosen heads and those of the strongest pairs on their top tokens, and keep every prompt's sums.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        activations: The shard's activations file.
        thresholds: Top tokens of each head.
        mean_activations: Averages of z; wanted for kind "mean".
        chosen_heads: Heads whose repair is shown in full (`selfrepair.chosen_heads`).
        strongest_pairs: Pairs that are listed (`selfrepair.strongest_pairs`).
        out: HDF5 file: the variables of `trace_repair`, n_selected [head, prompt], layer and head_index.
        prompts: First prompt of the shard, and the one after its last.
        kind: "resample", "mean" or "zero".
        compute: device, dtype, center_unembed.
        provenance: From `selfrepair.jobs.job`.
    """
    model = load_model(model_manifest.parent, **compute)
    pairs = [(pair.layer, pair.head) for pair in read_strongest_pairs(strongest_pairs)]
    heads = list(dict.fromkeys([*read_chosen_heads(chosen_heads), *pairs]))
    shard = read_shard(tokens, slice(*prompts))
    selected = read_selected(thresholds, heads, slice(*prompts))
    mean_z = None
    if mean_activations is not None:
        mean_z = torch.from_numpy(read_mean_activations(mean_activations)).to(model.device)
    ids = torch.from_numpy(shard.tokens).long()
    chunks = prompt_chunks(model, *ids.shape)
    label = f"repair of {len(heads)} heads, prompts {prompts[0]} to {prompts[1] - 1}"
    parts = []
    with open_activations(activations, model) as cached, Progress(len(chunks) * len(heads), label, "head") as bar:
        for chunk in chunks:
            if kind == "resample":
                replacement: Replacement = partial(cached.donor_z, donors=shard.donors[chunk])
            else:
                replacement = constant_replacement(model, kind, ids[chunk].shape, mean_z)
            clean = cached.clean_run(chunk)
            parts.append(trace_repair(model, ids[chunk], clean, replacement, heads, selected[:, chunk], bar))
    attrs = {"ablation": kind, "coordinates": "layer head_index"}
    with write_hdf5(out, kind="traced_repair", provenance=provenance, attrs=attrs) as file:
        file.dims(head=len(heads), prompt=len(ids), by_layer=model.n_layers, by_head=model.n_heads)
        file.put("layer", ("head",), np.array([layer for layer, _ in heads]))
        file.put("head_index", ("head",), np.array([head for _, head in heads]))
        file.put("n_selected", ("head", "prompt"), selected.sum(-1), description="top tokens of the head in the prompt")
        for name, (dims, description) in VARIABLES.items():
            values = np.concatenate([part[name] for part in parts], axis=1)
            description = f"{description}, summed over its top tokens"
            file.put(name, ("head", "prompt", *dims), values, units="logits", description=description)


def trace_repair(
    model: Model,
    tokens: Tensor,
    clean: CleanRun,
    replacement: Replacement,
    heads: Heads,
    selected: Bool[np.ndarray, "head prompt predicted"],
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Ablate each head alone on its selected tokens, and sum over those of each prompt.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        replacement: Gives, for a layer, what takes the place of ``z`` [prompt, pos, head, d_head].
        heads: The (layer, head) pairs.
        selected: The tokens of each head.
        progress: Told of every finished head.

    Returns:
        By variable of `VARIABLES` [head, prompt, ...], in logits, float64.
    """
    replay = SuffixReplay(model, tokens, clean)
    sizes = {"by_layer": model.n_layers, "by_head": model.n_heads}
    shape = selected.shape[:2]
    sums = {name: np.zeros((*shape, *_sizes(sizes, dims))) for name, (dims, _) in VARIABLES.items()}
    index = {pair: row for row, pair in enumerate(heads)}
    for layer, of_layer in group_by_layer(heads).items():
        rows = np.array([index[layer, head] for head in of_layer])
        mask = torch.from_numpy(selected[rows])
        for batch, result in replay.ablate_selected(layer, of_layer, replacement(layer), mask):
            assert batch.prompts is not None  # ablate_selected gives pairs of a head and a prompt
            at = rows[batch.rows], batch.prompts
            weight = batch.of_selection(mask).to(model.device, model.dtype)
            own = result.ablated_direct_effect - result.direct_effect
            found = {
                "repair_by_head": result.repair_by_head[0],
                "repair_by_mlp": result.repair_by_mlp[0],
                "repair_by_layernorm": (result.self_repair_from_layernorm * weight)[0].sum(-1),
                "self_repair": ((result.logit_change - own) * weight)[0].sum(-1),
            }
            for name, values in found.items():
                sums[name][at] = values.cpu().numpy()
        progress.advance(len(of_layer))
    return sums


def _sizes(sizes: dict[str, int], dims: Iterable[str]) -> Sequence[int]:
    return [sizes[dim] for dim in dims]
