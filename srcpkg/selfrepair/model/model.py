"""Language models as the measurement sees them: where their heads, MLPs and final norm are, and what they write.

A head is a query head; it writes ``(z - c) @ W_O`` into the residual stream, where ``c`` is the value constant of its
layer (docs/definitions.md). The tensors are the model's own: nothing is folded, copied or changed.
"""

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from selfrepair.families import FAMILIES, Family, is_parallel, refuse_architecture
from selfrepair.model.allocator import keep_freed_memory
from selfrepair.model.calls import LENGTHS, Call, Recorder, gives, hooked, left_as_it_was
from selfrepair.snapshots.folder import some
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.snapshots.weights import load_checked

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.float32}
"""Type of weights, residuals and measured values by the name in the config; "bfloat16" is that of matrix products alone."""

BATCH_TOKENS = 1024
"""Tokens that go through the layers at a time on a CPU: enough for full matmul speed, few enough for its caches."""
ACCELERATOR_BATCH_TOKENS = 16384
"""The same elsewhere: enough to fill a card, and some GiB of activations for a model of 7 billion weights."""

CHECK_LENGTH = LENGTHS[0]
CHECK_TOLERANCE = 1e-4
"""Of the sizes of the terms that are summed, what sums of a short prompt's run may be off by at loading, in any dtype."""
CAUSAL_TOLERANCE = 1e-4
"""Of the largest ``z`` of a layer, what positions may differ by when later tokens do: matrix products of other rows."""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (``centred``) or RMSNorm as a formula: ``weight * (r - mean) / scale + bias``.

    Attributes:
        weight: [d_model], ones where the norm has none.
        bias: [d_model], zeros where the norm has none.
        eps: Added to the variance or mean square.
        centred: Whether the mean over d_model is removed first.
    """

    weight: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    eps: float
    centred: bool

    def scale(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The norm's scale s of residuals [..., d_model]: what they are divided by, one number each."""
        if self.centred:
            return (resid.var(dim=-1, correction=0) + self.eps).sqrt()
        return (resid.pow(2).mean(dim=-1) + self.eps).sqrt()


@dataclass(eq=False)
class Model:
    """A causal language model with the parts that the definitions name.

    Attributes:
        hf: The transformers model, unchanged.
        family: Its architecture's paths.
        layers: Its decoder layers.
        final_norm: The norm before the unembedding, as a formula.
        W_O: Per layer [head, d_head, d_model], views of the model's own weights.
        W_out: Per layer [neuron, d_model], likewise: what each neuron of the MLP writes for each unit that it gives.
        W_U: Unembedding [vocab, d_model], as the model keeps it.
        value_constant: c, [layer, head, d_head]: the constant in every ``z`` that belongs to no head.
        parallel: Attention and MLP of a layer read the same residual.
        center_unembed: Logits are mean-centred over the vocabulary.
        weights: What the weights are, for captions.
        bfloat16: The model's own matrix products run in bfloat16.
    """

    hf: PreTrainedModel
    family: Family
    layers: list[nn.Module]
    final_norm: Norm
    W_O: list[Float[Tensor, "head d_head d_model"]]
    W_out: list[Float[Tensor, "neuron d_model"]]
    W_U: Float[Tensor, "vocab d_model"]
    parallel: bool
    center_unembed: bool
    weights: str
    bfloat16: bool
    value_constant: Float[Tensor, "layer head d_head"] = field(init=False)
    _unembed_mean: Float[Tensor, " d_model"] = field(init=False)
    _token_constant: Float[Tensor, " vocab"] = field(init=False)

    def __post_init__(self) -> None:
        """Derive what depends on the unembedding alone."""
        self._unembed_mean = self.W_U.mean(dim=0) if self.center_unembed else torch.zeros_like(self.W_U[0])
        constant = self.W_U @ self.final_norm.bias
        bias = getattr(self.hf.get_output_embeddings(), "bias", None)
        if bias is not None:
            constant = constant + bias
        self._token_constant = constant - constant.mean() if self.center_unembed else constant

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads a layer."""
        return self.W_O[0].shape[0]

    @property
    def d_head(self) -> int:
        """Width of a head's ``z``."""
        return self.W_O[0].shape[1]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.W_U.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of tokens the unembedding knows."""
        return self.W_U.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_U.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights and of everything measured."""
        return self.W_U.dtype

    @property
    def batch_tokens(self) -> int:
        """Tokens that go through the layers at a time; the peak of memory beside the weights is proportional to it."""
        return BATCH_TOKENS if self.device.type == "cpu" else ACCELERATOR_BATCH_TOKENS

    def running(self) -> AbstractContextManager[Any]:
        """What the model's own modules run in: activations are bfloat16 where that is asked for, residuals never."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def measuring(self) -> AbstractContextManager[Any]:
        """What a hook computes in while the model runs: nothing that is measured is a matrix product in bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=False)

    def attention(self, layer: int) -> nn.Module:
        """The attention module of a layer."""
        return _module(self.layers[layer], self.family.attention)

    def attention_norm(self, layer: int) -> nn.Module:
        """The norm of a layer that feeds its attention."""
        return _module(self.layers[layer], self.family.attention_norm)

    def attention_out(self, layer: int) -> nn.Module:
        """The attention's output projection of a layer: its input is [batch, pos, head * d_head]."""
        return _module(self.layers[layer], self.family.attention_out)

    def mlp(self, layer: int) -> nn.Module:
        """The module of a layer whose output [batch, pos, d_model] is what the MLP writes."""
        return _module(self.layers[layer], self.family.mlp)

    def mlp_out(self, layer: int) -> nn.Module:
        """The MLP's output projection of a layer: its input [..., neuron] is what the neurons give, gates included."""
        return _module(self.layers[layer], self.family.mlp_out)

    @property
    def final_norm_module(self) -> nn.Module:
        """The model's own final norm; its input is the final residual."""
        return _module(self.hf, self.family.final_norm)

    def direction(self, targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The correct-token directions d of token ids: ``r . d / s`` is the correct logit up to a constant.

        Final-norm weight times the (centred) unembedding column; for LayerNorm also centred over d_model, which does
        the norm's own centring once and for all (docs/definitions.md, One prediction).
        """
        d = self.final_norm.weight * (self.W_U[targets] - self._unembed_mean)
        return d - d.mean(dim=-1, keepdim=True) if self.final_norm.centred else d

    @property
    def offset_length(self) -> float:
        """Length of what centring takes off every direction; logits of the unembedding itself have it, and round with it."""
        return float((self.final_norm.weight * self._unembed_mean).norm())

    def token_constant(self, targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """const(t) in logits: what the final norm's bias and the unembedding's bias add to a token's logit."""
        return self._token_constant[targets]

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
                self.hf.base_model(input_ids=tokens, use_cache=False)

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
        with torch.inference_mode(), hooked(lambda: [out.register_forward_pre_hook(compare) for out in outs]):
            self.hf.base_model(input_ids=pair, use_cache=False)
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


def load_model(
    source: str | Path | PreTrainedModel,
    device: str = "cpu",
    dtype: str = "float32",
    center_unembed: bool = True,
) -> Model:
    """Load a model for measurement, or take one that is in memory.

    Args:
        source: A snapshot folder, another folder that save_pretrained wrote, or a transformers causal language model. A
            model in memory is used as it is and never changed.
        device: Torch device, such as "cpu" or "cuda".
        dtype: "float32" or "float64"; the type of weights and of every measured value. "bfloat16" is float32 with the
            model's own matrix products in bfloat16: faster on a GPU, and off by its rounding, some hundredths of a logit.
        center_unembed: Centre logits over the vocabulary, as the definitions do.

    Returns:
        The model with the parts that the definitions name, checked on a short prompt: writes add up to the final
        residual, the logit formula gives the model's own logits.

    Raises:
        ValueError: The folder holds no model, the model in memory has another dtype or device or is in training
            mode, or the definitions do not cover its architecture.
    """
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype is {dtype!r}; wanted one of {', '.join(DTYPES)}: self-repair is a small difference of logits"
        )
    weights = "in memory"
    if isinstance(source, PreTrainedModel):
        hf = source
    elif isinstance(source, str | Path):
        hf, weights = _read_folder(Path(source), device, DTYPES[dtype])
    else:
        raise ValueError(
            f"source is a {type(source).__name__}; wanted a snapshot folder or a transformers PreTrainedModel"
        )
    _check_settings(hf, torch.device(device), DTYPES[dtype])
    if device == "cpu":
        keep_freed_memory()
    model = find_parts(hf, center_unembed, weights, bfloat16=dtype == "bfloat16")
    try:
        with left_as_it_was(hf), torch.inference_mode():
            model.check_causal(check_tokens(model)[0])
            model.parallel = _observed_parallel(model)
            model.value_constant = _value_constant(model)
            _check_definitions_hold(model)
    except RuntimeError as error:
        if type(error) is not RuntimeError:  # out of memory, for one
            raise
        raise ValueError(
            f"{model.name} does not run on a short prompt ({str(error).splitlines()[0]}): correct its config, or load it with "
            "attn_implementation='sdpa'"
        ) from error
    return model


def check_tokens(model: Model) -> Int[Tensor, "prompt pos"]:
    """Three short prompts of random tokens, by which a model is checked when it is loaded."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.vocab_size, (3, CHECK_LENGTH), generator=generator).to(model.device)


def _read_folder(folder: Path, device: str, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model (no config.json): name a snapshot, as results/snapshots/models/NAME that "
            "`snakemake` makes, or a folder that transformers' save_pretrained wrote"
        )
    weights = "in a local folder"
    if (folder / "manifest.json").exists():
        weights = verify_manifest(folder / "manifest.json", kind="model")["weights"]
    hf = load_checked(folder, str(folder), dtype=dtype, attn_implementation="sdpa")
    if dtype == torch.float64:
        _norm_in_own_dtype(hf)
    hf.eval().to(torch.device(device))
    return hf, weights


def _norm_in_own_dtype(hf: PreTrainedModel) -> None:
    """Replace RMSNorms that compute in float32 whatever their input, so that a float64 run is one throughout."""
    for name, module in list(hf.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            weight = cast(nn.Parameter, module.weight)
            norm = nn.RMSNorm(weight.shape, eps=float(module.variance_epsilon), dtype=weight.dtype)
            norm.weight = weight
            parent, _, leaf = name.rpartition(".")
            setattr(hf.get_submodule(parent), leaf, norm)


def _check_settings(hf: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
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
        if weight.dtype != dtype:
            raise ValueError(
                f"the model in memory is {weight.dtype} ({name}), asked for {dtype}: convert it first (model.to({dtype})) or "
                "pass its dtype"
            )
        if weight.device.type != device.type:
            raise ValueError(
                f"the model in memory is on {weight.device} ({name}), asked for {device}: move it first, or pass its device"
            )


def _module(root: nn.Module, path: str) -> nn.Module:
    return reduce(getattr, path.split("."), root)


def _input_by_output(linear: nn.Module) -> Tensor:
    """A linear layer's weight as [input, output], whichever way it is kept."""
    weight = cast(Tensor, linear.weight).detach()
    return weight if isinstance(linear, Conv1D) else weight.T


def find_parts(hf: PreTrainedModel, center_unembed: bool = True, weights: str = "", bfloat16: bool = False) -> Model:
    """The parts of a model, as `load_model` gives them but unchecked and without value constants; no weight is read.

    So a model on the meta device will do, to count its operations.

    Raises:
        ValueError: The definitions do not cover its architecture.
    """
    config = hf.config
    refuse_architecture(config.model_type, type(hf).__name__)
    family = FAMILIES[config.model_type]
    unembed = hf.get_output_embeddings()
    if unembed is None:
        raise ValueError(f"{type(hf).__name__} has no unembedding: load it with AutoModelForCausalLM")
    final_norm = _module(hf, family.final_norm)
    if final_norm is None or unembed.weight.shape[1] != config.hidden_size:
        raise ValueError(
            f"{type(hf).__name__} has no final norm before its unembedding, or a projection between them: "
            "the definitions do not cover it"
        )
    layers = list(cast(nn.ModuleList, _module(hf, family.layers)))
    W_O = []
    for layer in layers:
        weight = _input_by_output(_module(layer, family.attention_out))
        W_O.append(weight.unflatten(0, (config.num_attention_heads, -1)))
    return Model(
        hf=hf,
        family=family,
        layers=layers,
        final_norm=_as_formula(final_norm, config.hidden_size, unembed.weight),
        W_O=W_O,
        W_out=[_input_by_output(_module(layer, family.mlp_out)) for layer in layers],
        W_U=unembed.weight.detach(),
        parallel=is_parallel(config),
        center_unembed=center_unembed,
        weights=weights,
        bfloat16=bfloat16,
    )


def _as_formula(norm: nn.Module, d_model: int, like: Tensor) -> Norm:
    """Read a norm module as a formula; `_check_definitions_hold` finds out where this is wrong."""
    weight = getattr(norm, "weight", None)
    bias = getattr(norm, "bias", None)
    zeros = torch.zeros(d_model, dtype=like.dtype, device=like.device)
    # Gemma stores how far the weight is from one.
    offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
    eps = next((getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name)), 1e-5)
    return Norm(
        weight=zeros + 1 if weight is None else weight.detach() + offset,
        bias=zeros if bias is None else bias.detach(),
        eps=float(eps),
        centred="LayerNorm" in type(norm).__name__,
    )


def _value_constant(model: Model) -> Float[Tensor, "layer head d_head"]:
    """C of every layer: ``z`` when the norm that feeds the attention gives its bias alone, at every position.

    Running the attention itself reads the values out of any layout of fused query, key and value weights.
    """
    calls = model.attention_calls(CHECK_LENGTH)
    captured: list[Tensor] = []

    def capture(_: nn.Module, args: tuple[Any, ...]) -> None:
        captured.append(args[0])

    outs = [model.attention_out(layer) for layer in range(model.n_layers)]
    with hooked(lambda: [out.register_forward_pre_hook(capture) for out in outs]):
        for layer, call in enumerate(calls):
            bias = getattr(model.attention_norm(layer), "bias", None)
            hidden = torch.zeros(1, CHECK_LENGTH, model.d_model, dtype=model.dtype, device=model.device)
            call.replay(model.attention(layer), hidden if bias is None else hidden + bias)
    constant = torch.stack([z[0].unflatten(-1, (model.n_heads, model.d_head)) for z in captured])
    summed = constant.abs().amax() + torch.zeros_like(constant[:, 1:])
    _refuse_if_off(model, constant[:, 1:] - constant[:, :1], summed, "attention rows do not sum to one")
    return constant[:, 0].clone()


def _observed_parallel(model: Model) -> bool:
    """Whether attention and MLP of a layer read the same residual, whatever the config says.

    What the MLP reads is watched while the attention's output is changed.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (1, CHECK_LENGTH, model.d_model)
    resid, out = (torch.randn(shape, generator=generator, dtype=model.dtype).to(model.device) for _ in range(2))
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


def _check_definitions_hold(model: Model) -> None:
    """Hold the model to the definitions on a short prompt, so that nothing is measured that they do not cover."""
    tokens = check_tokens(model)[2:]
    seen: dict[str, list[Tensor]] = {"z": [], "attention": [], "mlp": [], "resid": []}

    def keep_input(name: str) -> Callable[..., None]:
        return lambda _, args: seen[name].append(args[0])

    def keep_output(name: str) -> Callable[..., None]:
        return lambda _, __, out: seen[name].append(out[0] if isinstance(out, tuple) else out)

    def register() -> list[Any]:
        handles = [
            model.layers[0].register_forward_pre_hook(keep_input("resid")),
            model.final_norm_module.register_forward_pre_hook(keep_input("resid")),
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
    for layer in range(model.n_layers):
        bias = getattr(model.attention_out(layer), "bias", None)
        z = seen["z"][layer].unflatten(-1, (model.n_heads, model.d_head))
        write, summed = _sum_of_heads(z, model.W_O[layer], bias), _sum_of_heads(z.abs(), model.W_O[layer].abs(), None)
        off = write - seen["attention"][layer]
        _refuse_if_off(model, off, summed, f"heads of layer {layer} do not add up to its attention")
    first, final = seen["resid"]
    # reshape: some models flatten prompts and positions before their MLP.
    terms = torch.stack([first, *(write.reshape(final.shape) for write in (*seen["attention"], *seen["mlp"]))])
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
