"""Models are loaded here, from a snapshot or from memory, and refused where a measurement would not hold."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from selfrepair.families import refuse_architecture
from selfrepair.model.allocator import keep_freed_memory
from selfrepair.model.bridged import is_bridge, unbridged
from selfrepair.model.calls import left_as_it_was
from selfrepair.model.model import Model, check_tokens
from selfrepair.model.observed import (
    attention_norms,
    check_definitions_hold,
    observed_experts,
    observed_logits,
    observed_parallel,
    observed_write_factor,
    postnorms,
    short_run,
    value_constant,
)
from selfrepair.model.parts import find_layers, find_parts
from selfrepair.model.placing import keep_matrices_in_bfloat16, place
from selfrepair.snapshots.folder import some
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.snapshots.weights import load_checked

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Types of residuals and measured values by the name in the config."""


def load_model(
    source: str | Path | PreTrainedModel | Any,
    device: str = "cpu",
    dtype: str = "float32",
    center_unembed: bool = True,
    weights: str | None = None,
    offload: bool = False,
) -> Model:
    """Load a model for measurement, or take one that is in memory.

    Args:
        source: A snapshot folder, another folder that save_pretrained wrote, a transformers causal language model, or a
            TransformerBridge of TransformerLens (without compatibility mode). A model in memory is used as it is and never
            changed; of a bridge, the weights.
        device: Torch device, such as "cpu" or "cuda".
        dtype: "float32" or "float64"; the type of residuals and of every measured value, and of the weights.
        center_unembed: Centre logits over the vocabulary, as the definitions do.
        weights: "bfloat16" keeps matrices in that type, with dtype "float32": half the memory, and faster on a GPU, as the
            model's own products of them are bfloat16 too. What that is off by is measured with everything.
        offload: Leave the layers' weights in memory, and copy each to the device while it runs: for a model that the device
            does not hold. Of a folder alone.

    Returns:
        The model with the parts that the definitions name, checked on a short prompt. Writes add up to the final
        residual, and the logit formula gives the model's own logits.

    Raises:
        ValueError: The folder holds no model, the model in memory has another dtype or device or is in training
            mode, it is a mixture of experts in bfloat16, or the definitions do not cover its architecture.

    Example:
        >>> import selfrepair
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> hf = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=100)).eval()
        >>> model = selfrepair.load_model(hf)
        >>> model.n_layers, model.n_heads, model.d_head, model.parallel
        (2, 4, 8, False)
        >>> selfrepair.load_model(hf, dtype="float64")
        Traceback (most recent call last):
        ValueError: the model in memory is torch.float32 (transformer.wte.weight), asked for torch.float64: ...
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype is {dtype!r}; wanted one of {', '.join(DTYPES)}: self-repair is a small difference of logits"
        )
    bfloat16 = weights is not None
    if bfloat16 and (weights, dtype) != ("bfloat16", "float32"):
        raise ValueError(
            f"weights are {weights!r} with dtype {dtype!r}; wanted 'bfloat16' with 'float32', or None: as dtype says"
        )
    named = "in memory"
    if is_bridge(source):
        source = unbridged(source)
    if isinstance(source, PreTrainedModel):
        if offload:
            raise ValueError("a model in memory is used where it is: save it and name the folder to have it offloaded")
        hf = source
    elif isinstance(source, str | Path):
        hf, named = _read_folder(Path(source), torch.device(device), DTYPES[dtype], bfloat16, offload)
    else:
        raise ValueError(
            f"source is a {type(source).__name__}; wanted a snapshot folder, a transformers PreTrainedModel or a "
            "TransformerBridge of TransformerLens"
        )
    _check_settings(hf, torch.device(device), DTYPES[dtype], bfloat16, offload)
    if device == "cpu":
        keep_freed_memory()
    model = find_parts(hf, center_unembed, named, bfloat16, offload)
    if bfloat16 and any(weight is None for weight in model.W_out):
        raise ValueError(
            f"{model.name} is a mixture of experts: rounding to bfloat16 lets tokens choose other experts, which moves single "
            "tokens by whole logits; leave weights (compute.weights) out, with offload if the device is too small"
        )
    try:
        # Not in bfloat16: what is looked at is the model, not its rounding.
        with left_as_it_was(hf), torch.inference_mode(), model.running(exact=True):
            model.check_causal(check_tokens(model)[0])
            model.parallel = observed_parallel(model)
            model.attention_norms = attention_norms(model)
            model.postnorms = postnorms(model)
            model.value_constant = value_constant(model)
            run = short_run(model)
            model.write_factor = observed_write_factor(model, run)
            model.logit_factor, model.logit_cap = observed_logits(model, run)
            check_definitions_hold(model, run)
            model.experts = observed_experts(model)
    except RuntimeError as error:
        # Out of memory, of a device or of this machine, says nothing of the model.
        if type(error) is not RuntimeError or "tried to allocate" in str(error):
            raise
        raise ValueError(
            f"{model.name} does not run on a short prompt ({str(error).splitlines()[0]}): correct its config, or load it with "
            "attn_implementation='sdpa' (a mixture of experts in float64: experts_implementation='eager')"
        ) from error
    return model


def _read_folder(
    folder: Path, device: torch.device, dtype: torch.dtype, bfloat16: bool, offload: bool
) -> tuple[PreTrainedModel, str]:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model (no config.json): name a snapshot, as results/snapshots/models/NAME that "
            "`snakemake` makes, or a folder that transformers' save_pretrained wrote"
        )
    weights = "in a local folder"
    if (folder / "manifest.json").exists():
        weights = verify_manifest(folder / "manifest.json", kind="model")["weights"]
    # Experts in groups know no float64.
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    hf = load_checked(folder, str(folder), dtype=torch.bfloat16 if bfloat16 else dtype, **experts)
    if bfloat16:
        keep_matrices_in_bfloat16(hf)
    refuse_architecture(hf.config.model_type, type(hf).__name__)
    place(hf.eval(), find_layers(hf), device, offload)
    return hf, weights


def _check_settings(
    hf: PreTrainedModel, device: torch.device, dtype: torch.dtype, bfloat16: bool, offload: bool
) -> None:
    """Refuse a model any part of which is without values, in training mode, or of another dtype or device than asked for."""
    unread = [name for name, tensor in (*hf.named_parameters(), *hf.named_buffers()) if tensor.is_meta]
    if unread:
        raise ValueError(
            f"{len(unread)} tensors of the model in memory are on the meta device, without values ({some(unread)}): "
            "load it whole, without offloading (no device_map to disk or meta)"
        )
    training = [name or type(module).__name__ for name, module in hf.named_modules() if module.training]
    if training:
        raise ValueError(
            f"the model is in training mode ({some(training)}), where dropout changes every run: call model.eval() first"
        )
    for name, weight in hf.named_parameters():
        wanted = torch.bfloat16 if bfloat16 and weight.ndim > 1 else dtype
        if weight.dtype != wanted:
            raise ValueError(
                f"the model in memory is {weight.dtype} ({name}), asked for {wanted}: convert it first (model.to({wanted})) or "
                "pass its dtype"
            )
        if weight.device.type != device.type and not offload:
            raise ValueError(
                f"the model in memory is on {weight.device} ({name}), asked for {device}: move it first, or pass its device"
            )
