"""Neurons of one MLP, clean and with a head ablated: which of them repair, and whether they do so by erasing less.

A neuron's direct effect is ``post[n] * (W_out[n] . d) / s`` with the clean ``s``: what it gives times a projected direction,
so that no neuron's d_model output is formed. Its repair is ablated minus clean (docs/definitions.md, Neurons).
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from selfrepair.engine.clean import CleanRun
from selfrepair.engine.heads import Heads, check_heads, group_by_layer
from selfrepair.engine.proof import Proof, Repeated
from selfrepair.engine.replacements import Replacement
from selfrepair.engine.replay import SuffixReplay
from selfrepair.engine.rounding import identity_tolerance
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.shard import Shard
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model

logger = logging.getLogger(__name__)

UNCHANGED_ROUNDINGS = 256
"""Rounding errors, relative to the neurons' direct effects, below which a change of all neurons together is none."""
CURVE_POINTS = 50
"""About how many points of each token's cumulative curves are kept, evenly spaced on a logarithmic axis."""


@dataclass(frozen=True)
class NeuronEffects:
    """Every neuron of one MLP on some (head, token) pairs, in logits.

    Attributes:
        row: Of each pair's head, its place in the list of heads asked for [token].
        prompt, pos: The pair's token [token].
        clean: Direct effects [token, neuron].
        ablated: The same with the head ablated.
        mlp_clean: Direct effect of the whole MLP [token], its output bias included.
        head_clean: Direct effect of the head [token].
    """

    row: Int[Tensor, " token"]
    prompt: Int[Tensor, " token"]
    pos: Int[Tensor, " token"]
    clean: Float[Tensor, "token neuron"]
    ablated: Float[Tensor, "token neuron"]
    mlp_clean: Float[Tensor, " token"]
    head_clean: Float[Tensor, " token"]


def neuron_effects(
    model: Model,
    tokens: Int[Tensor, "prompt pos"],
    clean: CleanRun,
    replacement: Replacement,
    heads: Heads,
    selected: Bool[np.ndarray, "head prompt predicted"],
    neuron_layer: int,
) -> Iterator[NeuronEffects]:
    """Ablate each head alone and measure the neurons of one MLP on the head's selected tokens.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].
        clean: Their clean run.
        replacement: Gives, for a layer, what takes the place of ``z`` [prompt, pos, head, d_head].
        heads: The (layer, head) pairs; the MLP must read what they write (`reads_head`).
        selected: Which tokens to measure [head, prompt, pos-1].
        neuron_layer: The MLP's layer.

    Yields:
        The selected tokens, a batch of ablated runs at a time.

    Raises:
        ValueError: The neurons do not add up to their MLP, clean or ablated.
    """
    if not selected.any():
        return
    replay = SuffixReplay(model, tokens, clean)
    W_out = model.neurons_write(neuron_layer)
    lengths = W_out.norm(dim=-1)
    post = _clean_post(model, neuron_layer, clean, tokens.shape)
    index = {pair: row for row, pair in enumerate(heads)}
    for layer, of_layer in group_by_layer(heads).items():
        rows = torch.tensor([index[layer, head] for head in of_layer])
        mask = torch.from_numpy(selected)[rows]
        with _neurons_of(model, neuron_layer) as last_post:
            for batch, result in replay.ablate_selected(layer, of_layer, replacement(layer), mask):
                pair, pos = torch.nonzero(batch.of_selection(mask)[0], as_tuple=True)
                row, prompt = rows[batch.rows][pair], torch.tensor(batch.prompts)[pair]
                ablated_post = last_post()
                if len(ablated_post) != len(pair):  # the last layer's MLP runs at the selected tokens alone
                    ablated_post = ablated_post.unflatten(0, (len(batch.rows), -1))[pair, pos]
                with torch.inference_mode():
                    scale = clean.postnorm_scale("mlp", neuron_layer)
                    scale = None if scale is None else scale[prompt, pos]
                    scaled = model.written(replay.scaled[prompt, pos], "mlp", neuron_layer, scale)
                    projected = scaled @ W_out.T
                    effects = NeuronEffects(
                        row=row,
                        prompt=prompt,
                        pos=pos,
                        clean=post[prompt, pos] * projected,
                        ablated=ablated_post * projected,
                        mlp_clean=clean.mlp_direct_effect[neuron_layer][prompt, pos],
                        head_clean=result.values["direct_effect"][0, pair, pos],
                    )
                    sizes = (post[prompt, pos].abs() + ablated_post.abs()) @ lengths * scaled.norm(dim=-1)
                    mlp_repair = result.repair_by_mlp[0, :, neuron_layer]
                    _check_neurons(model, effects, scaled, neuron_layer, sizes, pair.to(model.device), mlp_repair)
                yield effects


def _check_neurons(
    model: Model,
    effects: NeuronEffects,
    scaled: Tensor,
    neuron_layer: int,
    summed: Tensor,
    pair: Tensor,
    mlp_repair: Tensor,
) -> None:
    """Refuse neurons that do not add up to what their MLP writes, or to what it changes by.

    Args:
        model: The model.
        effects: Of some tokens.
        scaled: d / s of each token as the MLP's output meets it [token, d_model].
        neuron_layer: The MLP's layer.
        summed: Sizes of what the neurons write along d, clean and ablated, that cancel [token].
        pair: Of each token, its place in ``mlp_repair`` [token].
        mlp_repair: The MLP's repair, summed over the tokens of each (head, prompt) [pair].
    """
    bias = cast(Tensor | None, getattr(model.mlp_out(neuron_layer), "bias", None))
    total = effects.clean.sum(-1) + (0 if bias is None else scaled @ bias.to(scaled))
    repair, sizes = torch.zeros_like(mlp_repair), torch.zeros_like(mlp_repair)
    repair.index_add_(0, pair, (effects.ablated - effects.clean).sum(-1))
    sizes.index_add_(0, pair, summed)
    tolerance = identity_tolerance(model)
    for off, size in ((total - effects.mlp_clean, summed), (repair - mlp_repair, sizes)):
        if not bool((off.abs() <= tolerance * size).all()):
            worst = int((off.abs() - tolerance * size).nan_to_num(nan=torch.inf).argmax())
            raise ValueError(
                f"the neurons of layer {neuron_layer} do not add up to the MLP of {model.name}: off by {float(off[worst]):.3g} "
                f"logits where rounding explains {float(tolerance * size[worst]):.1g}; its architecture's mlp_out is not the "
                "MLP's output projection, or its weights are not finite"
            )


@contextmanager
def _neurons_of(model: Model, layer: int) -> Iterator[Callable[[], Tensor]]:
    """Watch what the neurons of a layer's MLP give; yields a function that returns the latest, as [token, neuron]."""
    latest: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        latest[:] = [args[0].flatten(0, -2).to(model.dtype)]

    with hooked(lambda: [model.mlp_out(layer).register_forward_pre_hook(keep)]):
        yield lambda: latest[0]


def _clean_post(model: Model, layer: int, clean: CleanRun, shape: torch.Size) -> Float[Tensor, "prompt pos neuron"]:
    """What the neurons of a layer's MLP give in the clean run, by calling the layer again on its clean residual."""
    call = model.layer_calls(shape[1])[layer]
    with _neurons_of(model, layer) as latest, torch.inference_mode():
        with model.running():
            call.replay(model.layers[layer], clean.resid_pre[layer])
        return latest().unflatten(0, shape)


def reads_head(model: Model, neuron_layer: int, head_layer: int) -> bool:
    """Whether the MLP of a layer reads what a head writes; in parallel models that of the head's own layer does not."""
    return head_layer < neuron_layer or (head_layer == neuron_layer and not model.parallel)


def curve_points(n_neurons: int) -> list[int]:
    """Numbers of neurons at which cumulative curves are kept: some on a logarithmic scale, and the top 1%."""
    spaced = np.geomspace(1, n_neurons, CURVE_POINTS).round().astype(int).tolist()
    return sorted({*spaced, top_percent(n_neurons)})


def top_percent(n_neurons: int) -> int:
    """How many neurons the top 1% are: rounded down, as in the authors' code, but one at least."""
    return max(1, n_neurons // 100)


def summarise(effects: NeuronEffects, top_neurons: int) -> xr.Dataset:
    """Keep the neurons that repair most and what the concentration of the change needs.

    Where all that changes is rounding, as at a first token that all prompts share, nothing changes.

    Args:
        effects: Some (head, token) pairs.
        top_neurons: Neurons to keep a token.

    Returns:
        Dims token, best (neurons by repair, largest first) and point (`curve_points`). Per token: head (place in the list
        of heads), prompt, pos; neuron, direct_effect, ablated_direct_effect [token, best] of the neurons kept;
        head_direct_effect, mlp_direct_effect, mlp_ablated_direct_effect, total_absolute_change; and three cumulative
        curves [token, point], each over neurons sorted by what it sums: share_of_change (absolute change),
        share_of_repair (positive changes), share_of_direct_effect (absolute clean direct effect). A curve of a sum
        that is zero is NaN.
    """
    change = effects.ablated - effects.clean
    rounding = UNCHANGED_ROUNDINGS * torch.finfo(change.dtype).eps * effects.clean.abs().sum(-1)
    change = torch.where((change.abs().sum(-1) > rounding)[:, None], change, 0)
    by_repair = change.sort(dim=-1, descending=True, stable=True)
    best = by_repair.indices[:, :top_neurons]
    at = torch.tensor(curve_points(change.shape[1]), device=change.device)

    def curve(sizes: Tensor) -> Tensor:
        total = sizes.cumsum(-1)
        return total[:, at - 1] / total[:, -1:]

    per_token = {
        "head": effects.row,
        "prompt": effects.prompt,
        "pos": effects.pos,
        "head_direct_effect": effects.head_clean,
        "mlp_direct_effect": effects.mlp_clean,
        "mlp_ablated_direct_effect": effects.mlp_clean + change.sum(-1),
        "total_absolute_change": change.abs().sum(-1),
    }
    per_best = {
        "neuron": best,
        "direct_effect": effects.clean.gather(1, best),
        "ablated_direct_effect": (effects.clean + change).gather(1, best),
    }
    per_point = {
        "share_of_change": curve(change.abs().sort(dim=-1, descending=True).values),
        "share_of_repair": curve(by_repair.values.clamp(min=0)),
        "share_of_direct_effect": curve(effects.clean.abs().sort(dim=-1, descending=True).values),
    }
    dims = ((per_token, ("token",)), (per_best, ("token", "best")), (per_point, ("token", "point")))
    return xr.Dataset(
        {name: (dim, value.cpu().numpy()) for values, dim in dims for name, value in values.items()},
        coords={"neurons": ("point", at.cpu().numpy())},
    )


DESCRIPTIONS = {
    "layer": ("", "layer of the head"),
    "head_index": ("", "head within its layer"),
    "head": ("", "which head is ablated, as its place among the heads"),
    "prompt": ("", "prompt, counted from the shard's first"),
    "pos": ("", "position"),
    "head_direct_effect": ("logits", "clean direct effect of the head"),
    "mlp_direct_effect": ("logits", "clean direct effect of the MLP, its bias included"),
    "mlp_ablated_direct_effect": ("logits", "direct effect of the MLP with the head ablated"),
    "total_absolute_change": ("logits", "sum over neurons of |ablated - clean direct effect|"),
    "neuron": ("", "neurons by repair, largest first"),
    "direct_effect": ("logits", "their clean direct effects"),
    "ablated_direct_effect": ("logits", "their direct effects with the head ablated"),
    "neurons": ("", "number of neurons at which the shares are given"),
    "share_of_change": ("", "share of the absolute change of that many neurons, largest first"),
    "share_of_repair": ("", "share of the positive changes of that many neurons, largest first"),
    "share_of_direct_effect": ("", "share of the absolute clean direct effect of that many neurons, largest first"),
}


def measure_neurons(
    shard: Shard,
    *,
    kind: str,
    heads: Heads,
    neuron_layer: int | None,
    top_neurons: int,
    out: Path,
    provenance: dict[str, Any],
) -> None:
    """Measure the neurons of one MLP on the top tokens of some heads, in a shard.

    Args:
        shard: With thresholds.
        kind: "resample", "mean" or "zero".
        heads: The (layer, head) pairs. Those whose output the MLP does not read are left out.
        neuron_layer: The MLP's layer; None means the last.
        top_neurons: Neurons to keep a token.
        out: HDF5 file: what `summarise` gives, with layer and head_index of each head. Of a layer that is a mixture of
            experts, or whose MLP reads none of the heads, the heads alone, and attribute ``note``: why there are no neurons.
        provenance: From `selfrepair.workflow.jobs.job`.

    Raises:
        ValueError: No such layer.
    """
    model = shard.model
    layer = model.n_layers - 1 if neuron_layer is None else neuron_layer
    named = check_heads(model, heads)
    reaching = heads_that_reach(model, layer, named)
    attrs: dict[str, Any] = {"ablation": kind, "neuron_layer": layer, "n_prompts": len(shard.tokens)}
    note = model.why_no_neurons(layer) or (None if reaching else why_none_reach(model, layer, named))
    if note is not None:
        logger.info("no neurons are measured: %s", note)
        attrs |= {"n_neurons": 0, "note": note, **shard.proof(f"neurons of layer {layer}").attrs()}
        write_no_neurons(out, reaching or named, attrs=attrs, provenance=provenance)
        return
    selected = shard.top_tokens(reaching)
    n_neurons = model.neurons_write(layer).shape[0]
    parts = [_no_tokens(n_neurons, top_neurons, model.dtype)]
    measured, watch = np.asarray(selected.any(-1)), [model.mlp_out(layer)]
    repeats = shard.repeats(f"neurons of layer {layer}", kind, reaching, measured, watch)
    for batch in shard.batches(f"neurons of layer {layer}, {kind} ablation"):
        again, of_batch = list(repeats.of(batch)), selected[:, batch.rows]
        replacement = batch.replacement(kind)
        for effects in neuron_effects(model, batch.tokens, batch.clean, replacement, reaching, of_batch, layer):
            prove_neurons(repeats.proof, again, effects, layer)
            part = summarise(effects, top_neurons)
            parts.append(part.assign(prompt=part["prompt"] + batch.rows.start))
    attrs |= {"n_neurons": n_neurons, **repeats.proof.attrs()}
    write_neurons(out, parts, reaching, attrs=attrs, provenance=provenance)


def prove_neurons(proof: Proof, repeated: Iterable[Repeated], found: NeuronEffects, layer: int) -> None:
    """Hold a batch of tokens against plain runs of those of its ablations that were repeated.

    Args:
        proof: Where it is counted.
        repeated: From `selfrepair.engine.proof.repeat_heads`, which watches what the layer's MLP multiplies with W_out.
        found: The batch.
        layer: The neurons' layer.

    Raises:
        ValueError: A difference beyond rounding.
    """
    W_out = proof.model.neurons_write(layer)
    for each in repeated:
        of_batch = torch.nonzero((found.row == each.row) & (found.prompt == each.prompt)).squeeze(1)
        if not len(of_batch):
            continue
        pos = found.pos[of_batch]
        with torch.inference_mode():
            clean, ablated = (
                [seen.run.watched[0][pos] * (seen.of.seen_by("mlp", layer)[pos] @ W_out.T) for seen in made]
                for made in zip(*((made.seen.of.clean, made.seen) for made in each.effects.both), strict=True)
            )
        summed = each.effects.summed[pos, None]
        for when, got, (wanted, *rounded) in (("before", found.clean, clean), ("after", found.ablated, ablated)):
            proof.compare(f"neurons {when} the ablation {each.where}", got[of_batch].cpu(), wanted, summed, *rounded)


def write_neurons(
    out: Path, parts: Sequence[xr.Dataset], heads: Heads, *, attrs: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Write what `summarise` gave of some batches of tokens, sorted by head, prompt and position.

    Args:
        out: HDF5 file.
        parts: The batches, at least one.
        heads: The (layer, head) pairs.
        attrs: ablation, neuron_layer, n_neurons and n_prompts.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    dataset = xr.concat(parts, dim="token", data_vars="minimal", coords="minimal", compat="override")
    dataset = dataset.isel(token=np.lexsort((dataset["pos"], dataset["prompt"], dataset["head"])))
    dataset = _described(dataset.merge(_of_heads(heads)))
    attrs = {**attrs, "top_percent": top_percent(attrs["n_neurons"])}
    with write_hdf5(out, kind="neurons", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset)


def write_no_neurons(out: Path, heads: Heads, *, attrs: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write that a layer has no neurons to compare.

    Args:
        out: HDF5 file.
        heads: The (layer, head) pairs.
        attrs: As for `write_neurons`, and ``note``: why.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    with write_hdf5(out, kind="neurons", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(_of_heads(heads))


def _of_heads(heads: Heads) -> xr.Dataset:
    """Which heads are ablated."""
    columns = {"layer": np.array([at for at, _ in heads]), "head_index": np.array([head for _, head in heads])}
    return _described(xr.Dataset({name: ("head_row", values) for name, values in columns.items()}))


def _described(dataset: xr.Dataset) -> xr.Dataset:
    for name, variable in dataset.variables.items():
        units, description = DESCRIPTIONS[str(name)]
        variable.attrs = {"units": units, "description": description}
    return dataset


def heads_that_reach(model: Model, layer: int, heads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The heads whose output the MLP of a layer reads.

    Raises:
        ValueError: No such layer.
    """
    if not 0 <= layer < model.n_layers:
        raise ValueError(
            f"analyses.neuron_layer is {layer}: {model.name} has layers 0 to {model.n_layers - 1}; null means the last"
        )
    reaching = [head for head in heads if reads_head(model, layer, head[0])]
    if reaching and (left_out := [head for head in heads if head not in reaching]):
        logger.info("left out, as the MLP of layer %d does not read what they write: %s", layer, left_out)
    return reaching


def why_none_reach(model: Model, layer: int, heads: Heads) -> str:
    """Why a layer's neurons are measured of none of the heads, and what could be named instead where there is something.

    Args:
        model: The model.
        layer: The neurons' layer, whose MLP reads none of the heads.
        heads: The (layer, head) pairs.
    """
    beside = ", which runs beside the attention of its layer" if model.parallel else ""
    last, first = layer - model.parallel, min(of for of, _ in heads) + model.parallel
    other = [f"analyses.heads can name heads of layer{f's 0 to {last}' if last else ' 0'}"] if last >= 0 else []
    if first < model.n_layers:
        later = " or a later one" if first + 1 < model.n_layers else ""
        other.append(f"analyses.neuron_layer can name layer {first}{later}")
    advice = f"; {' or '.join(other)}" if other else ""
    return f"no chosen head comes before the MLP of layer {layer}{beside}{advice}"


def _no_tokens(n_neurons: int, top_neurons: int, dtype: torch.dtype) -> xr.Dataset:
    """What `summarise` gives of no tokens, for a shard that holds none of the heads' top tokens."""
    none = torch.zeros(0, dtype=torch.long)
    values = torch.zeros(0, n_neurons, dtype=dtype)
    return summarise(NeuronEffects(none, none, none, values, values, values.sum(-1), values.sum(-1)), top_neurons)
