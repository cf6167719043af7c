"""The clean run of prompts: residuals, ``z`` of every head, final scale, correct logits and every component's direct effect.

Direct effects come from projected directions (``W_O[head] @ d / s``), so no head's d_model output and no logits are formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.models import Model, hooked


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

    resid_pre: Sequence[Float[Tensor, "prompt pos d_model"]]
    z: Sequence[Float[Tensor, "prompt pos head d_head"]]
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
    resid_pre: list[Tensor] = []
    z: list[Tensor] = []
    mlp_out: list[Tensor] = []

    def keep_resid(_: nn.Module, args: tuple[Any, ...]) -> None:
        resid_pre.append(args[0])

    def keep_z(_: nn.Module, args: tuple[Any, ...]) -> None:
        z.append(by_head(model, args[0]).to(model.dtype))

    def keep_mlp(_: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
        mlp_out.append(written(out, tokens.shape))

    def register() -> list[Any]:
        handles = [layer.register_forward_pre_hook(keep_resid) for layer in model.layers]
        handles += [model.attention_out(i).register_forward_pre_hook(keep_z) for i in range(model.n_layers)]
        handles += [model.mlp(i).register_forward_hook(keep_mlp) for i in range(model.n_layers)]
        return [*handles, model.final_norm_module.register_forward_pre_hook(keep_resid)]

    with torch.inference_mode():
        with hooked(register), model.running():
            model.hf.base_model(input_ids=tokens.to(model.device), use_cache=False)
        final = resid_pre.pop()[:, :-1]
        directions = Directions.of(model, tokens)
        scale = model.final_norm.scale(final)
        scaled = directions.d / scale[..., None]
        head_effects = [
            head_direct_effects(z[layer] - model.value_constant[layer], project(model, layer, scaled))
            for layer in range(model.n_layers)
        ]
        return CleanRun(
            resid_pre=resid_pre,
            z=z,
            scale=scale,
            correct_logit=(final * scaled).sum(-1) + directions.constant,
            head_direct_effect=torch.stack(head_effects),
            mlp_direct_effect=torch.stack([(out[:, :-1] * scaled).sum(-1) for out in mlp_out]),
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
    return torch.einsum("ptm,hdm->pthd", scaled, model.W_O[layer])


def head_direct_effects(z: Tensor, projected: Tensor) -> Tensor:
    """``z . (W_O @ d) / s`` [..., prompt, pos-1, head] from z without its constant [..., prompt, pos, head, d_head]."""
    return torch.linalg.vecdot(z[..., :-1, :, :], projected)
