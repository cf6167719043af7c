"""The clean run of a shard of prompts as a file, and what is averaged over all shards."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from selfrepair.engine.clean import NO_EXPERT, CleanRun, prompt_chunks, run_clean
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
    provenance: dict[str, Any],
) -> None:
    """Run a shard of prompts unablated and write what ablations start from.

    Args:
        model_manifest: Of the model snapshot.
        tokens: Tokens file.
        out: HDF5 file: resid_pre, z, scale, correct_logit, head_direct_effect, mlp_direct_effect, and scales of post-norms,
            mean logits and chosen experts where the model has such (`CleanRun`).
        prompts: First prompt of the shard, and the one after its last.
        compute: device, dtype, center_unembed.
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
        variables = _declare(file, model, n_prompts, length)
        for chunk in chunks:
            clean = run_clean(model, ids[chunk])
            for layer in range(model.n_layers):
                variables["resid_pre"][layer, chunk] = clean.resid_pre[layer].cpu().numpy()
                variables["z"][layer, chunk] = clean.z[layer].cpu().numpy()
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


def _declare(file: Any, model: Model, n_prompts: int, length: int) -> dict[str, Any]:
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
    declared = {
        "resid_pre": (("layer", "prompt", "pos", "d_model"), "", "residual that enters the layer"),
        "z": (("layer", "prompt", "pos", "head", "d_head"), "", "weighted values, the input of the output projection"),
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

    def __init__(self, dataset: xr.Dataset, model: Model, path: Path) -> None:
        got = {dim: dataset.sizes[dim] for dim in ("layer", "head", "d_model", "d_head")}
        wanted = {"layer": model.n_layers, "head": model.n_heads, "d_model": model.d_model, "d_head": model.d_head}
        if got != wanted:
            raise ValueError(
                f"{path} has the shape of another model ({got}, this one {wanted}): "
                f"{advice_for(path, MADE_BY['activations'])}"
            )
        self._dataset = dataset
        self._device = model.device

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
        z = self._read("z", layer=layer)
        return z[torch.from_numpy(donors).to(self._device).long()].mean(1)

    def _read(self, name: str, **where: Any) -> Tensor:
        return torch.from_numpy(self._dataset[name].isel(where).values).to(self._device)


class _Layers(Sequence[Tensor]):
    """A variable's layers of some prompts, each read from the file when it is asked for."""

    def __init__(self, cached: CachedActivations, name: str, prompts: slice | np.ndarray) -> None:
        self._cached, self._name, self._prompts = cached, name, prompts

    def __len__(self) -> int:
        return int(self._cached._dataset.sizes["layer"])

    def __getitem__(self, layer: Any) -> Any:
        return self._cached._read(self._name, layer=layer, prompt=self._prompts)


@contextmanager
def open_activations(path: Path, model: Model) -> Iterator[CachedActivations]:
    """Open an activations file for the model that it was made with.

    Raises:
        ValueError: The file is missing, damaged, or of a model of another shape.
    """
    with ExitStack() as stack:
        dataset = stack.enter_context(open_hdf5(path, "activations"))
        yield CachedActivations(dataset, model, path)
