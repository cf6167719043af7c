"""A model's norms as formulas."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


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


def as_formula(norm: nn.Module, d_model: int, like: Tensor) -> Norm:
    """Read a norm module as a formula; `selfrepair.model.observed.check_definitions_hold` finds out where this is wrong.

    Args:
        norm: The module.
        d_model: What it takes.
        like: A tensor of the model, for dtype and device.
    """
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
