"""What a model's own runs of a short prompt say of it, when it is loaded; the config may say another thing."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfrepair.model.calls import Call, gives, hooked
from selfrepair.model.model import CHECK_LENGTH, Model, check_tokens

CHECK_TOLERANCE = 1e-4
"""Of the sizes of the terms that are summed, what sums of a short prompt's run may be off by, in any dtype."""


def observed_parallel(model: Model) -> bool:
    """Whether attention and MLP of a layer read the same residual, whatever the config says.

    What the MLP reads is watched while the attention's output is changed.

    Raises:
        ValueError: An MLP that is not run once a layer, or layers that differ.
    """
    resid, out = _noise(model), _noise(model, 1)
    read: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    answers = []
    for layer, call in enumerate(model.layer_calls(CHECK_LENGTH)):
        read.clear()
        mlp = model.mlp(layer)
        with hooked(partial(_watch, mlp, keep)):
            for change in (out, -out):
                with gives(model.attention(layer), change):
                    call.replay(model.layers[layer], resid)
        if len(read) != 2:
            raise ValueError(
                f"{model.name} does not fit the definitions: the MLP of layer {layer} is not run once a layer"
            )
        answers.append(torch.equal(*read))
    if len(set(answers)) > 1:
        raise ValueError(
            f"{model.name} does not fit the definitions: the MLP reads what the attention beside it writes in layers "
            f"{[layer for layer, parallel in enumerate(answers) if not parallel]} and not in the others"
        )
    return answers[0]


def value_constant(model: Model) -> Float[Tensor, "layer head d_head"]:
    """C of every layer: ``z`` when the norm that feeds the attention gives its bias alone, at every position.

    Running the attention itself reads the values out of any layout of fused query, key and value weights.

    Raises:
        ValueError: An attention whose rows do not sum to one.
    """
    calls = model.attention_calls(CHECK_LENGTH)
    captured: list[Tensor] = []

    def capture(_: nn.Module, args: tuple[Any, ...]) -> None:
        captured.append(args[0])

    outs = [model.attention_out(layer) for layer in range(model.n_layers)]
    with hooked(lambda: [out.register_forward_pre_hook(capture) for out in outs]):
        for layer, call in enumerate(calls):
            nothing = torch.zeros(1, CHECK_LENGTH, model.d_model, dtype=model.dtype, device=model.device)
            call.replay(model.attention(layer), model.read_by_attention(layer, nothing))
    constant = torch.stack([z[0].unflatten(-1, (model.n_heads, model.d_head)) for z in captured])
    summed = constant.abs().amax() + torch.zeros_like(constant[:, 1:])
    _refuse_if_off(model, constant[:, 1:] - constant[:, :1], summed, "attention rows do not sum to one")
    return constant[:, 0].clone()


def attention_norms(model: Model) -> list[nn.Module | None]:
    """Per layer, the norm whose output its attention reads; None where that is the residual itself.

    Raises:
        ValueError: An attention that reads something else.
    """
    resid = _noise(model)
    return [_attention_norm(model, layer, call, resid) for layer, call in enumerate(model.layer_calls(CHECK_LENGTH))]


def _attention_norm(model: Model, number: int, call: Call, resid: Tensor) -> nn.Module | None:
    layer, attention = model.layers[number], model.attention(number)
    inside = set(attention.modules())
    others = [module for module in layer.modules() if module is not layer and module not in inside]
    gave: list[tuple[nn.Module, Any]] = []
    read: list[Tensor] = []

    def keep_output(module: nn.Module, _: Any, out: Any) -> None:
        gave.append((module, out))

    def keep_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(args[0] if args else kwargs["hidden_states"])

    def register() -> list[Any]:
        return [*_watch(attention, keep_input), *(module.register_forward_hook(keep_output) for module in others)]

    with hooked(register):
        call.replay(layer, resid)
    feeds = [module for module, out in gave if isinstance(out, Tensor) and torch.equal(out, read[0])]
    if not feeds and not torch.equal(read[0], resid):
        raise ValueError(
            f"{model.name} does not fit the definitions: the attention of layer {number} reads neither the residual nor what a "
            "norm of its layer makes of it"
        )
    return feeds[0] if feeds else None


@dataclass(frozen=True)
class ShortRun:
    """What hooks see in the model's own run of a short prompt.

    Attributes:
        tokens: Token ids [prompt, pos].
        first, final: The residual that enters the first layer, and that the final norm reads [prompt, pos, d_model].
        normed: What the final norm gives [prompt, pos, d_model].
        z, attention, mlp: Of each layer, what its attention's output projection reads and gives, and what its MLP gives.
        logits: [prompt, pos, vocab].
    """

    tokens: Tensor
    first: Tensor
    final: Tensor
    normed: Tensor
    z: list[Tensor]
    attention: list[Tensor]
    mlp: list[Tensor]
    logits: Tensor


def short_run(model: Model) -> ShortRun:
    """Run a short prompt as the model does."""
    tokens = check_tokens(model)[2:]
    seen: dict[str, list[Tensor]] = {"z": [], "attention": [], "mlp": [], "resid": [], "normed": []}

    # Clones: some layers add in place.
    def keep_input(name: str) -> Callable[..., None]:
        return lambda _, args: seen[name].append(args[0].clone())

    def keep_output(name: str) -> Callable[..., None]:
        return lambda _, __, out: seen[name].append((out[0] if isinstance(out, tuple) else out).clone())

    def register() -> list[Any]:
        handles = [
            model.layers[0].register_forward_pre_hook(keep_input("resid")),
            model.final_norm_module.register_forward_pre_hook(keep_input("resid")),
            model.final_norm_module.register_forward_hook(keep_output("normed")),
        ]
        for layer in range(model.n_layers):
            handles += [
                model.attention_out(layer).register_forward_pre_hook(keep_input("z")),
                model.attention_out(layer).register_forward_hook(keep_output("attention")),
                model.mlp(layer).register_forward_hook(keep_output("mlp")),
            ]
        return handles

    with hooked(register):
        logits = model.hf(input_ids=tokens, use_cache=False).logits
    first, final = seen["resid"]
    # Some models flatten prompts and positions before their MLP.
    attention, mlp = ([write.reshape(final.shape) for write in seen[name]] for name in ("attention", "mlp"))
    return ShortRun(tokens, first, final, seen["normed"][0], seen["z"], attention, mlp, logits)


def observed_write_factor(run: ShortRun) -> float:
    """What the outputs of attentions and MLPs are multiplied by when they are added; 1 in most models."""
    return _factor(run.final - run.first, torch.stack([*run.attention, *run.mlp]).sum(0))


def observed_logit_factor(model: Model, run: ShortRun) -> float:
    """What the logits are, as a multiple of the unembedding of what the final norm gives; 1 in most models."""
    return _factor(run.logits, model.hf.get_output_embeddings()(run.normed))


def _factor(product: Tensor, of: Tensor) -> float:
    """The number that ``of`` is multiplied by to give ``product``, as far as it is one: `check_definitions_hold` decides."""
    eps = torch.finfo(product.dtype).eps
    product, of = product.double(), of.double()
    found = float((product * of).sum() / (of * of).sum())
    if abs(found - 1) <= CHECK_TOLERANCE:
        return 1.0
    # Rounding errors of thousands of numbers leave about one: what is that near to a number of few digits is that number.
    rounded = float(f"{found:.6g}")
    return rounded if abs(rounded - found) <= 2 * eps * abs(found) else found


def check_definitions_hold(model: Model, run: ShortRun) -> None:
    """Hold the model to the definitions on a short prompt, so that nothing is measured that they do not cover.

    Raises:
        ValueError: What does not hold: heads that do not add up to their attention, components to the final residual, a logit
            that is not ``r . d / s + const``, layers that give another result when they are called again, or a last MLP that
            mixes positions.
    """
    tokens, first, final, logits = run.tokens, run.first, run.final, run.logits
    for layer in range(model.n_layers):
        bias = getattr(model.attention_out(layer), "bias", None)
        z = run.z[layer].unflatten(-1, (model.n_heads, model.d_head))
        write, summed = _sum_of_heads(z, model.W_O[layer], bias), _sum_of_heads(z.abs(), model.W_O[layer].abs(), None)
        off = write.reshape(final.shape) - run.attention[layer]
        _refuse_if_off(model, off, summed, f"heads of layer {layer} do not add up to its attention")
    terms = torch.stack([first, *(model.written(write) for write in (*run.attention, *run.mlp))])
    summed = terms.abs().sum(0)
    _refuse_if_off(model, terms.sum(0) - final, summed, "components do not add up to the final residual")
    resid = first
    for module, call in zip(model.layers, model.layer_calls(CHECK_LENGTH), strict=True):
        resid = call.replay(module, resid)
    # What rounds in one dimension reaches all others through the norms.
    _refuse_if_off(
        model, resid - final, summed.amax(-1, keepdim=True), "its layers give another result when called again"
    )
    direction, scale = model.direction(tokens), model.final_norm.scale(final)
    direct = (final * direction).sum(-1) / scale + model.token_constant(tokens)
    own = logits.gather(-1, tokens[..., None])[..., 0]
    own = own - logits.mean(-1) if model.center_unembed else own
    summed = final.norm(dim=-1) * direction.norm(dim=-1) / scale + own.abs() + logits.abs().mean(-1)
    _refuse_if_off(
        model, direct - own, summed, "its logits are not r . d / s + const (a norm, cap or factor in between)"
    )
    _check_mlp_by_position(model, first)


def _noise(model: Model, seed: int = 0) -> Tensor:
    """Random residuals of a short prompt [1, pos, d_model]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, CHECK_LENGTH, model.d_model, generator=generator, dtype=model.dtype).to(model.device)


def _watch(module: nn.Module, hook: Callable[..., None]) -> list[Any]:
    return [module.register_forward_pre_hook(hook, with_kwargs=True)]


def _sum_of_heads(z: Tensor, W_O: Tensor, bias: Any) -> Tensor:
    """What the heads of a layer write together, [..., d_model]."""
    write = torch.einsum("...hd,hdm->...m", z, W_O)
    return write if bias is None else write + bias


def _check_mlp_by_position(model: Model, resid: Tensor) -> None:
    """Refuse an MLP that mixes positions: ablated runs let the last one run at the tokens that are wanted alone."""
    inputs: list[Tensor] = []
    mlp = model.mlp(model.n_layers - 1)
    with hooked(lambda: [mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))]):
        model.layer_calls(CHECK_LENGTH)[-1].replay(model.layers[-1], resid)
    hidden = inputs[0]
    places = torch.tensor([5, 2], device=hidden.device)
    whole, part = (out[0] if isinstance(out, tuple) else out for out in (mlp(hidden), mlp(hidden[..., places, :])))
    off = whole[..., places, :] - part
    _refuse_if_off(model, off, whole.abs().amax() + torch.zeros_like(off), "the last layer's MLP mixes positions")


def _refuse_if_off(model: Model, off: Tensor, summed: Tensor, reason: str) -> None:
    """Refuse a difference beyond rounding of the ``summed`` sizes of the terms that should cancel in it."""
    largest = float((off.abs() - CHECK_TOLERANCE * summed).max())
    if not math.isfinite(largest) or largest > 0:
        raise ValueError(
            f"{model.name} does not fit the definitions: {reason} (off by {float(off.abs().max()):.2g} of "
            f"{float(summed.max()):.2g})"
        )
