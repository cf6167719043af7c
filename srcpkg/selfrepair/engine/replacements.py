"""What takes the place of a head's ``z`` (docs/definitions.md, Ablations): in replay, and in the plain runs that prove it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from selfrepair.engine.proof import PlainReplacements, plain_replacement
from selfrepair.model.model import Model

Replacement = Callable[[int], Float[Tensor, "prompt pos head d_head"]]
"""What takes the place of a layer's ``z``."""


def constant_replacement(
    model: Model, kind: str, shape: Sequence[int], mean_z: Float[Tensor, "layer head d_head"] | None
) -> Replacement:
    """What takes the place of z in "mean" and "zero" ablation: the same at every one of ``shape`` = [prompt, pos]."""
    if kind == "mean" and mean_z is not None:
        constant = mean_z
    elif kind == "zero":
        constant = model.value_constant
    else:
        raise ValueError(f"no constant takes the place of z in {kind!r} ablation without its mean")
    return lambda layer: constant[layer].expand(*shape, -1, -1)


def plain_replacements(
    model: Model,
    kind: str,
    donors: Int[np.ndarray, "prompt donor pos"] | None,
    mean_z: Float[Tensor, "layer head d_head"] | None,
) -> PlainReplacements:
    """What takes the place of ``z`` in plain runs of the prompts: as in the sweep, but from the donors' token ids.

    Args:
        model: The model.
        kind: "resample", "mean" or "zero".
        donors: Token ids of each prompt's donors, for "resample".
        mean_z: The mean, for "mean".
    """
    if donors is not None:
        of_prompts = torch.from_numpy(donors).long()
        return lambda prompt, until, exact: plain_replacement(model, list(of_prompts[prompt]), until, exact)
    constant = constant_replacement(model, kind, (1, 1), mean_z)
    return lambda prompt, until, exact: lambda layer: constant(layer)[0]
