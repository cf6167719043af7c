"""The clean run of prompts: residuals, ``z`` of every head, final scale, correct logits and every component's direct effect.

Direct effects come from projected directions (``W_O[head] @ d / s``), so no head's d_model output and no logits are formed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from selfrepair.model.allocator import block_of_its_own
from selfrepair.model.calls import hooked
from selfrepair.model.experts import Routed
from selfrepair.model.model import COMPONENTS, Model


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


NO_EXPERT = -1
"""In place of an expert's number, in a dense layer or one that chooses fewer experts than another."""


@runtime_checkable
class EachLayer(Protocol):
    """A layer's tensor [prompt, pos, ...], read when it is asked for.

    A protocol rather than a sequence, of which a check of types at run time would read some layer to look at it.
    """

    def __getitem__(self, layer: int) -> Tensor:
        """Of a layer, counted from 0."""
        ...


OfLayers = Float[Tensor, "layer prompt pos ..."] | EachLayer
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
        postnorm_scales: Of "attention" and "mlp", the scale of each layer's post-norm [layer, prompt, pos-1], 1 where a layer
            has none; empty for models without.
        mean_logit: Mean over the vocabulary of the logits [prompt, pos-1], for models that cap them; 0 if they aren't centred.
        chosen_experts: The experts that each token chooses [layer, prompt, pos-1, slot], `NO_EXPERT` where there is none; None
            for models without experts that can be seen.
        expert_direct_effect: Of what each of them gives [layer, prompt, pos-1, slot], logits; 0 where there is none.
    """

    resid_pre: OfLayers
    z: OfLayers
    scale: Float[Tensor, "prompt predicted"]
    correct_logit: Float[Tensor, "prompt predicted"]
    head_direct_effect: Float[Tensor, "layer prompt predicted head"]
    mlp_direct_effect: Float[Tensor, "layer prompt predicted"]
    postnorm_scales: Mapping[str, Float[Tensor, "layer prompt predicted"]] = field(default_factory=dict)
    mean_logit: Float[Tensor, "prompt predicted"] | None = None
    chosen_experts: Int[Tensor, "layer prompt predicted slot"] | None = None
    expert_direct_effect: Float[Tensor, "layer prompt predicted slot"] | None = None

    def postnorm_scale(self, component: str, layer: int) -> Float[Tensor, "prompt predicted"] | None:
        """The scale of the post-norm of a layer's component; None for models without."""
        return self.postnorm_scales[component][layer] if self.postnorm_scales else None


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
        scales = {component: block(length - 1) for component in COMPONENTS if model.has_postnorms}
        chosen = torch.full((model.n_layers, n_prompts, length - 1, model.most_chosen), NO_EXPERT, dtype=torch.int16)
        chosen, by_expert = chosen.to(model.device), torch.zeros(chosen.shape, dtype=model.dtype, device=model.device)
        routed: dict[int, Routed] = {}

        def keep_resid(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
            resid_pre[layer] = args[0]

        def keep_z(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
            z[layer] = by_head(model, args[0])

        def keep_mlp(layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
            write = output(out, tokens.shape)[:, :-1]
            keep_scale("mlp", layer, write)
            scale = scales["mlp"][layer] if scales else None
            along = model.written(directions.d, "mlp", layer, scale)
            mlp_along_d[layer] = (write * along).sum(-1)
            if layer in routed:
                keep_experts(layer, routed.pop(layer), along)

        def keep_experts(layer: int, called: Routed, along: Tensor) -> None:
            experts = model.experts[layer]
            assert experts is not None
            own = called.chosen.view(n_prompts, length, -1)[:, :-1]
            chosen[layer, ..., : experts.slots] = own
            prompt, pos, slot = torch.nonzero(torch.ones_like(own), as_tuple=True)
            given = experts.given(called, prompt * length + pos, slot).view(*own.shape, -1)
            with model.measuring():
                by_expert[layer, ..., : experts.slots] = torch.linalg.vecdot(given.to(along), along[:, :, None])

        def keep_attention(layer: int, _: nn.Module, __: Any, out: Tensor | tuple[Any, ...]) -> None:
            keep_scale("attention", layer, output(out, tokens.shape)[:, :-1])

        def keep_scale(component: str, layer: int, write: Tensor) -> None:
            norm = model.postnorms[component][layer]
            if scales:
                scales[component][layer] = 1 if norm is None else norm.scale(write.to(model.dtype))

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
                if (experts := model.experts[at]) is not None:
                    handles.append(experts.watch(partial(routed.__setitem__, at)))
                if scales:
                    handles.append(model.attention(at).register_forward_hook(partial(keep_attention, at)))
            return handles

        with hooked(register), model.running():
            model.decoder(input_ids=tokens.to(model.device), use_cache=False)
        resid = final[-1]  # some models use their final norm before the first layer too
        scale = model.final_norm.scale(resid)
        scaled = directions.d / scale[..., None]
        head_effects = [
            head_direct_effects(
                z[layer, :, :-1] - model.value_constant[layer],
                project(model, layer, scaled, scales["attention"][layer] if scales else None),
            )
            for layer in range(model.n_layers)
        ]
        mean_logit = None
        if model.logit_cap is not None:
            mean_logit = resid @ model.mean_direction / scale + model.mean_constant
        return CleanRun(
            resid_pre=resid_pre,
            z=z,
            scale=scale,
            correct_logit=(resid * scaled).sum(-1) + directions.constant,
            head_direct_effect=torch.stack(head_effects),
            mlp_direct_effect=mlp_along_d / scale,
            postnorm_scales=scales,
            mean_logit=mean_logit,
            chosen_experts=chosen if model.most_chosen else None,
            expert_direct_effect=by_expert / scale[..., None] if model.most_chosen else None,
        )


def prompt_chunks(model: Model, n_prompts: int, length: int) -> list[slice]:
    """Runs of prompts that together hold at most ``model.batch_tokens`` tokens (one prompt at least)."""
    size = max(1, model.batch_tokens // length)
    return [slice(start, min(start + size, n_prompts)) for start in range(0, n_prompts, size)]


def output(out: Tensor | tuple[Any, ...], shape: Sequence[int]) -> Tensor:
    """What a component's module gives as [*shape, d_model]; some models flatten prompts and positions before their MLP."""
    write = out[0] if isinstance(out, tuple) else out
    return write.reshape(*shape, write.shape[-1])


def by_head(model: Model, flat: Tensor) -> Tensor:
    """An attention output projection's input [..., head * d_head] as ``z`` [..., head, d_head]."""
    return flat.unflatten(-1, (model.n_heads, model.d_head))


def project(model: Model, layer: int, scaled: Tensor, postnorm_scale: Tensor | None) -> Tensor:
    """The layer's projected directions ``W_O[head] @ d / s`` [prompt, pos-1, head, d_head].

    Args:
        model: The model.
        layer: The layer.
        scaled: d / s [prompt, pos-1, d_model].
        postnorm_scale: Of the attention's post-norm [prompt, pos-1]; None for models without.
    """
    return torch.einsum("ptm,hdm->pthd", model.written(scaled, "attention", layer, postnorm_scale), model.W_O[layer])


def head_direct_effects(z: Tensor, projected: Tensor) -> Tensor:
    """``z . (W_O @ d) / s`` [..., head] from ``z`` without its constant [..., head, d_head], at predicting positions."""
    return torch.linalg.vecdot(z, projected)
