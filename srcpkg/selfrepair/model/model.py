"""Language models as the measurement sees them: where their heads, MLPs and final norm are, and what they write.

A head is a query head; it writes ``(z - c) @ W_O`` into the residual stream, where ``c`` is the value constant of its
layer (docs/definitions.md). The tensors are the model's own: nothing is folded, copied or changed.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from selfrepair.families import Family
from selfrepair.model.calls import LENGTHS, Call, Recorder, hooked
from selfrepair.model.experts import Experts
from selfrepair.model.norm import Norm
from selfrepair.model.placing import Weights, weights_as
from selfrepair.model.precision import Float64
from selfrepair.quantities import CAPPED, CHOSEN_EXPERTS, HEAD_TOKEN, OWN_POSTNORM, POSTNORMS

BATCH_TOKENS = 1024
"""Tokens that go through the layers at a time on a CPU: enough for full matmul speed, few enough for its caches."""
ACCELERATOR_BATCH_TOKENS = 16384
"""The same elsewhere: enough to fill a card, and some GiB of activations for a model of 7 billion weights."""

COMPONENTS = ("attention", "mlp")
"""What a layer has, by the names of `Family`'s paths."""

CHECK_LENGTH = LENGTHS[0]
"""Of the prompts by which a model is checked when it is loaded."""
CAUSAL_TOLERANCE = 1e-4
"""Of the largest ``z`` of a layer, what positions may differ by when later tokens do: matrix products of other rows."""


@dataclass(eq=False)
class Model:
    """A causal language model with the parts that the definitions name.

    Attributes:
        hf: The transformers model, unchanged.
        family: Its architecture's paths.
        layers: Its decoder layers.
        final_norm: The norm before the unembedding, as a formula.
        dtype: Floating-point type of everything measured; of the weights too, but where they are bfloat16.
        device: Where everything runs.
        W_O: Per layer [head, d_head, d_model], of that type and there: views of the model's own weights, or copies.
        W_out: Per layer [neuron, d_model], likewise: what each neuron of the MLP gives for each unit; None for a layer that is
            a mixture of experts.
        W_U: Unembedding [vocab, d_model], as the model keeps it.
        value_constant: c, [layer, head, d_head]: the constant in every ``z`` that belongs to no head.
        parallel: Attention and MLP of a layer read the same residual.
        center_unembed: Logits are mean-centred over the vocabulary.
        weights: What the weights are, for captions.
        bfloat16: The model's matrices are bfloat16, and its own products of them.
        offloaded: The layers' weights are not on the device, but while a module runs.
        write_factor: What the outputs of attentions and MLPs are multiplied by when they are added to the residual stream.
        logit_factor: What the unembedding of the final norm's output is multiplied by.
        logit_cap: What logits are capped at after that, as ``cap * tanh(logit / cap)``; None in most models. Logits are
            measured before it.
        attention_norms: Per layer, the norm whose output its attention reads; None where that reads the residual itself.
        postnorms: Of "attention" and "mlp", per layer, the RMSNorm that its output goes through before it is added to the
            residual stream; None in most models.
        experts: Per layer, the experts that its MLP chooses among; None for a dense layer, and in all layers of a model with a
            mixture whose choice cannot be seen.
    """

    hf: PreTrainedModel
    family: Family
    layers: list[nn.Module]
    final_norm: Norm
    dtype: torch.dtype
    device: torch.device
    W_O: Weights
    W_out: list[Float[Tensor, "neuron d_model"] | None]
    W_U: Float[Tensor, "vocab d_model"]
    parallel: bool
    center_unembed: bool
    weights: str
    bfloat16: bool = False
    offloaded: bool = False
    write_factor: float = 1.0
    logit_factor: float = 1.0
    logit_cap: float | None = None
    attention_norms: list[nn.Module | None] = field(init=False)
    postnorms: Mapping[str, list[Norm | None]] = field(init=False)
    experts: list[Experts | None] = field(init=False)
    value_constant: Float[Tensor, "layer head d_head"] = field(init=False)
    _unembed_mean: Float[Tensor, " d_model"] = field(init=False)
    _token_constant: Float[Tensor, " vocab"] = field(init=False)
    _mean_constant: Float[Tensor, ""] = field(init=False)

    def __post_init__(self) -> None:
        """Derive what depends on the unembedding alone."""
        mean = self.W_U.mean(dim=0, dtype=self.dtype)
        self._unembed_mean = mean if self.center_unembed else torch.zeros_like(mean)
        constant = self.W_U.to(self.dtype) @ self.final_norm.bias
        bias = getattr(self.hf.get_output_embeddings(), "bias", None)
        if bias is not None:
            constant = constant + bias
        self._token_constant = constant - constant.mean() if self.center_unembed else constant
        self._mean_constant = constant.mean() if self.center_unembed else torch.zeros_like(constant[0])
        self.postnorms = {component: [None] * self.n_layers for component in COMPONENTS}
        self.experts = [None] * self.n_layers

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads a layer."""
        return self.W_O.kept[0].shape[0]

    @property
    def d_head(self) -> int:
        """Width of a head's ``z``."""
        return self.W_O.kept[0].shape[1]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_U.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of tokens the unembedding knows."""
        return self.W_U.shape[0]

    @property
    def batch_tokens(self) -> int:
        """Tokens that go through the layers at a time; the peak of memory beside the weights is proportional to it."""
        return BATCH_TOKENS if self.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS

    @contextmanager
    def running(self, exact: bool = False) -> Iterator[None]:
        """What the model's own modules run in.

        Activations are bfloat16 where the matrices are, residuals never; a float64 model computes nothing in float32.

        Args:
            exact: A bfloat16 model computes in float32 too, with the same weights; slow.
        """
        with ExitStack() as stack:
            if self.dtype == torch.float64:
                stack.enter_context(Float64())
            if self.bfloat16:
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=not exact))
                embeddings = [module for module in self.hf.modules() if isinstance(module, nn.Embedding)]
                modules = self.hf.modules() if exact else embeddings
                stack.enter_context(weights_as(modules, self.device, self.dtype))
            if self.offloaded:
                stack.enter_context(weights_as(self._modules_of_layers, self.device))
            yield

    @cached_property
    def _modules_of_layers(self) -> list[nn.Module]:
        return [module for layer in self.layers for module in layer.modules()]

    def measuring(self) -> AbstractContextManager[Any]:
        """What a hook computes in while the model runs: nothing that is measured is a matrix product in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=False)

    @property
    def decoder(self) -> nn.Module:
        """The model without its unembedding."""
        return module_at(self.hf, self.family.layers.split(".")[0])

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a layer."""
        return module_at(self.layers[layer], self.family.attention)

    def read_by_attention(self, layer: int, resid: Tensor) -> Tensor:
        """What a layer's attention reads of a residual [..., d_model]: its norm's output."""
        norm = self.attention_norms[layer]
        return resid if norm is None else norm(resid)

    @property
    def has_postnorms(self) -> bool:
        """Whether any component's output is normalised before it is added to the residual stream."""
        return any(norm is not None for norms in self.postnorms.values() for norm in norms)

    @property
    def most_chosen(self) -> int:
        """The most experts that a token chooses in any layer; 0 in a model without experts that can be seen."""
        return max((experts.slots for experts in self.experts if experts is not None), default=0)

    @property
    def quantities(self) -> tuple[str, ...]:
        """What an ablation gives for each (head, token): `selfrepair.quantities.HEAD_TOKEN` without what the model lacks."""
        absent = {POSTNORMS, OWN_POSTNORM} if not self.has_postnorms else set()
        absent |= {CHOSEN_EXPERTS} if not self.most_chosen else set()
        absent |= {CAPPED} if self.logit_cap is None else set()
        return tuple(name for name in HEAD_TOKEN if name not in absent)

    def written(self, out: Tensor, component: str, layer: int, scale: Tensor | None) -> Tensor:
        """What a layer's component adds to the residual stream for an output, its post-norm's scale being held.

        It multiplies each dimension by a number, so that directions go through it too: ``written(o) . d = o . written(d)``.

        Args:
            out: The output, or a direction of the residual stream [..., d_model].
            component: "attention" or "mlp".
            layer: The layer.
            scale: Of its post-norm [...] (`selfrepair.engine.clean.CleanRun.postnorm_scale`); None where it has none.
        """
        norm = self.postnorms[component][layer]
        if norm is not None:
            assert scale is not None
            out = norm.weight * out / scale[..., None]
        return out if self.write_factor == 1 else self.write_factor * out

    def normed(self, out: Tensor, component: str, layer: int) -> Tensor:
        """What a layer's component adds to the residual stream for an output [..., d_model], by that output's own scale."""
        norm = self.postnorms[component][layer]
        return self.written(out, component, layer, None if norm is None else norm.scale(out))

    def attention_out(self, layer: int) -> nn.Module:
        """The attention's output projection of a layer: its input is [batch, pos, head * d_head]."""
        return module_at(self.layers[layer], self.family.attention_out)

    def mlp(self, layer: int) -> nn.Module:
        """The module of a layer whose output [batch, pos, d_model] is what the MLP writes."""
        return module_at(self.layers[layer], self.family.mlp)

    def why_no_neurons(self, layer: int) -> str | None:
        """Why the neurons of a layer's MLP have no direct effects to compare, and which layers' have; None where they have."""
        if self.W_out[layer] is not None:
            return None
        dense = [str(at) for at, weight in enumerate(self.W_out) if weight is not None]
        other = f"; analyses.neuron_layer can name a dense layer ({', '.join(dense)})" if dense else ""
        return f"layer {layer} is a mixture of experts: its neurons differ from token to token{other}"

    def neurons_write(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """What each neuron of a layer's MLP adds to the MLP's output for each unit that it gives.

        Raises:
            ValueError: The layer is a mixture of experts.
        """
        W_out = self.W_out[layer]
        if W_out is None:
            raise ValueError(f"{self.name} has no neurons to compare there: {self.why_no_neurons(layer)}")
        return W_out.to(self.device, self.dtype)

    def mlp_out(self, layer: int) -> nn.Module:
        """The MLP's output projection of a layer: its input [..., neuron] is what the neurons give, gates included."""
        return module_at(self.layers[layer], self.family.mlp_out)

    @property
    def final_norm_module(self) -> nn.Module:
        """The model's own final norm; its input is the final residual."""
        return module_at(self.hf, self.family.final_norm)

    def direction(self, targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The correct-token directions d of token ids: ``r . d / s`` is the correct logit up to a constant.

        Final-norm weight times the (centred) unembedding column; for LayerNorm also centred over d_model, which does
        the norm's own centring once and for all (docs/definitions.md, One prediction).
        """
        return self._centred(self.final_norm.weight * (self.W_U[targets].to(self.dtype) - self._unembed_mean))

    def _centred(self, d: Tensor) -> Tensor:
        """A direction [..., d_model] with the centring of the final norm, and the logits' factor."""
        d = d - d.mean(dim=-1, keepdim=True) if self.final_norm.centred else d
        return d if self.logit_factor == 1 else self.logit_factor * d

    @property
    def mean_direction(self) -> Float[Tensor, " d_model"]:
        """What gives the mean over the vocabulary that logits are centred by: ``r . this / s + mean_constant``."""
        return self._centred(self.final_norm.weight * self._unembed_mean)

    @property
    def mean_constant(self) -> Float[Tensor, ""]:
        """What the biases of the final norm and the unembedding add to that mean, in logits."""
        return self.logit_factor * self._mean_constant

    def capped(self, logits: Tensor) -> Tensor:
        """Logits as the model caps them; those before centring are meant."""
        return logits if self.logit_cap is None else self.logit_cap * torch.tanh(logits / self.logit_cap)

    @property
    def offset_length(self) -> float:
        """Length of what centring takes off every direction; logits of the unembedding itself have it, and round with it."""
        return abs(self.logit_factor) * float((self.final_norm.weight * self._unembed_mean).norm())

    def token_constant(self, targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """const(t) in logits: what the final norm's bias and the unembedding's bias add to a token's logit."""
        return self.logit_factor * self._token_constant[targets]

    def layer_calls(self, length: int, cut: int = 0) -> list[Call]:
        """The arguments of every layer for whole prompts of ``length`` tokens, less their last ``cut`` positions."""
        calls = self._layer_recorder.calls(length)
        return [call.at(slice(length - cut)) for call in calls] if cut else calls

    def attention_calls(self, length: int) -> list[Call]:
        """The arguments of every layer's attention for whole prompts of ``length`` tokens."""
        return self._attention_recorder.calls(length)

    @cached_property
    def _layer_recorder(self) -> Recorder:
        return self._recorder(self.layers)

    @cached_property
    def _attention_recorder(self) -> Recorder:
        return self._recorder([self.attention(layer) for layer in range(self.n_layers)])

    def _recorder(self, modules: list[nn.Module]) -> Recorder:
        def run(tokens: Tensor) -> None:
            with self.running():
                self.decoder(input_ids=tokens, use_cache=False)

        return Recorder(modules, run, check_tokens(self)[:2], self.name)

    def check_causal(self, tokens: Int[Tensor, " pos"]) -> None:
        """Refuse a model in which an earlier position of a prompt answers to a later one, as seen on the prompt itself.

        Ablated runs leave positions out at a prompt's end; that changes nothing only where no other position reads them.

        Args:
            tokens: Token ids of one prompt.

        Raises:
            ValueError: A layer's ``z`` at the first half of the prompt changes when the tokens of the second half do.
        """
        half = max(1, len(tokens) // 2)
        pair = torch.stack([tokens, torch.cat([tokens[:half], (tokens[half:] + 1) % self.vocab_size])]).to(self.device)
        off: list[Tensor] = []

        def compare(_: nn.Module, args: tuple[Any, ...]) -> None:
            z = args[0].unflatten(0, (2, -1))[:, :half] if args[0].ndim == 2 else args[0][:, :half]
            off.append((z[0] - z[1]).abs().max() / z.abs().max().clamp(min=torch.finfo(z.dtype).tiny))

        outs = [self.attention_out(layer) for layer in range(self.n_layers)]
        watched = hooked(lambda: [out.register_forward_pre_hook(compare) for out in outs])
        with torch.inference_mode(), watched, self.running():
            self.decoder(input_ids=pair, use_cache=False)
        largest = float(torch.stack(off).max())
        if not largest <= CAUSAL_TOLERANCE:
            raise ValueError(
                f"{self.name} is not causal: its heads at the first {half} tokens of a prompt change by {largest:.2g} of their "
                "size with the tokens after them. Self-repair is measured on models that predict the next token from those "
                "before it; if this one should, correct its config (is_causal, use_bidirectional_attention) or its masks"
            )

    def check_length(self, length: int) -> None:
        """Refuse prompts of more tokens than the model has positions for."""
        limit = getattr(self.hf.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ValueError(f"prompts have {length} tokens, {self.name} takes at most {limit}: shorten the prompts")

    @property
    def name(self) -> str:
        """What error messages call the model."""
        return f"{type(self.hf).__name__} ({self.hf.config.model_type})"


def check_tokens(model: Model) -> Int[Tensor, "prompt pos"]:
    """Three short prompts of random tokens, by which a model is checked when it is loaded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (3, CHECK_LENGTH), generator=generator).to(model.device)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module of a model at a path of names with dots between them."""
    return reduce(getattr, path.split("."), root)
