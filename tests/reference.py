"""What docs/definitions.md says, by plain forward hooks on a whole transformers model: no code is shared with the package.

Each ablation is one forward pass of the whole model at full length, with one head's slice of the input of its output
projection overwritten. Nothing is projected, replayed, cut or batched, and an MLP's write is what a layer adds to the residual
beside its attention. Only float64 models make sense here: what is compared are small differences.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Hook = Callable[[], Any]


@dataclass
class Run:
    """One forward pass.

    Attributes:
        resid: What enters each layer, and last what leaves the last one; each [prompt, pos, d_model].
        z: Of each layer [prompt, pos, head, d_head].
        attention: What each layer's attention writes [prompt, pos, d_model].
        neurons: What the neurons of each layer's MLP give [prompt, pos, neuron].
        logits: Centred over the vocabulary [prompt, pos, vocab].
    """

    resid: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)
    attention: list[Tensor] = field(default_factory=list)
    neurons: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))

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
        self.blocks = _blocks(hf)
        self.clean, self.donor = self.run(tokens), self.run(donors)
        self.constants = [self._value_constant(layer) for layer in range(len(self.blocks))]
        self.direction = self._direction()
        self.scale = self._scale(self.clean)

    # --- the model -----------------------------------------------------------------------------------------------

    def run(self, tokens: Tensor, *more: Hook) -> Run:
        """A forward pass of the whole model, with ``more`` hooks registered first."""
        seen, n = Run(), self.n_heads
        hooks: list[Hook] = list(more)
        for at, block in enumerate(self.blocks):
            out, down = _attention_out(self.hf, block), _neurons_out(self.hf, block)
            if at == 0:
                hooks.append(_on_input(block, lambda x: seen.resid.append(x.clone())))
            hooks += [
                _on_output(block, lambda x: seen.resid.append(x.clone())),
                _on_input(out, lambda x: seen.z.append(x.unflatten(-1, (n, -1)).clone())),
                _on_output(out, lambda x: seen.attention.append(x.clone())),
                _on_input(down, lambda x: seen.neurons.append(x.reshape(*tokens.shape, -1).clone())),
            ]
        with _registered(hooks), torch.no_grad():
            logits = self.hf(input_ids=tokens, use_cache=False).logits
        seen.logits = logits - logits.mean(-1, keepdim=True)
        return seen

    def _direction(self) -> Tensor:
        """D of every token [prompt, pos-1, d_model]."""
        weight, _, centred = _final_norm(self.hf)
        unembed = self.hf.get_output_embeddings().weight.detach()
        d = weight * (unembed - unembed.mean(0))[self.tokens[:, 1:]]
        return d - d.mean(-1, keepdim=True) if centred else d

    def _scale(self, run: Run) -> Tensor:
        _, eps, centred = _final_norm(self.hf)
        r = run.resid[-1][:, :-1]
        r = r - r.mean(-1, keepdim=True) if centred else r
        return ((r * r).mean(-1) + eps).sqrt()

    def _value_constant(self, layer: int) -> Tensor:
        """C of a layer [head, d_head], from its own weights."""
        weight, bias, norm_bias = _values(self.hf, self.blocks[layer])
        constant = torch.zeros(weight.shape[0], dtype=torch.float64)
        if bias is not None:
            constant = constant + bias
        if norm_bias is not None:
            constant = constant + weight @ norm_bias
        clip = getattr(self.hf.config, "clip_qkv", None)
        if clip is not None:
            constant = constant.clamp(-clip, clip)
        d_head = self.clean.z[layer].shape[-1]
        by_group = constant.detach().unflatten(0, (-1, d_head))
        return by_group.repeat_interleave(self.n_heads // by_group.shape[0], dim=0)

    def head_writes(self, run: Run, layer: int) -> Tensor:
        """What each head of a layer writes [head, prompt, pos, d_model]: (z - c) @ W_O."""
        z = (run.z[layer] - self.constants[layer]).movedim(2, 0)
        weight = _output_weight(self.hf, self.blocks[layer]).unflatten(0, (self.n_heads, -1))
        return z @ weight[:, None]

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

        run = self.run(self.tokens, _on_input(_attention_out(self.hf, self.blocks[layer]), overwrite))
        return self._measured(run, "heads", (layer, head))

    def ablate_component(self, layer: int, component: str) -> Measured:
        """Let a layer's whole attention or MLP write what the donor's writes."""
        clean, donor = self.clean, self.donor
        if component == "attention":
            out = _attention_out(self.hf, self.blocks[layer])
            run = self.run(self.tokens, _on_input(out, lambda _: donor.z[layer].flatten(-2)))
            return self._measured(run, "heads", (layer,))
        assert component == "mlp"
        change = donor.mlp(layer) - clean.mlp(layer)
        run = self.run(self.tokens, _on_output(self.blocks[layer], lambda x: x + change))
        return self._measured(run, "mlps", (layer,))

    def z_with(self, layer: int, prompt: int, pos: int, resid: Tensor) -> Tensor:
        """``z`` [head, d_head] at a position of a prompt whose residual [d_model] there enters the layer changed."""

        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[prompt, pos] = resid
            return x

        return self.run(self.tokens, _on_input(self.blocks[layer], change)).z[layer][prompt, pos]

    def _effect(self, write: Tensor) -> Tensor:
        return (write[..., :-1, :] * self.direction).sum(-1) / self.scale

    def _effects(self, run: Run) -> dict[str, Tensor]:
        """Direct effects of all heads [layer, head, prompt, pos-1] and MLPs [layer, prompt, pos-1]."""
        layers = range(len(self.blocks))
        return {
            "heads": torch.stack([self._effect(self.head_writes(run, at)) for at in layers]),
            "mlps": torch.stack([self._effect(run.mlp(at)) for at in layers]),
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
            },
            by_head=by_head,
            by_mlp=by_mlp,
            run=run,
        )

    def neurons(self, run: Run, layer: int) -> Tensor:
        """Direct effects in a run of a layer's neurons [prompt, pos-1, neuron]."""
        weight = _as_input_by_output(_neurons_out(self.hf, self.blocks[layer]))
        return run.neurons[layer][:, :-1] * (self.direction @ weight.T) / self.scale[..., None]


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


# --- what transformers calls the parts of each architecture ----------------------------------------------------------


def _blocks(hf: Any) -> list[nn.Module]:
    kind = hf.config.model_type
    if kind == "gpt2":
        return list(hf.transformer.h)
    if kind == "gpt_neox":
        return list(hf.gpt_neox.layers)
    if kind == "opt":
        return list(hf.model.decoder.layers)
    return list(hf.model.layers)


def _attention_out(hf: Any, block: Any) -> nn.Module:
    kind = hf.config.model_type
    if kind == "gpt2":
        return block.attn.c_proj
    if kind == "gpt_neox":
        return block.attention.dense
    return getattr(block.self_attn, {"opt": "out_proj", "phi": "dense"}.get(kind, "o_proj"))


def _neurons_out(hf: Any, block: Any) -> nn.Module:
    kind = hf.config.model_type
    if kind == "opt":
        return block.fc2
    names = {"gpt2": "c_proj", "gpt_neox": "dense_4h_to_h", "phi": "fc2"}
    return getattr(block.mlp, names.get(kind, "down_proj"))


def _as_input_by_output(linear: Any) -> Tensor:
    """A weight [input, output]; GPT-2's Conv1D alone is kept that way."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, nn.Linear) else weight


def _output_weight(hf: Any, block: Any) -> Tensor:
    """W_O of all heads of a layer [head * d_head, d_model]."""
    return _as_input_by_output(_attention_out(hf, block))


def _values(hf: Any, block: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """W_V [values, d_model], b_V, and the bias of the norm that feeds the attention."""
    kind, width = hf.config.model_type, hf.config.hidden_size
    if kind == "gpt2":
        fused = block.attn.c_attn
        return fused.weight.T[2 * width :].detach(), fused.bias[2 * width :], block.ln_1.bias
    if kind == "gpt_neox":
        # Query, key and value of a head lie side by side.
        fused = block.attention.query_key_value
        of_heads = (hf.config.num_attention_heads, 3, -1)
        weight = fused.weight.detach().unflatten(0, of_heads)[:, 2].flatten(0, 1)
        bias = None if fused.bias is None else fused.bias.unflatten(0, of_heads)[:, 2].flatten()
        return weight, bias, block.input_layernorm.bias
    value = block.self_attn.v_proj
    norm = block.self_attn_layer_norm if kind == "opt" else block.input_layernorm
    return value.weight.detach(), value.bias, getattr(norm, "bias", None)


def _final_norm(hf: Any) -> tuple[Tensor, float, bool]:
    """Weight [d_model], eps, and whether it takes the mean off (LayerNorm) or not (RMSNorm)."""
    kind, config = hf.config.model_type, hf.config
    ones = torch.ones(config.hidden_size, dtype=torch.float64)
    if kind == "gpt2":
        return hf.transformer.ln_f.weight.detach(), config.layer_norm_epsilon, True
    if kind == "gpt_neox":
        return hf.gpt_neox.final_layer_norm.weight.detach(), config.layer_norm_eps, True
    if kind == "opt":
        weight = hf.model.decoder.final_layer_norm.weight
        return ones if weight is None else weight.detach(), 1e-5, True
    if kind == "olmo":
        return ones, 1e-5, True
    if kind == "phi":
        return hf.model.final_layernorm.weight.detach(), config.layer_norm_eps, True
    if kind == "stablelm":
        return hf.model.norm.weight.detach(), config.layer_norm_eps, True
    if kind == "gemma":
        return 1 + hf.model.norm.weight.detach(), config.rms_norm_eps, False
    assert kind in ("llama", "mistral", "qwen2", "qwen3", "smollm3")
    return hf.model.norm.weight.detach(), config.rms_norm_eps, False
