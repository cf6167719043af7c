"""The clean run of a shard of prompts as a file, and what is averaged over all shards."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from selfrepair.engine.clean import NO_EXPERT, CleanRun, prompt_chunks, run_clean
from selfrepair.engine.rounding import repeated_tolerance
from selfrepair.files.hdf5 import MADE_BY, open_hdf5, write_hdf5
from selfrepair.files.sealed import advice_for
from selfrepair.measure.tokens import read_shard
from selfrepair.model.loading import load_model
from selfrepair.model.model import COMPONENTS, Model
from selfrepair.workflow.progress import Progress


def cache_activations(
    *,
    model_manifest: Path,
    tokens: Path,
    out: Path,
    prompts: tuple[int, int],
    compute: dict[str, Any],
    keep: bool,
    provenance: dict[str, Any],
) -> None:
    """Run a shard of prompts unablated and write what ablations start from.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        out: HDF5 file: resid_pre, z, scale, correct_logit, head_direct_effect, mlp_direct_effect, and scales of post-norms,
            mean logits and chosen experts where the model has such (`CleanRun`); z_sum, z summed over prompts and positions.
        prompts: First prompt of the shard, and the one after its last.
        compute: device, dtype, center_unembed.
        keep: Write resid_pre and z, all that is large. Without them each measurement runs the prompts again.
        provenance: From `selfrepair.workflow.jobs.job`.
    """
    model = load_model(model_manifest.parent, **compute)
    shard = read_shard(tokens, slice(*prompts))
    ids = torch.from_numpy(shard.tokens).long()
    n_prompts, length = ids.shape
    chunks = prompt_chunks(model, n_prompts, length)
    model.check_length(length)
    model.check_causal(ids[0])
    with (
        write_hdf5(out, kind="activations", provenance=provenance) as file,
        Progress(len(chunks), "clean run", "batch") as bar,
    ):
        variables = _declare(file, model, n_prompts, length, keep)
        z_sum = np.zeros((model.n_layers, model.n_heads, model.d_head))
        for chunk in chunks:
            clean = run_clean(model, ids[chunk])
            for layer in range(model.n_layers):
                z = clean.z[layer].cpu().numpy()
                z_sum[layer] += z.sum((0, 1), dtype="float64")
                if keep:
                    variables["resid_pre"][layer, chunk] = clean.resid_pre[layer].cpu().numpy()
                    variables["z"][layer, chunk] = z
            variables["clean_scale"][chunk] = clean.scale.cpu().numpy()
            variables["correct_logit"][chunk] = clean.correct_logit.cpu().numpy()
            variables["head_direct_effect"][:, :, chunk] = clean.head_direct_effect.movedim(-1, 1).cpu().numpy()
            variables["mlp_direct_effect"][:, chunk] = clean.mlp_direct_effect.cpu().numpy()
            for component, scales in clean.postnorm_scales.items():
                variables[f"{component}_postnorm_scale"][:, chunk] = scales.cpu().numpy()
            if clean.mean_logit is not None:
                variables["mean_logit"][chunk] = clean.mean_logit.cpu().numpy()
            if clean.chosen_experts is not None and clean.expert_direct_effect is not None:
                variables["chosen_experts"][:, chunk] = clean.chosen_experts.cpu().numpy()
                variables["expert_direct_effect"][:, chunk] = clean.expert_direct_effect.cpu().numpy()
            bar.advance()
        file.put("z_sum", ("layer", "head", "d_head"), z_sum, description="z summed over prompts and positions")


def _declare(file: Any, model: Model, n_prompts: int, length: int, keep: bool) -> dict[str, Any]:
    dtype = torch.zeros(0, dtype=model.dtype).numpy().dtype
    file.dims(
        layer=model.n_layers,
        head=model.n_heads,
        prompt=n_prompts,
        pos=length,
        predicting_pos=length - 1,
        d_model=model.d_model,
        d_head=model.d_head,
    )
    one = {"layer": 1, "prompt": 1}
    large = {
        "resid_pre": (("layer", "prompt", "pos", "d_model"), "", "residual that enters the layer"),
        "z": (("layer", "prompt", "pos", "head", "d_head"), "", "weighted values, the input of the output projection"),
    }
    declared = {
        **(large if keep else {}),
        "clean_scale": (("prompt", "predicting_pos"), "", "scale s of the final norm"),
        "correct_logit": (("prompt", "predicting_pos"), "logits", "logit of the token that follows"),
        "head_direct_effect": (("layer", "head", "prompt", "predicting_pos"), "logits", "o . d / s of each head"),
        "mlp_direct_effect": (
            ("layer", "prompt", "predicting_pos"),
            "logits",
            "o . d / s of each MLP, its bias included",
        ),
    }
    for component in COMPONENTS if model.has_postnorms else ():
        text = f"scale of the post-norm of each {component}"
        declared[f"{component}_postnorm_scale"] = (("layer", "prompt", "predicting_pos"), "", text)
    if model.logit_cap is not None:
        declared["mean_logit"] = (("prompt", "predicting_pos"), "logits", "mean over the vocabulary, before the cap")
    if model.most_chosen:
        file.dims(slot=model.most_chosen)
        dims = ("layer", "prompt", "predicting_pos", "slot")
        declared["chosen_experts"] = (dims, "", f"experts that a token chooses; {NO_EXPERT} where there is none")
        declared["expert_direct_effect"] = (dims, "logits", "o . d / s of what each of them gives")
    return {
        name: file.variable(
            name, dims, np.int16 if name == "chosen_experts" else dtype, chunk=one, units=units, description=text
        )
        for name, (dims, units, text) in declared.items()
    }


class CachedActivations:
    """A shard's activations file, read a layer of some prompts at a time. Made by `open_activations`."""

    def __init__(
        self,
        dataset: xr.Dataset,
        model: Model,
        path: Path,
        tokens: Int[Tensor, "prompt pos"],
        layers: Iterable[int] | None,
    ) -> None:
        wanted = {"layer": model.n_layers, "head": model.n_heads, "d_model": model.d_model, "d_head": model.d_head}
        got = {dim: dataset.sizes.get(dim, size) for dim, size in wanted.items()}
        if got != wanted:
            raise ValueError(
                f"{path} has the shape of another model ({got}, this one {wanted}): "
                f"{advice_for(path, MADE_BY['activations'])}"
            )
        self._dataset = dataset
        self._device = model.device
        every = range(model.n_layers)
        self._remade = (
            {} if "z" in dataset else _run_again(model, tokens, every if layers is None else layers, dataset, path)
        )

    def clean_run(self, prompts: slice | np.ndarray) -> CleanRun:
        """The clean run of some prompts, as rows of the shard; residuals and z are read when they are asked for."""
        effects = self._read("head_direct_effect", prompt=prompts)
        return CleanRun(
            resid_pre=_Layers(self, "resid_pre", prompts),
            z=_Layers(self, "z", prompts),
            scale=self._read("clean_scale", prompt=prompts),
            correct_logit=self._read("correct_logit", prompt=prompts),
            head_direct_effect=effects.movedim(1, -1),
            mlp_direct_effect=self._read("mlp_direct_effect", prompt=prompts),
            postnorm_scales={
                component: self._read(f"{component}_postnorm_scale", prompt=prompts)
                for component in COMPONENTS
                if f"{component}_postnorm_scale" in self._dataset
            },
            **{
                name: self._read(name, prompt=prompts)
                for name in ("mean_logit", "chosen_experts", "expert_direct_effect")
                if name in self._dataset
            },
        )

    def donor_z(self, layer: int, donors: np.ndarray) -> Float[Tensor, "prompt pos head d_head"]:
        """``z`` of a layer averaged over each prompt's donors [prompt, donor], rows of the shard."""
        z = self._layer("z", layer)
        return z[torch.from_numpy(donors).to(self._device).long()].mean(1)

    def _layer(self, name: str, layer: int, prompts: slice | np.ndarray = slice(None)) -> Tensor:
        if self._remade:
            return self._remade[name][layer][prompts].to(self._device)
        return self._read(name, layer=layer, prompt=prompts)

    def _read(self, name: str, **where: Any) -> Tensor:
        return torch.from_numpy(self._dataset[name].isel(where).values).to(self._device)


Layers = Mapping[int, Float[Tensor, "prompt pos ..."]]


def _run_again(
    model: Model, tokens: Int[Tensor, "prompt pos"], layers: Iterable[int], dataset: xr.Dataset, path: Path
) -> Mapping[str, Layers]:
    """What an activations file was made without, of the layers that ablations start from.

    Raises:
        ValueError: The run is not the one that the file is of.
    """
    starts = set(layers) & set(range(model.n_layers))
    # Where attention and MLP are taken apart, a head's write is added to what the next layer reads.
    after = {layer + 1 for layer in starts if layer + 1 < model.n_layers}
    read = {"resid_pre": starts | after, "z": starts}
    sizes = {"resid_pre": (model.d_model,), "z": (model.n_heads, model.d_head)}
    made = {
        name: {layer: torch.empty(*tokens.shape, *sizes[name], dtype=model.dtype) for layer in read[name]}
        for name in read
    }
    chunks = prompt_chunks(model, *tokens.shape)
    with Progress(len(chunks), "clean run", "batch") as bar:
        for chunk in chunks:
            clean = run_clean(model, tokens[chunk])
            # A norm of the whole stream, in which nothing cancels.
            scale, written = clean.scale.cpu(), torch.from_numpy(dataset["clean_scale"].isel(prompt=chunk).values)
            off = float(((scale - written).abs() / written).max())
            if not off <= repeated_tolerance(model):
                raise ValueError(
                    f"{path} is of another clean run: final scales differ by {off:.1g} of their size, where rounding explains "
                    f"{repeated_tolerance(model):.1g}: {advice_for(path, MADE_BY['activations'])}"
                )
            for name, of_layers in made.items():
                for layer, values in of_layers.items():
                    values[chunk] = getattr(clean, name)[layer].cpu()
            bar.advance()
    return made


class _Layers:
    """A variable's layers of some prompts, each read when it is asked for."""

    def __init__(self, cached: CachedActivations, name: str, prompts: slice | np.ndarray) -> None:
        self._cached, self._name, self._prompts = cached, name, prompts

    def __getitem__(self, layer: int) -> Tensor:
        return self._cached._layer(self._name, layer, self._prompts)


@contextmanager
def open_activations(
    path: Path, model: Model, tokens: Int[Tensor, "prompt pos"], layers: Iterable[int] | None = None
) -> Iterator[CachedActivations]:
    """Open an activations file for the model that it was made with.

    Residuals and ``z`` that the file is without are made again, and held in memory.

    Args:
        path: The file.
        model: The model.
        tokens: Token ids of the shard's prompts.
        layers: Layers whose heads are ablated: ``z`` and residuals that enter and leave these are there. None means all.

    Raises:
        ValueError: The file is missing, damaged, of a model of another shape or of another run.
    """
    with ExitStack() as stack:
        dataset = stack.enter_context(open_hdf5(path, "activations"))
        yield CachedActivations(dataset, model, path, tokens, layers)
