"""Self-reinforcement: what a head writes when it finds its own output, scaled, in its input.

After the authors' supplementary code of Rushing & Nanda (2024): evidence for or against iterative inference.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from selfrepair.engine.clean import CleanRun, Directions
from selfrepair.engine.proof import PlainPrompt, Proof, plain_run, replaced_attention_input
from selfrepair.engine.single_attention import Attentions
from selfrepair.files.hdf5 import Writer, write_hdf5
from selfrepair.measure.shard import Shard
from selfrepair.workflow.progress import Progress

logger = logging.getLogger(__name__)

ADDED = ("own", "random", "other")
"""What is added to a head's input: its own output; a random direction and another head's output, as long as its own."""


def measure_reinforcement(
    shard: Shard, *, scales: Sequence[float], seed: int, out: Path, provenance: dict[str, Any]
) -> None:
    """Add outputs to the input of every head at its top tokens, on a shard.

    Args:
        shard: With thresholds.
        scales: How many times its output is added.
        seed: Of the controls.
        out: HDF5 file: the variables of `reinforce_heads` summed over each prompt's top tokens of a head, and n_selected
            [layer, head, prompt]. Of a model whose attention cannot be asked (`Attentions.why_not_at`), n_selected alone, and
            attribute ``note``: why.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    model = shard.model
    selected = shard.top_tokens(shard.all_heads)
    selected = selected.reshape(model.n_layers, model.n_heads, *selected.shape[1:])
    attentions = Attentions(model, shard.tokens.shape[1])
    if (note := attentions.why_not_at(shard.cached.clean_run(slice(0, 1)).resid_pre)) is not None:
        logger.info("self-reinforcement is not measured: %s", note)
        attrs = {"note": note, **shard.proof("self-reinforcement").attrs()}
        with write_hdf5(out, kind="reinforcement", provenance=provenance, attrs=attrs) as file:
            _put_selected(file, selected)
        return
    parts = [
        reinforce_heads(
            attentions,
            batch.tokens,
            batch.clean,
            selected[:, :, batch.rows],
            scales,
            seed,
            batch.numbers,
            batch.progress,
        )
        for batch in shard.batches("self-reinforcement", "layer", model.n_layers)
    ]
    found = {name: np.concatenate([part[name] for part in parts], axis=2) for name in VARIABLES}
    proof = shard.proof("self-reinforcement")
    prove_reinforcement(proof, shard.tokens, selected, scales, found)
    with write_hdf5(out, kind="reinforcement", provenance=provenance, attrs=proof.attrs()) as file:
        _put_selected(file, selected)
        file.dims(added=len(ADDED), scale=len(scales))
        file.put("scale", ("scale",), np.array(scales, float), description="times the output is added")
        for name, (more, units, description) in VARIABLES.items():
            text = f"{description}, summed over top tokens"
            file.put(name, (*DIMS, *more), found[name], units=units, description=text)


DIMS = ("layer", "head", "prompt")


def _put_selected(file: Writer, selected: Bool[np.ndarray, "layer head prompt predicted"]) -> None:
    layers, heads, prompts, _ = selected.shape
    file.dims(layer=layers, head=heads, prompt=prompts)
    file.put("n_selected", DIMS, selected.sum(-1), description="top tokens of the head in the prompt")


VARIABLES = {
    "direct_effect": ((), "logits", "direct effect in the clean run"),
    "reinforced_direct_effect": (("added", "scale"), "logits", "direct effect with own, random or other added"),
    "relative_length": ((), "", "length of the head's output relative to the residual that enters its layer"),
}
"""What `reinforce_heads` gives: dimensions beside layer, head and prompt; unit; description."""


def reinforce_heads(
    attentions: Attentions,
    tokens: Tensor,
    clean: CleanRun,
    selected: Bool[np.ndarray, "layer head prompt predicted"],
    scales: Sequence[float],
    seed: int,
    numbers: np.ndarray,
    progress: Progress,
) -> dict[str, np.ndarray]:
    """Add outputs to the input of every head, at one position at a time, and run its attention alone.

    Args:
        attentions: Of the model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        selected: Tokens at which outputs are added, for each head.
        scales: How many times an output is added.
        seed: Of the random directions and of which other head; with the prompt's number it gives the same whatever the shard.
        numbers: Numbers of the prompts in the data set.
        progress: Told of every finished layer.

    Returns:
        By variable of `VARIABLES` [layer, head, prompt, ...], float64, summed over the selected tokens of each prompt. Values
        of "other" are NaN in a model of one head a layer.
    """
    model = attentions.model
    shape = selected.shape[:3]
    extra = {(): (), ("added", "scale"): (len(ADDED), len(scales))}
    sums = {name: np.zeros((*shape, *extra[dims])) for name, (dims, _, _) in VARIABLES.items()}
    times = torch.tensor([float(scale) for scale in scales], dtype=model.dtype, device=model.device)
    scaled = Directions.of(model, tokens).d / clean.scale[..., None]
    for layer in range(model.n_layers):
        resid, z = clean.resid_pre[layer], clean.z[layer] - model.value_constant[layer]
        scale = clean.postnorm_scale("attention", layer)
        for prompt, number in enumerate(numbers.tolist()):
            head, pos = np.nonzero(selected[layer, :, prompt])
            if not len(head):
                continue
            with torch.inference_mode():
                here = torch.from_numpy(pos).to(model.device)
                held = None if scale is None else scale[prompt, here]
                write = torch.einsum("rhd,hdm->rhm", z[prompt, pos], model.W_O[layer])
                write = model.written(write, "attention", layer, None if held is None else held[:, None])
                added = _added(write, head, np.random.default_rng([seed, layer, number]))
                changed = resid[prompt, here, None, None] + added[:, :, None] * times[:, None]
                each = changed.shape[1] * changed.shape[2]
                flat = here.repeat_interleave(each)
                reinforced = attentions.z_at(layer, resid[prompt], flat, changed.flatten(0, 2))
                own = torch.from_numpy(head).to(model.device)
                z_own = reinforced[torch.arange(len(flat), device=model.device), own.repeat_interleave(each)]
                z_own = z_own.unflatten(0, changed.shape[:3]) - model.value_constant[layer, own][:, None, None]
                along = model.written(scaled[prompt, here], "attention", layer, held)
                projected = torch.einsum("rm,rdm->rd", along, model.W_O[layer][own])
                effect = torch.einsum("rasd,rd->ras", z_own, projected).cpu().numpy().astype(float)
                length = added[:, 0].norm(dim=-1) / resid[prompt, here].norm(dim=-1)
            if model.n_heads == 1:
                effect[:, ADDED.index("other")] = np.nan
            np.add.at(sums["reinforced_direct_effect"][layer, :, prompt], head, effect)
            np.add.at(sums["relative_length"][layer, :, prompt], head, length.cpu().numpy())
            of_head = clean.head_direct_effect[layer][prompt, here, own].cpu().numpy()
            np.add.at(sums["direct_effect"][layer, :, prompt], head, of_head)
        progress.advance()
    return sums


def prove_reinforcement(
    proof: Proof,
    tokens: Int[Tensor, "prompt pos"],
    selected: Bool[np.ndarray, "layer head prompt predicted"],
    scales: Sequence[float],
    found: Mapping[str, np.ndarray],
) -> None:
    """Repeat one head's self-reinforcement in one prompt by plain runs: its attention reads its own output too, at one token.

    Args:
        proof: Where it is counted.
        tokens: Token ids of the shard's prompts.
        selected: Tokens at which outputs are added, for each head.
        scales: How many times an output is added.
        found: What `reinforce_heads` gives of them.

    Raises:
        ValueError: A difference beyond rounding.
    """
    model, count = proof.model, selected.sum(-1)
    if not count.any():
        return
    # Each token takes a run of its own: one of the heads with fewest in a prompt.
    layer, head, prompt = proof.rng.choice(np.argwhere(count == count[count > 0].min())).tolist()
    of_prompt, scale = PlainPrompt(model, tokens[prompt]), int(proof.rng.integers(len(scales)))
    places = np.flatnonzero(selected[layer, head, prompt]).tolist()
    (effect, summed), *rounded = (_reinforced(each, layer, head, scales[scale], places) for each in of_prompt.both)
    where = f"of head (layer {layer}, head {head})"
    got = found["reinforced_direct_effect"][layer, head, prompt][0, scale]
    proof.compare(f"reinforced_direct_effect {where}", got, effect, summed, *(each for each, _ in rounded))
    proof.ablations += 1


def _reinforced(of: PlainPrompt, layer: int, head: int, scale: float, places: list[int]) -> tuple[Tensor, Tensor]:
    """The sum of a head's direct effects where its own output is added to its input, by plain runs; and the terms' sizes."""
    model = of.model
    effect = summed = torch.zeros((), dtype=model.dtype, device=model.device)
    with torch.inference_mode():
        z, resid = of.clean.run.z[layer][:, head] - model.value_constant[layer, head], of.clean.run.resid[layer]
        W_O, scales_of = model.W_O[layer][head], of.clean.postnorms
        for pos in places:
            held = scales_of["attention"][layer, pos] if scales_of else None
            changed = resid[pos] + scale * model.written(z[pos] @ W_O, "attention", layer, held)
            with model.running(of.exact):
                hidden = model.read_by_attention(layer, changed[None])
            edit = replaced_attention_input(model, layer, hidden, slice(pos, pos + 1))
            run = plain_run(model, of.tokens, [edit], until=layer, exact=of.exact)
            written = run.z[layer][pos, head] - model.value_constant[layer, head]
            along = of.seen_by("attention", layer)[pos]
            effect = effect + (written @ W_O) @ along
            summed = summed + written.norm() * W_O.norm() * along.norm()
    return effect, summed


def _added(
    write: Float[Tensor, "row head d_model"], head: np.ndarray, rng: np.random.Generator
) -> Float[Tensor, "row added d_model"]:
    """What is added once, by `ADDED`, to the input of the ``head`` of each row."""
    rows, n_heads, d_model = write.shape
    own = write[torch.arange(rows), torch.from_numpy(head)]
    length = own.norm(dim=-1, keepdim=True)
    random = torch.from_numpy(rng.normal(size=(rows, d_model))).to(write)
    another = (head + rng.integers(1, max(n_heads, 2), size=rows)) % n_heads
    other = write[torch.arange(rows), torch.from_numpy(another)]

    def as_long(vectors: Tensor) -> Tensor:
        # A head that writes nothing has no direction: nothing is added.
        return torch.nn.functional.normalize(vectors, dim=-1) * length

    return torch.stack([own, as_long(random), as_long(other)], dim=1)
