"""What float rounding explains, as multiples of eps and of the sizes of the terms that are summed (never of their sum)."""

import torch

from selfrepair.model.model import Model

IDENTITY_ROUNDINGS = 4
"""Rounding errors of the model's dtype that the identity may be off by.

A run adds two writes a layer to the residual stream, and sums over d_model, heads and layers: some hundred roundings of random
sign, each of at most half of eps times what is summed, so a few eps in all. Tests give every
configuration half of it (docs/reliability.md).
"""

REPEATED_ROUNDINGS = 128
"""The same of two runs of one thing in batches of other shapes: what rounds in one layer is changed by all later ones."""

BFLOAT16_ROUNDINGS = 1
"""The same of bfloat16 where activations are, for sums of one run: their own rounding outweighs what is done with them."""

BFLOAT16_TIMES = 16
"""Times what a plain run in bfloat16 is off by from one in float32, at most, that a job's numbers may be off by: both round, at
other places. Tests give every configuration half of it.
"""


def rounding(times: int | float, dtype: torch.dtype) -> float:
    """So many roundings of a type."""
    return times * torch.finfo(dtype).eps


def identity_tolerance(model: Model) -> float:
    """What two sums of the same terms of one run may differ by, relative to the terms' sizes."""
    if model.bfloat16:
        return rounding(BFLOAT16_ROUNDINGS, torch.bfloat16)
    return rounding(IDENTITY_ROUNDINGS, model.dtype)


def repeated_tolerance(model: Model) -> float:
    """What a number measured in two runs may differ by, relative to the sizes of the terms that are summed in it."""
    if model.bfloat16:
        return rounding(BFLOAT16_ROUNDINGS, torch.bfloat16)
    return rounding(REPEATED_ROUNDINGS, model.dtype)
