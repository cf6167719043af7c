"""A TransformerLens bridge as the plain model that it wraps."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfrepair.snapshots.folder import some

T = TypeVar("T", bound=Tensor)

_WRAPPED = "_original_component."
_TOKENS, _ROUNDINGS = 16, 1000
"""Length of the prompt on which bridge and model are compared, and by how many roundings of float32 their logits may differ:
the bridge's own attention computes in that, whatever the model does."""


def is_bridge(source: object) -> bool:
    """Whether something is a TransformerBridge; TransformerLens is not imported to find that out."""
    return any(of.__name__ == "TransformerBridge" for of in type(source).__mro__)


def unbridged(bridge: Any) -> PreTrainedModel:
    """The model that a TransformerBridge wraps, without the bridge's modules and hooks, over the same weights.

    The bridge is not changed, and no weight is copied. Attention runs as torch has it, where the architecture allows that:
    the bridge's own keeps attention patterns, which nothing here reads.

    Args:
        bridge: From `TransformerBridge.boot_transformers`.

    Raises:
        ValueError: Its weights were folded or centred (`enable_compatibility_mode`), or the plain model gives other logits.
    """
    if getattr(bridge, "compatibility_mode", False):
        raise ValueError(
            "the TransformerBridge is in compatibility mode, its weights folded and centred: pass one as boot_transformers "
            "returns it; what is measured is the model as it was trained"
        )
    wrapped = bridge.original_model
    config = copy.deepcopy(wrapped.config)
    config._attn_implementation = "sdpa" if wrapped._supports_sdpa else "eager"
    with torch.device("meta"):
        plain = type(wrapped)(config)
    held = _plain_names(dict(wrapped.named_parameters(remove_duplicate=False)))
    wanted = dict(plain.named_parameters(remove_duplicate=False))
    missing = [name for name in wanted if name not in held or held[name].shape != wanted[name].shape]
    if missing:
        raise ValueError(
            f"the TransformerBridge lacks {len(missing)} weights of the {type(wrapped).__name__} that it wraps ({some(missing)}"
            "): pass that model itself, loaded by transformers"
        )
    for name in wanted:
        folder, _, leaf = name.rpartition(".")
        plain.get_submodule(folder).register_parameter(leaf, held[name])
    buffers = _plain_names(dict(wrapped.named_buffers(remove_duplicate=False)))
    for name, _ in list(plain.named_buffers(remove_duplicate=False)):
        if name in buffers:
            folder, _, leaf = name.rpartition(".")
            module = plain.get_submodule(folder)
            module.register_buffer(leaf, buffers[name], persistent=leaf not in module._non_persistent_buffers_set)
    plain.generation_config = getattr(wrapped, "generation_config", None)
    _compare(bridge, plain.eval())
    return plain


def _plain_names(tensors: dict[str, T]) -> dict[str, T]:
    return {name.replace(_WRAPPED, ""): tensor for name, tensor in tensors.items()}


def _compare(bridge: Any, plain: PreTrainedModel) -> None:
    """Refuse where a bridge runs other weights than those that it was found to hold."""
    device = next(plain.parameters()).device
    length = min(_TOKENS, getattr(plain.config, "max_position_embeddings", None) or _TOKENS)
    vocabulary = plain.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(length, device=device) * 7919 % vocabulary)[None]
    with torch.inference_mode():
        ours, theirs = plain(input_ids=ids, use_cache=False).logits, bridge(ids, return_type="logits")
    off = float((ours - theirs).abs().max())
    allowed = _ROUNDINGS * torch.finfo(torch.float32).eps * float(theirs.abs().max())
    if not off <= allowed:
        raise ValueError(
            f"the TransformerBridge gives other logits than the {type(plain).__name__} of its weights (by {off:.2g}, where "
            f"rounding explains {allowed:.1g}): it was changed or has hooks; pass one as boot_transformers returns it"
        )
