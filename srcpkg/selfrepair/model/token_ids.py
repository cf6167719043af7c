"""Token ids as a caller has them: integers of any type and layout, checked against the model's vocabulary."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from selfrepair.model.model import Model

TokenIds = np.ndarray | Tensor | Sequence[Any]
"""Token ids [prompt, pos]; a sequence is one of rows of integers."""


def token_ids(model: Model, tokens: TokenIds, name: str) -> Int[Tensor, "prompt pos"]:
    """Token ids as the engine wants them.

    Args:
        model: The model whose vocabulary they must lie in.
        tokens: Integers [prompt, pos] of any width, sign and byte order, in any layout of memory; they are not written to.
        name: What errors call them.

    Returns:
        A copy in int64 [prompt, pos], on the device that a tensor was on.

    Raises:
        ValueError: Values that are no integers, another shape, or ids outside the vocabulary.
    """
    ids = _integers(tokens, name)
    if ids.ndim != 2:
        raise ValueError(f"{name} is {ids.dtype} of shape {ids.shape}; wanted integers [prompt, pos]")
    if ids.shape[0] < 1 or ids.shape[1] < 2:
        raise ValueError(f"{name} has shape {ids.shape}; wanted at least one prompt of at least two tokens")
    # Compared in Python's integers, before anything is narrowed.
    smallest, largest = int(ids.min()), int(ids.max())
    if smallest < 0 or largest >= model.vocab_size:
        raise ValueError(
            f"{name} holds ids from {smallest} to {largest}; the vocabulary of {model.name} has 0 to "
            f"{model.vocab_size - 1}: tokenize with the model's own tokenizer"
        )
    copy = torch.from_numpy(np.array(ids, dtype=np.int64, order="C"))
    return copy.to(tokens.device) if isinstance(tokens, Tensor) else copy


def _integers(tokens: TokenIds, name: str) -> np.ndarray:
    """The ids in numpy, whose integers compare and convert in every type and byte order."""
    if isinstance(tokens, Tensor):
        found = str(tokens.dtype)
        # Torch knows no sums, minima or conversions of some unsigned types; numpy does.
        ids = _as_numpy(tokens)
    else:
        ids = _from_sequence(tokens)
        found = type(tokens).__name__ if ids is None else str(ids.dtype)
    if ids is None or ids.dtype.kind not in "iu":
        shape = (
            tuple(tokens.shape) if isinstance(tokens, np.ndarray | Tensor) else ids.shape if ids is not None else "?"
        )
        raise ValueError(f"{name} is {found} of shape {shape}; wanted integers [prompt, pos]")
    return ids


def _as_numpy(tokens: Tensor) -> np.ndarray | None:
    try:
        return tokens.detach().cpu().numpy()
    except (RuntimeError, TypeError):
        return None


def _from_sequence(tokens: np.ndarray | Sequence[Any]) -> np.ndarray | None:
    """An array; None for rows of different lengths, booleans among integers, and values that are masked."""
    if isinstance(tokens, np.ma.MaskedArray) and np.ma.is_masked(tokens):
        return None
    try:
        ids = np.asarray(tokens)
    except (ValueError, OverflowError):
        return None
    if not isinstance(tokens, np.ndarray) and ids.dtype.kind in "iu" and _holds_booleans(tokens):
        return None
    return ids


def _holds_booleans(values: object) -> bool:
    if isinstance(values, list | tuple):
        return any(_holds_booleans(value) for value in values)
    return isinstance(values, bool | np.bool_) or (isinstance(values, np.ndarray) and values.dtype == np.bool_)
