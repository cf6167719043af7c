"""Where the parts of a transformers model are that the definitions name."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from selfrepair.families import FAMILIES, is_parallel, refuse_architecture
from selfrepair.model.model import Model, module_at
from selfrepair.model.norm import as_formula
from selfrepair.model.placing import Weights


def find_parts(
    hf: PreTrainedModel,
    center_unembed: bool = True,
    weights: str = "",
    bfloat16: bool = False,
    offloaded: bool = False,
) -> Model:
    """The parts of a model, as `load_model` gives them but unchecked and without value constants; no weight is read.

    So a model on the meta device will do, to count its operations.

    Args:
        hf: The model.
        center_unembed: As in `Model`, like the rest.
        weights: What the weights are, for captions.
        bfloat16: Its matrices are bfloat16.
        offloaded: The weights of its layers are not on the device.

    Raises:
        ValueError: The definitions do not cover its architecture.
    """
    config = hf.config
    refuse_architecture(config.model_type, type(hf).__name__)
    family = FAMILIES[config.model_type]
    unembed = hf.get_output_embeddings()
    if unembed is None:
        raise ValueError(f"{type(hf).__name__} has no unembedding: load it with AutoModelForCausalLM")
    final_norm = module_at(hf, family.final_norm)
    if final_norm is None or unembed.weight.shape[1] != config.hidden_size:
        raise ValueError(
            f"{type(hf).__name__} has no final norm before its unembedding, or a projection between them: "
            "the definitions do not cover it"
        )
    layers = find_layers(hf)
    dtype, device = torch.float32 if bfloat16 else unembed.weight.dtype, unembed.weight.device
    W_O = []
    for layer in layers:
        weight = _input_by_output(module_at(layer, family.attention_out))
        W_O.append(weight.unflatten(0, (config.num_attention_heads, -1)))
    return Model(
        hf=hf,
        family=family,
        layers=layers,
        dtype=dtype,
        device=device,
        final_norm=as_formula(final_norm, config.hidden_size, dtype, device),
        W_O=Weights(W_O, dtype, device),
        W_out=[_neurons_write(layer, family.mlp_out) for layer in layers],
        W_U=unembed.weight.detach(),
        parallel=is_parallel(config),
        center_unembed=center_unembed,
        weights=weights,
        bfloat16=bfloat16,
        offloaded=offloaded,
    )


def find_layers(hf: PreTrainedModel) -> list[nn.Module]:
    """A covered model's decoder layers."""
    return list(cast(nn.ModuleList, module_at(hf, FAMILIES[hf.config.model_type].layers)))


def _neurons_write(layer: nn.Module, path: str) -> Tensor | None:
    """The weight of a layer's MLP output projection [neuron, d_model]; None for a mixture of experts, which has none."""
    try:
        return _input_by_output(module_at(layer, path))
    except AttributeError:
        return None


def _input_by_output(linear: nn.Module) -> Tensor:
    """A linear layer's weight as [input, output], whichever way it is kept."""
    weight = cast(Tensor, linear.weight).detach()
    return weight if isinstance(linear, Conv1D) else weight.T
