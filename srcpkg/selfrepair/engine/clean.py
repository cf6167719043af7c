"""The clean run of prompts: residuals, ``z`` of every head, final scale, correct logits and every component's direct effect.

Direct effects come from projected directions (``W_O[head] @ d / s``), so no head's d_model output and no logits are formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.model.allocator import block_of_its_own
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model


@dataclass(frozen=True)
class Directions:
    """What turns residuals of some prompts into logits.

    Attributes:
        d: Correct-token directions [prompt, pos-1, d_model].
        constant: const(t) in logits [prompt, pos-1].
    """

    d: Float[Tensor, "prompt predicted d_model"]
    constant: Float[Tensor, "prompt predicted"]

    @classmethod
    def of(cls, model: Model, tokens: Int[Tensor, "prompt pos"]) -> "Directions":
        """The directions of prompts: position k predicts token k + 1."""
        targets = tokens[:, 1:].to(model.device)
        return cls(d=model.direction(targets), constant=model.token_constant(targets))


OfLayers = Float[Tensor, "layer prompt pos ..."] | Sequence[Float[Tensor, "prompt pos ..."]]
"""Something of each layer, all in memory or each read when it is asked for."""


@dataclass(frozen=True)
class CleanRun:
    """The unablated run of some prompts, with what an ablation needs of it.

    Attributes:
        resid_pre: Per layer [prompt, pos, d_model], the residual that enters the layer.
        z: Per layer [prompt, pos, head, d_head].
        scale: s of the final norm [prompt, pos-1].
        correct_logit: Correct logits [prompt, pos-1].
        head_direct_effect: [layer, prompt, pos-1, head], logits.
        mlp_direct_effect: [layer, prompt, pos-1], logits; the MLP's output bias is part of it.
    """

    resid_pre: OfLayers
    z: OfLayers
    scale: Float[Tensor, "prompt predicted"]
    correct_logit: Float[Tensor, "prompt predicted"]
    head_direct_effect: Float[Tensor, "layer prompt predicted head"]
    mlp_direct_effect: Float[Tensor, "layer prompt predicted"]


def run_clean(model: Model, tokens: Int[Tensor, "prompt pos"]) -> CleanRun:
    """Run prompts unablated.

    Args:
        model: The model.
        tokens: Token ids [prompt, pos].

    Returns:
        Residuals, ``z``, final scale, correct logits and every component's direct effect (definitions.md, Effects).

    Raises:
        ValueError: The prompts have more tokens than the model has positions for.
    """
    model.check_length(tokens.shape[1])
    n_prompts, length = tokens.shape
    final: list[Tensor] = []

    def block(*shape: int) -> Tensor:
        return block_of_its_own((model.n_layers, n_prompts, *shape), model.dtype, model.device)

    with torch.inference_mode():
        directions = Directions.of(model, tokens)
        resid_pre = block(length, model.d_model)
        z = block(length, model.n_heads, model.d_head)
        mlp_along_d = block(length - 1)

        def keep_resid(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
            resid_pre[layer] = args[0]

        def keep_z(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
            z[layer] = by_head(model, args[0])

        def keep_mlp(layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
            mlp_along_d[layer] = (written(out, tokens.shape)[:, :-1] * directions.d).sum(-1)

        def keep_final(_: nn.Module, args: tuple[Any, ...]) -> None:
            final.append(args[0][:, :-1])

        def register() -> list[Any]:
            handles = [model.final_norm_module.register_forward_pre_hook(keep_final)]
            for at in range(model.n_layers):
                handles += [
                    model.layers[at].register_forward_pre_hook(partial(keep_resid, at)),
                    model.attention_out(at).register_forward_pre_hook(partial(keep_z, at)),
                    model.mlp(at).register_forward_hook(partial(keep_mlp, at)),
                ]
            return handles

        with hooked(register), model.running():
            model.decoder(input_ids=tokens.to(model.device), use_cache=False)
        scale = model.final_norm.scale(final[0])
        scaled = directions.d / scale[..., None]
        head_effects = [
            head_direct_effects(z[layer, :, :-1] - model.value_constant[layer], project(model, layer, scaled))
            for layer in range(model.n_layers)
        ]
        return CleanRun(
            resid_pre=resid_pre,
            z=z,
            scale=scale,
            correct_logit=(final[0] * scaled).sum(-1) + directions.constant,
            head_direct_effect=torch.stack(head_effects),
            mlp_direct_effect=model.written(mlp_along_d) / scale,
        )


def prompt_chunks(model: Model, n_prompts: int, length: int) -> list[slice]:
    """Runs of prompts that together hold at most ``model.batch_tokens`` tokens (one prompt at least)."""
    size = max(1, model.batch_tokens // length)
    return [slice(start, min(start + size, n_prompts)) for start in range(0, n_prompts, size)]


def written(out: Tensor | tuple[Any, ...], shape: Sequence[int]) -> Tensor:
    """A component's output as [*shape, d_model]; some models flatten prompts and positions before their MLP."""
    write = out[0] if isinstance(out, tuple) else out
    return write.reshape(*shape, write.shape[-1])


def by_head(model: Model, flat: Tensor) -> Tensor:
    """An attention output projection's input [..., head * d_head] as ``z`` [..., head, d_head]."""
    return flat.unflatten(-1, (model.n_heads, model.d_head))


def project(model: Model, layer: int, scaled: Tensor) -> Tensor:
    """The layer's projected directions ``W_O[head] @ d / s`` [prompt, pos-1, head, d_head]."""
    return torch.einsum("ptm,hdm->pthd", model.written(scaled), model.W_O[layer])


def head_direct_effects(z: Tensor, projected: Tensor) -> Tensor:
    """``z . (W_O @ d) / s`` [..., head] from ``z`` without its constant [..., head, d_head], at predicting positions."""
    return torch.linalg.vecdot(z, projected)
