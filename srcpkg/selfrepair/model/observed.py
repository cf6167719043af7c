"""What a model's own runs of a short prompt say of it, when it is loaded; the config may say another thing."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfrepair.model.calls import Call, forward_is, gives, hooked
from selfrepair.model.experts import Experts, Routed
from selfrepair.model.model import CHECK_LENGTH, COMPONENTS, Model, check_tokens
from selfrepair.model.norm import Norm, as_formula

logger = logging.getLogger(__name__)

SMALL, LARGE = 2.0**-30, 2.0**20
"""Numbers that a cap of logits leaves as they are, and that it leaves nothing of; exact in every dtype."""
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


def postnorms(model: Model) -> dict[str, list[Norm | None]]:
    """Of "attention" and "mlp", per layer, the norm that its output goes through before it is added.

    It is the module of a layer that reads the component's own output and gives another thing.

    Raises:
        ValueError: A module that is no RMSNorm without a bias, or post-norms where attention and MLP run side by side.
    """
    resid = _noise(model)
    found: dict[str, list[Norm | None]] = {component: [] for component in COMPONENTS}
    for number, call in enumerate(model.layer_calls(CHECK_LENGTH)):
        for component, module in zip(COMPONENTS, (model.attention(number), model.mlp(number)), strict=True):
            found[component].append(_postnorm(model, number, component, module, call, resid))
    if model.parallel and any(norm is not None for norms in found.values() for norm in norms):
        raise ValueError(
            f"{model.name} does not fit the definitions: its attentions and MLPs run side by side and are normalised after"
        )
    return found


def _postnorm(model: Model, number: int, component: str, module: nn.Module, call: Call, resid: Tensor) -> Norm | None:
    layer = model.layers[number]
    inside = set(module.modules())
    others = [other for other in layer.modules() if other is not layer and other not in inside]
    wrote: list[Tensor] = []
    seen: list[tuple[nn.Module, Tensor, Any]] = []

    def keep_written(_: nn.Module, __: Any, out: Any) -> None:
        wrote.append((out[0] if isinstance(out, tuple) else out).clone())  # some layers add in place

    def keep(other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        if isinstance(read, Tensor):
            seen.append((other, read.clone(), out))

    def register() -> list[Any]:
        handles = [other.register_forward_hook(keep, with_kwargs=True) for other in others]
        return [*handles, module.register_forward_hook(keep_written)]

    with hooked(register):
        call.replay(layer, resid)
    # Dropout reads an output too, and gives it back as it is.
    norms = [
        other
        for other, read, out in seen
        if torch.equal(read, wrote[0]) and not (isinstance(out, Tensor) and torch.equal(out, read))
    ]
    if not norms:
        return None
    formula = as_formula(norms[0], model.d_model, model.dtype, model.device)
    if len(norms) > 1 or formula.centred or bool(formula.bias.any()):
        raise ValueError(
            f"{model.name} does not fit the definitions: what the {component} of layer {number} gives goes through "
            f"{', '.join(type(norm).__name__ for norm in norms)}; wanted one RMSNorm without a bias, or none"
        )
    return formula


def observed_experts(model: Model) -> list[Experts | None]:
    """Per layer, the experts that its MLP chooses among; None for a dense layer.

    Returns:
        None for every layer where the choice of any cannot be seen: a change of experts is measured in all layers or in none.
    """
    resid = _noise(model)
    mixtures = [layer for layer, W_out in enumerate(model.W_out) if W_out is None]
    found: list[Experts | None] = [None] * model.n_layers
    for layer in mixtures:
        found[layer] = _experts(model, layer, model.layer_calls(CHECK_LENGTH)[layer], resid)
    if unseen := [layer for layer in mixtures if found[layer] is None]:
        logger.warning(
            "%s: which experts the MLPs of layers %s choose cannot be seen, so that no change of experts is measured",
            model.name,
            unseen,
        )
        return [None] * model.n_layers
    return found


def _experts(model: Model, number: int, call: Call, resid: Tensor) -> Experts | None:
    """The module of a layer's MLP that is called with tokens, their experts and weights, if it is a sum over single experts.

    Its factor is seen when it is made to give nothing.
    """
    mlp, layer = model.mlp(number), model.layers[number]
    seen: list[tuple[nn.Module, Routed, Tensor]] = []
    wrote: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        routed = Routed.of(args)
        if routed is not None and isinstance(out, Tensor) and out.shape == routed.hidden.shape:
            seen.append((module, routed, out.clone()))

    def keep_written(_: nn.Module, __: Any, out: Any) -> None:
        wrote.append((out[0] if isinstance(out, tuple) else out).reshape(-1, model.d_model).clone())

    def register() -> list[Any]:
        return [
            mlp.register_forward_hook(keep_written),
            *(module.register_forward_hook(keep) for module in mlp.modules() if module is not mlp),
        ]

    with hooked(register):
        call.replay(layer, resid)
        if len(seen) != 1 or len(seen[0][1].hidden) != CHECK_LENGTH:
            return None
        module, routed, out = seen[0]
        with forward_is(module, lambda *_: torch.zeros_like(out)):
            call.replay(layer, resid)
    added = wrote[0] - wrote[1]
    experts = Experts(module, routed.chosen.shape[1], _factor(added, out))
    token, slot = torch.nonzero(torch.ones_like(routed.chosen), as_tuple=True)
    each = experts.given(routed, token, slot).unflatten(0, routed.chosen.shape)
    summed = each.abs().sum(1) + wrote[1].abs()
    one_each = bool((routed.chosen.sort(-1).values.diff(dim=-1) != 0).all())
    adds_up = bool(((each.sum(1) - added).abs() <= CHECK_TOLERANCE * summed.amax(-1, keepdim=True)).all())
    return experts if one_each and adds_up else None


@dataclass(frozen=True)
class ShortRun:
    """What hooks see in the model's own run of a short prompt.

    Attributes:
        tokens: Token ids [prompt, pos].
        first, final: The residual that enters the first layer, and that the final norm reads [prompt, pos, d_model].
        normed: What the final norm gives [prompt, pos, d_model].
        z, attention, mlp: Of each layer, what its attention's output projection reads and gives, and what its MLP gives, before
            post-norms.
        unembedded: What the unembedding gives [prompt, pos, vocab].
        logits: [prompt, pos, vocab].
    """

    tokens: Tensor
    first: Tensor
    final: Tensor
    normed: Tensor
    z: list[Tensor]
    attention: list[Tensor]
    mlp: list[Tensor]
    unembedded: Tensor
    logits: Tensor


def short_run(model: Model) -> ShortRun:
    """Run a short prompt as the model does."""
    tokens = check_tokens(model)[2:]
    seen: dict[str, list[Tensor]] = {name: [] for name in ("z", "attention", "mlp", "resid", "normed", "unembedded")}

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
            model.hf.get_output_embeddings().register_forward_hook(keep_output("unembedded")),
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
    first, final = seen["resid"][-2:]  # some models use their final norm before the first layer too
    # Some models flatten prompts and positions before their MLP.
    attention, mlp = ([write.reshape(final.shape) for write in seen[name]] for name in ("attention", "mlp"))
    return ShortRun(tokens, first, final, seen["normed"][-1], seen["z"], attention, mlp, seen["unembedded"][0], logits)


def observed_write_factor(model: Model, run: ShortRun) -> float:
    """What the outputs of attentions and MLPs, after post-norms, are multiplied by when they are added; 1 in most models."""
    return _factor(run.final - run.first, torch.stack(_writes(model, run)).sum(0))


def _writes(model: Model, run: ShortRun) -> list[Tensor]:
    """What every component adds to the residual stream, by the factor known so far."""
    of = zip(COMPONENTS, (run.attention, run.mlp), strict=True)
    return [model.normed(out, component, layer) for component, outs in of for layer, out in enumerate(outs)]


def observed_logits(model: Model, run: ShortRun) -> tuple[float, float | None]:
    """What the logits are, as a multiple of the unembedding of what the final norm gives, and what they are capped at then.

    The unembedding is made to give known numbers, small and large, and the model's logits are looked at. What is multiplied
    before it is seen in the run.

    Returns:
        The factor, 1 in most models; the cap, None in most models.

    Raises:
        ValueError: Logits that are neither a multiple of these numbers, nor ``cap * tanh(multiple / cap)``.
    """
    numbers = torch.linspace(-1, 1, CHECK_LENGTH * model.vocab_size, dtype=model.dtype, device=model.device)
    numbers = numbers.reshape(1, CHECK_LENGTH, model.vocab_size)
    unembed = model.hf.get_output_embeddings()

    def logits(size: float) -> Tensor:
        with hooked(lambda: [unembed.register_forward_hook(lambda _, __, out: size * numbers[:, : out.shape[1]])]):
            return model.hf(input_ids=check_tokens(model)[2:], use_cache=False).logits

    factor = _neat(float(logits(SMALL)[0, -1, -1]) / SMALL, model.dtype)
    largest = float(logits(LARGE)[0, -1, -1])
    cap = None if abs(largest - factor * LARGE) <= CHECK_TOLERANCE * LARGE else largest
    for size in (1.0, 10.0, 100.0):
        given = factor * size * numbers
        wanted = given if cap is None else cap * torch.tanh(given / cap)
        _refuse_if_off(
            model,
            logits(size) - wanted,
            given.abs().amax() + torch.zeros_like(given),
            "its logits are neither a multiple of what the unembedding gives, nor such a multiple capped by tanh",
        )
    return factor * _factor(run.unembedded, unembed(run.normed)), cap


def _factor(product: Tensor, of: Tensor) -> float:
    """The number that ``of`` is multiplied by to give ``product``, as far as it is one: `check_definitions_hold` decides."""
    dtype, product, of = product.dtype, product.double(), of.double()
    found = float((product * of).sum() / (of * of).sum())
    return 1.0 if abs(found - 1) <= CHECK_TOLERANCE else _neat(found, dtype)


def _neat(found: float, dtype: torch.dtype) -> float:
    """A number without the rounding of a type: what is near to one of few digits is that one."""
    rounded = float(f"{found:.6g}")
    return rounded if abs(rounded - found) <= 2 * torch.finfo(dtype).eps * abs(found) else found


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
    terms = torch.stack([first, *_writes(model, run)])
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
    uncapped = model.logit_factor * model.hf.get_output_embeddings()(run.normed)
    own, mean = uncapped.gather(-1, tokens[..., None])[..., 0], uncapped.mean(-1)
    summed = final.norm(dim=-1) * direction.norm(dim=-1) / scale + own.abs() + uncapped.abs().mean(-1)
    reason = "its logits are not r . d / s + const (a norm, cap or factor in between)"
    _refuse_if_off(model, direct - (own - mean if model.center_unembed else own), summed, reason)
    _refuse_if_off(model, model.capped(uncapped) - logits, summed[..., None].expand_as(logits), reason)
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
    return write if bias is None else write + bias.to(write)


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
