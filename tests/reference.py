"""What docs/definitions.md says, by plain forward hooks on a whole transformers model: no code is shared with the package.

Each ablation is one forward pass of the whole model at full length, with one head's slice of the input of its output
projection overwritten. Nothing is projected, replayed, cut or batched, and an MLP's write is what a layer adds to the residual
beside its attention. Only float64 models make sense here: what is compared are small differences.

No architecture is named here. What is what is seen in a run: an attention's output projection is the linear map that is called
last in it, the norm that feeds it the one whose output it gets, what a norm does is told from what it makes of some inputs, and
a factor from what adds up.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

Hook = Callable[[], Any]


class InFloat64(TorchFunctionMode):
    """Float64 where a model's code asks for float32 by name, as norms, rotary tables and softmaxes do."""

    def __enter__(self) -> Any:
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.set_default_dtype(torch.float32)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        wide = {torch.float32: torch.float64}
        func = torch.Tensor.double if func is torch.Tensor.float else func
        changed = [wide.get(x, x) if isinstance(x, torch.dtype) else x for x in args]
        named = {k: wide.get(v, v) if isinstance(v, torch.dtype) else v for k, v in (kwargs or {}).items()}
        return func(*changed, **named)


@dataclass
class Run:
    """One forward pass.

    Attributes:
        resid: What enters each layer, and last what leaves the last one; each [prompt, pos, d_model].
        z: Of each layer [prompt, pos, head, d_head].
        attention: What each layer's attention writes [prompt, pos, d_model].
        given: By (component, layer), what goes into a post-norm [prompt, pos, d_model]; nothing for other components.
        neurons: What the neurons of each layer's MLP give [prompt, pos, neuron]; no layer that is a mixture of experts.
        routed: Of each mixture whose experts take a list of them, what these are called with and give: hidden [token, d_model],
            chosen [token, slot], weights [token, slot], output [token, d_model].
        normed: What the final norm gives [prompt, pos, d_model].
        logits: Before they are capped, centred over the vocabulary [prompt, pos, vocab].
        capped: The same with the model's cap, centred by what they were before it.
    """

    resid: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    given: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    neurons: dict[int, Tensor] = field(default_factory=dict)
    routed: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    normed: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    capped: Tensor = field(default_factory=lambda: torch.empty(0))

    def mlp(self, layer: int) -> Tensor:
        """What the MLP of a layer writes [prompt, pos, d_model]."""
        return self.resid[layer + 1] - self.resid[layer] - self.attention[layer]


@dataclass(frozen=True)
class Measured:
    """What ablating one head, attention or MLP does, in logits but for the scales; [prompt, pos-1] and more.

    Attributes:
        values: By name of docs/definitions.md, with ablated_scale and frozen_layernorm_logit_change.
        by_head: Change of every head's direct effect [layer, head, prompt, pos-1], the ablated one's included.
        by_mlp: Change of every MLP's direct effect [layer, prompt, pos-1].
        run: The ablated run.
    """

    values: dict[str, Tensor]
    by_head: Tensor
    by_mlp: Tensor
    run: Run


class Reference:
    """A model's prompts and donors, run by plain hooks.

    Args:
        hf: The transformers model, in float64.
        tokens: Token ids [prompt, pos].
        donors: Token ids of each prompt's donor [prompt, pos].

    Attributes:
        clean, donor: The unablated runs of both.
        constants: C of every layer [head, d_head].
        direction: D of every token [prompt, pos-1, d_model].
        scale: S of the final norm, clean [prompt, pos-1].
    """

    def __init__(self, hf: PreTrainedModel, tokens: Tensor, donors: Tensor) -> None:
        assert next(hf.parameters()).dtype == torch.float64
        self.hf, self.tokens = hf, tokens
        self.n_heads = hf.config.num_attention_heads
        self.blocks, last_norm = look(hf, tokens)
        self.final_norm = NormSeen.of(last_norm, hf)
        self.clean, self.donor = self.run(tokens), self.run(donors)
        self.constants = [self._value_constant(layer) for layer in range(len(self.blocks))]
        self.direction = self._direction()
        self.scale = self._scale(self.clean)

    # --- the model -----------------------------------------------------------------------------------------------

    def run(self, tokens: Tensor, *more: Hook) -> Run:
        """A forward pass of the whole model, with ``more`` hooks registered first."""
        seen = Run()
        hooks: list[Hook] = list(more)
        for at, block in enumerate(self.blocks):
            if at == 0:
                hooks.append(_on_input(block.module, lambda x: seen.resid.append(x.clone())))
            hooks += [
                _on_output(block.module, lambda x: seen.resid.append(x.clone())),
                _on_input(block.out, lambda x: seen.z.append(x.unflatten(-1, (self.n_heads, -1)).clone())),
                _on_output(block.writing, self._keep_write(seen, block)),
                *(_on_input(norm.module, self._keep_given(seen, key, at)) for key, norm in block.postnorms.items()),
            ]
            if block.neurons_out is not None:
                hooks.append(_on_input(block.neurons_out, self._keep_neurons(seen, at)))
            if block.experts is not None:
                hooks.append(self._keep_routed(seen, at, block.experts))
        hooks.append(_on_output(self.final_norm.module, lambda x: setattr(seen, "normed", x.clone())))
        cap, config = getattr(self.hf.config, "final_logit_softcapping", None), self.hf.config
        with _registered(hooks), torch.no_grad(), InFloat64():
            if cap is not None:
                model_logits = self.hf(input_ids=tokens, use_cache=False).logits
                seen.__init__()
                config.final_logit_softcapping = None
            logits = self.hf(input_ids=tokens, use_cache=False).logits
        mean = logits.mean(-1, keepdim=True)
        seen.logits, seen.capped = logits - mean, logits - mean
        if cap is not None:
            config.final_logit_softcapping = cap
            seen.capped = model_logits - mean
        return seen

    @staticmethod
    def _keep_given(seen: Run, component: str, layer: int) -> Callable[[Tensor], None]:
        return lambda x: seen.given.__setitem__((component, layer), x.clone())

    def _keep_neurons(self, seen: Run, layer: int) -> Callable[[Tensor], None]:
        return lambda x: seen.neurons.__setitem__(layer, _as(self.tokens, x).clone())

    @staticmethod
    def _keep_routed(seen: Run, layer: int, experts: nn.Module) -> Hook:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            seen.routed[layer] = tuple(x.clone() for x in (*args, out))

        return lambda: experts.register_forward_hook(hook)

    @staticmethod
    def _keep_write(seen: Run, block: "Block") -> Callable[[Tensor], None]:
        return lambda x: seen.attention.append(block.factor * x)

    def _direction(self) -> Tensor:
        """D of every token [prompt, pos-1, d_model]."""
        embedding = self.hf.get_output_embeddings()
        unembed = embedding.weight.detach() - embedding.weight.detach().mean(0)
        of_norm = self.clean.normed @ unembed.T
        bias = getattr(embedding, "bias", None)
        shift = 0 if bias is None else bias.detach() - bias.detach().mean()
        factor = ((self.clean.logits - shift) * of_norm).sum() / (of_norm * of_norm).sum()
        assert torch.allclose(factor * of_norm + shift, self.clean.logits, atol=1e-5), (
            "logits are no factor times U n(r)"
        )
        d = factor * self.final_norm.weight * unembed[self.tokens[:, 1:]]
        return d - d.mean(-1, keepdim=True) if self.final_norm.centred else d

    def _scale(self, run: Run) -> Tensor:
        return self.final_norm.scale(run.resid[-1][:, :-1])

    def _value_constant(self, layer: int) -> Tensor:
        """C of a layer [head, d_head]: what heads give at a prompt's first token if they read a norm's bias alone."""
        block = self.blocks[layer]
        with InFloat64():
            bias = 0 if block.norm is None else block.norm(torch.zeros(1, 1, self.final_norm.weight.numel()).double())
        run = self.run(self.tokens, _on_input(block.attention, lambda x: torch.zeros_like(x) + bias))
        return run.z[layer][0, 0]

    def head_writes(self, run: Run, layer: int) -> Tensor:
        """What each head of a layer writes [head, prompt, pos, d_model]: (z - c) @ W_O."""
        z = (run.z[layer] - self.constants[layer]).movedim(2, 0)
        weight = _as_input_by_output(self.blocks[layer].out).unflatten(0, (self.n_heads, -1))
        return self._held("attention", layer, self.blocks[layer].factor * (z @ weight[:, None]))

    def _held(self, component: str, layer: int, out: Tensor) -> Tensor:
        """An output [..., prompt, pos, d_model] as the component's post-norm writes it by its clean scale."""
        norm = self.blocks[layer].postnorms.get(component)
        return out if norm is None else norm.weight * out / norm.scale(self.clean.given[component, layer])[..., None]

    def _mlp_write(self, run: Run, layer: int) -> Tensor:
        """What an MLP writes by the clean scale of its post-norm [prompt, pos, d_model]."""
        if "mlp" not in self.blocks[layer].postnorms:
            return run.mlp(layer)
        return self._held("mlp", layer, self.blocks[layer].mlp_factor * run.given["mlp", layer])

    def _by_postnorms(self, run: Run) -> dict[tuple[str, int], Tensor]:
        """What the change of each post-norm's scale does, by component and layer [prompt, pos-1]."""
        found = {}
        for component, layer in run.given:
            block = self.blocks[layer]
            norm = block.postnorms[component]
            factor = block.factor if component == "attention" else block.mlp_factor
            before, now = (norm.scale(one.given[component, layer])[:, :-1] for one in (self.clean, run))
            along = (factor * norm.weight * run.given[component, layer][:, :-1] * self.direction).sum(-1)
            found[component, layer] = along * (1 / now - 1 / before) / self.scale
        return found

    def _by_choice(self, run: Run) -> Tensor:
        """Direct effect of all experts that came in, less the clean one of all that went out [prompt, pos-1]."""
        total = torch.zeros_like(self.scale)
        for layer in run.routed:
            (now, has), (before, had) = (self._expert_writes(one, layer) for one in (run, self.clean))
            change = torch.where(has & ~had, now, 0) - torch.where(had & ~has, before, 0)
            total += self._effect(self._held("mlp", layer, self.blocks[layer].mlp_factor * change.sum(0)))
        return total

    def _expert_writes(self, run: Run, layer: int) -> tuple[Tensor, Tensor]:
        """What each expert gives [expert, prompt, pos, d_model], from its weights, and where it is chosen [..., 1]."""
        experts, (x, chosen, weights, out) = self.blocks[layer].experts, run.routed[layer]
        writes, has = [], []
        with torch.no_grad(), InFloat64():
            for number, (into, back) in enumerate(zip(experts.gate_up_proj, experts.down_proj, strict=True)):
                gate, up = (x @ into.T).chunk(2, -1)
                weight = (weights * (chosen == number)).sum(-1, keepdim=True)
                writes.append(_as(self.tokens, weight * ((experts.act_fn(gate) * up) @ back.T)))
                has.append(_as(self.tokens, (chosen == number).any(-1)))
        assert torch.allclose(torch.stack(writes).sum(0), _as(self.tokens, out), atol=1e-10)
        return torch.stack(writes), torch.stack(has)

    # --- ablations -----------------------------------------------------------------------------------------------

    def replacement(self, layer: int, head: int, kind: str) -> Tensor:
        """What takes the place of a head's ``z``: [prompt, pos, d_head], or the same for all [d_head]."""
        if kind == "resample":
            return self.donor.z[layer][:, :, head]
        if kind == "mean":
            return self.clean.z[layer][:, :, head].mean((0, 1))
        assert kind == "zero"
        return self.constants[layer][head]

    def ablate_head(self, layer: int, head: int, kind: str) -> Measured:
        """Ablate one head at all positions."""
        wanted = self.replacement(layer, head, kind)

        def overwrite(x: Tensor) -> Tensor:
            z = x.unflatten(-1, (self.n_heads, -1)).clone()
            z[:, :, head] = wanted
            return z.flatten(-2)

        run = self.run(self.tokens, _on_input(self.blocks[layer].out, overwrite))
        return self._measured(run, "heads", (layer, head))

    def ablate_component(self, layer: int, component: str) -> Measured:
        """Let a layer's whole attention or MLP write what the donor's writes."""
        clean, donor = self.clean, self.donor
        if component == "attention":
            out = self.blocks[layer].out
            run = self.run(self.tokens, _on_input(out, lambda _: donor.z[layer].flatten(-2)))
            return self._measured(run, "heads", (layer,))
        assert component == "mlp"
        if (norm := self.blocks[layer].postnorms.get("mlp")) is not None:
            run = self.run(self.tokens, _on_input(norm.module, lambda _: donor.given["mlp", layer]))
            return self._measured(run, "mlps", (layer,))
        change = donor.mlp(layer) - clean.mlp(layer)
        run = self.run(self.tokens, _on_output(self.blocks[layer].module, lambda x: x + change))
        return self._measured(run, "mlps", (layer,))

    def z_with(self, layer: int, prompt: int, pos: int, resid: Tensor) -> Tensor:
        """``z`` [head, d_head] at a position of a prompt whose residual [d_model] there enters the layer changed."""

        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[prompt, pos] = resid
            return x

        return self.run(self.tokens, _on_input(self.blocks[layer].module, change)).z[layer][prompt, pos]

    def _effect(self, write: Tensor) -> Tensor:
        return (write[..., :-1, :] * self.direction).sum(-1) / self.scale

    def _effects(self, run: Run) -> dict[str, Tensor]:
        """Direct effects of all heads [layer, head, prompt, pos-1] and MLPs [layer, prompt, pos-1]."""
        layers = range(len(self.blocks))
        return {
            "heads": torch.stack([self._effect(self.head_writes(run, at)) for at in layers]),
            "mlps": torch.stack([self._effect(self._mlp_write(run, at)) for at in layers]),
        }

    def _measured(self, run: Run, part: str, ablated: tuple[int, ...]) -> Measured:
        """What a run gives in which some of the "heads" or "mlps" were ablated, (layer, head) or all of (layer,)."""
        clean, after = self._effects(self.clean), self._effects(run)
        by_head, by_mlp = after["heads"] - clean["heads"], after["mlps"] - clean["mlps"]

        def of_ablated(effects: Tensor) -> Tensor:
            own = effects[ablated]
            return own.sum(0) if own.ndim == 3 else own

        targets = self.tokens[:, 1:, None]
        logit_change = (run.logits - self.clean.logits)[:, :-1].gather(-1, targets)[..., 0]
        ablated_scale = self._scale(run)
        along = (run.resid[-1][:, :-1] * self.direction).sum(-1)
        from_layernorm = along * (1 / ablated_scale - 1 / self.scale)
        before, now = of_ablated(clean[part]), of_ablated(after[part])
        others = {"heads": by_head.sum((0, 1)), "mlps": by_mlp.sum(0)}
        others[part] = others[part] - (now - before)
        by_postnorms = self._by_postnorms(run)
        own = ("attention" if part == "heads" else "mlp", ablated[0])
        more = {}
        if by_postnorms:
            more["self_repair_from_postnorms"] = sum(by_postnorms.values())
            more["self_repair_from_own_postnorm"] = by_postnorms[own]
        if run.routed:
            more["self_repair_from_chosen_experts"] = self._by_choice(run)
        return Measured(
            values={
                "direct_effect": before,
                "ablated_direct_effect": now,
                "logit_change": logit_change,
                "self_repair": logit_change - (now - before),
                "self_repair_from_heads": others["heads"],
                "self_repair_from_mlps": others["mlps"],
                "self_repair_from_layernorm": from_layernorm,
                "ablated_scale": ablated_scale,
                "frozen_layernorm_logit_change": logit_change - from_layernorm,
                "capped_logit_change": (run.capped - self.clean.capped)[:, :-1].gather(-1, targets)[..., 0],
                **more,
            },
            by_head=by_head,
            by_mlp=by_mlp,
            run=run,
        )

    def neurons(self, run: Run, layer: int) -> Tensor:
        """Direct effects in a run of a layer's neurons [prompt, pos-1, neuron]."""
        block = self.blocks[layer]
        weight = block.mlp_factor * _as_input_by_output(block.neurons_out)
        direction = self.direction
        if (norm := block.postnorms.get("mlp")) is not None:
            direction = direction * norm.weight / norm.scale(self.clean.given["mlp", layer][:, :-1])[..., None]
        return run.neurons[layer][:, :-1] * (direction @ weight.T) / self.scale[..., None]


# --- what is what ----------------------------------------------------------------------------------------------------


@dataclass
class Block:
    """A decoder layer, as a run shows it.

    Attributes:
        module: The layer.
        attention: Its attention.
        norm: The norm that feeds the attention; None where that reads the residual.
        out: The attention's output projection.
        neurons_out: The MLP's; None for a mixture of experts.
        experts: Of a mixture, what is called with the experts that each token chooses; None for other layers.
        factor, mlp_factor: What the outputs of attention and MLP are multiplied by when they are added.
        postnorms: By "attention" and "mlp", the norm that the output goes through first, if any.
    """

    module: nn.Module
    attention: nn.Module
    norm: nn.Module | None
    out: nn.Module
    neurons_out: nn.Module | None
    experts: nn.Module | None
    factor: float
    mlp_factor: float
    postnorms: "dict[str, NormSeen]"

    @property
    def writing(self) -> nn.Module:
        """What gives what the attention writes, but for the factor."""
        return self.postnorms["attention"].module if "attention" in self.postnorms else self.out


@dataclass(frozen=True)
class NormSeen:
    """What a norm does: ``weight * (r - mean) / scale + bias``, the mean being 0 if it is not centred.

    Attributes:
        module: The norm.
        weight: [d_model].
        eps: In the scale.
        centred: Whether it takes the mean off.
    """

    module: nn.Module
    weight: Tensor
    eps: float
    centred: bool

    @classmethod
    def of(cls, module: nn.Module, hf: PreTrainedModel) -> "NormSeen":
        """Told from what it makes of nothing, of long vectors (which eps does not reach) and of short ones."""
        width = hf.get_input_embeddings().weight.shape[1] if module is None else _width(module, hf)
        x = torch.randn(4, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        with torch.no_grad(), InFloat64():
            bias = module(torch.zeros(1, width, dtype=torch.float64))
            centred = bool((module(x + 10) - module(x)).abs().max() < 1e-3)
            x = x - x.mean(-1, keepdim=True)
            square = x.pow(2).mean(-1, keepdim=True)
            weight = ((module(1e7 * x) - bias) * square.sqrt() / x).mean(0)
            size = weight * 1e-2 * x / (module(1e-2 * x) - bias)
        return cls(module, weight, float((size**2 - 1e-4 * square).mean()), centred)

    def scale(self, r: Tensor) -> Tensor:
        """S of residuals [..., d_model]."""
        r = r - r.mean(-1, keepdim=True) if self.centred else r
        return (r.pow(2).mean(-1) + self.eps).sqrt()


def _width(module: nn.Module, hf: PreTrainedModel) -> int:
    weight = getattr(module, "weight", None)
    return hf.config.hidden_size if weight is None else weight.shape[0]


def look(hf: PreTrainedModel, tokens: Tensor) -> tuple[list[Block], nn.Module]:
    """The layers of a model and its final norm, from one run of some prompts."""
    n_layers = hf.config.num_hidden_layers
    layers = next(list(m) for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers)
    called: dict[nn.Module, tuple[Any, Any]] = {}
    choosing: set[nn.Module] = set()

    def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        called.pop(module, None)  # so that the last called is last
        if "Expert" in type(module).__name__ and [x.dtype for x in args if isinstance(x, Tensor)][1:2] == [torch.int64]:
            choosing.add(module)
        read = args[0] if args else kwargs.get("hidden_states")
        called[module] = (read, out[0] if isinstance(out, tuple) else out)
        copies[module] = tuple(x.clone() if isinstance(x, Tensor) else x for x in called[module])

    copies: dict[nn.Module, tuple[Any, Any]] = {}
    hooks = [lambda m=m: m.register_forward_hook(see, with_kwargs=True) for m in hf.modules()]
    with _registered(hooks), torch.no_grad(), InFloat64():
        hf(input_ids=tokens, use_cache=False)
    inside = {id(m) for layer in layers for m in layer.modules()}
    norms = [m for m in called if "Norm" in type(m).__name__ and id(m) not in inside]
    return [_block(hf, layer, called, copies, choosing) for layer in layers], norms[-1]


def _block(
    hf: PreTrainedModel,
    layer: nn.Module,
    called: dict[nn.Module, tuple],
    copies: dict[nn.Module, tuple],
    choosing: set[nn.Module],
) -> Block:
    attention = next(m for m in layer.modules() if m is not layer and "Attention" in type(m).__name__ and m in called)
    of_attention = {id(m) for m in attention.modules()}
    linear = [m for m in called if isinstance(m, nn.Linear | Conv1D)]
    out = [m for m in linear if id(m) in of_attention][-1]
    children = [m for m in layer.children() if m in called and id(m) not in of_attention]
    norm = next((m for m in children if called[m][1] is called[attention][0]), None)
    experts = [m for m in children if any("Expert" in type(part).__name__ for part in m.modules())]
    down = None if experts else [m for m in linear if id(m) in {id(x) for x in layer.modules()} - of_attention][-1]
    resid = copies[layer][0]
    writing = [out, *(experts or [down])]
    after = {
        name: norm
        for name, m in zip(("attention", "mlp"), writing[:2], strict=True)
        for norm in children
        if "Norm" in type(norm).__name__ and _reads(copies[norm][0], copies[m][1])
    }
    writing[0] = after.get("attention", out)
    writing[1] = after.get("mlp", writing[1])
    writes = [_as(resid[..., 0], copies[m][1]).flatten() for m in writing]
    added = (copies[layer][1] - resid).flatten()
    factors = torch.linalg.lstsq(torch.stack(writes, 1), added[:, None]).solution[:, 0]
    assert torch.allclose(sum(f * w for f, w in zip(factors, writes, strict=True)), added, atol=1e-5)
    postnorms = {name: NormSeen.of(norm, hf) for name, norm in after.items()}
    routed = next((m for m in layer.modules() if m in choosing), None)
    return Block(layer, attention, norm, out, down, routed, *factors.tolist(), postnorms)


def _reads(read: Any, out: Tensor) -> bool:
    return isinstance(read, Tensor) and read.numel() == out.numel() and bool(torch.equal(read.flatten(), out.flatten()))


def _as(like: Tensor, values: Tensor) -> Tensor:
    """Values of tokens [prompt, pos, ...]; some models flatten prompts and positions before their MLP."""
    return values.reshape(*like.shape, -1)


def _as_input_by_output(linear: Any) -> Tensor:
    """A weight [input, output]; GPT-2's Conv1D alone is kept that way."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, nn.Linear) else weight


# --- hooks -----------------------------------------------------------------------------------------------------------


@contextmanager
def _registered(hooks: list[Hook]) -> Iterator[None]:
    handles = [hook() for hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _on_input(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Hook:
    """See a module's first argument, and replace it by what ``see`` gives, if anything."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = see(args[0] if args else kwargs["hidden_states"])
        if not isinstance(found, Tensor):
            return None
        return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

    return lambda: module.register_forward_pre_hook(hook, with_kwargs=True)


def _on_output(module: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Hook:
    """See a module's output, and replace it by what ``see`` gives, if anything."""

    def hook(_: nn.Module, __: Any, out: Any) -> Any:
        found = see(out[0] if isinstance(out, tuple) else out)
        if not isinstance(found, Tensor):
            return None
        return (found, *out[1:]) if isinstance(out, tuple) else found

    return lambda: module.register_forward_hook(hook)
