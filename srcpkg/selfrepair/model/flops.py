"""Floating-point operations of suffix replay, by formula: matrix products alone, a multiplication and an addition each."""

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from selfrepair.model.model import Model


def module_flops(module: nn.Module, tokens: int) -> int:
    """Operations of every linear map in a module on ``tokens`` tokens: two a weight and token."""
    maps = (part for part in module.modules() if isinstance(part, nn.Linear | Conv1D))
    return sum(2 * tokens * part.weight.numel() for part in maps)


def attention_flops(model: Model, length: int) -> int:
    """Operations of one attention on a prompt besides its linear maps: scores and values, the causal half not saved."""
    return 2 * 2 * length * length * model.n_heads * model.d_head


def layer_flops(model: Model, layer: int, length: int) -> int:
    """Operations of one decoder layer on a prompt of ``length`` tokens."""
    return module_flops(model.layers[layer], length) + attention_flops(model, length)


def head_flops(model: Model, layer: int, length: int) -> int:
    """Operations of ablating one head on a prompt: its own write, then every layer whose residual it changes.

    Of the head's own layer, only the MLP runs again, and nothing of it where attention and MLP run in parallel. Each later
    layer adds the sums over tokens of what its heads repair. The last position predicts nothing and is never run.

    Args:
        model: The model.
        layer: The head's layer.
        length: Tokens of the prompt.
    """
    predicting = length - 1
    write = 2 * predicting * model.d_head * model.d_model
    who_repairs = 2 * predicting * model.n_heads
    own = module_flops(model.layers[layer], predicting) - module_flops(model.attention(layer), predicting)
    later = range(layer + 1, model.n_layers)
    return (
        write + (0 if model.parallel else own) + sum(layer_flops(model, at, predicting) + who_repairs for at in later)
    )


def sweep_flops(model: Model, heads: Sequence[tuple[int, int]], n_prompts: int, length: int) -> int:
    """Operations of ablating each of ``heads`` alone on ``n_prompts`` prompts, their clean run known.

    What is shared by a layer's heads (projected directions, the layer's clean attention output) is left out: it is a
    vanishing part of a sweep over many heads.
    """
    return n_prompts * sum(head_flops(model, layer, length) for layer, _ in heads)
