"""A model's norms as formulas."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from selfrepair.model.placing import weights_as


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

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the norm gives."""
        centred = resid - resid.mean(dim=-1, keepdim=True) if self.centred else resid
        return self.weight * centred / self.scale(resid)[..., None] + self.bias

    def scale(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """The norm's scale s of residuals [..., d_model]: what they are divided by, one number each."""
        if self.centred:
            return (resid.var(dim=-1, correction=0) + self.eps).sqrt()
        return (resid.pow(2).mean(dim=-1) + self.eps).sqrt()


_WEIGHT_OFFSETS = (0.0, 1.0)
"""Some architectures store how far a norm's weight is from one."""
_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")
_USUAL_EPS = (1e-5, 1e-6)
"""Where a norm keeps none: it is written in its code."""
_TOLERANCE = 1e-4
"""Of the largest number that a norm gives, what a formula may be off by."""


def as_formula(norm: nn.Module, d_model: int, dtype: torch.dtype, device: torch.device) -> Norm:
    """The formula of a norm module: whichever gives what the module gives, on long vectors and on short ones.

    Args:
        norm: The module. On the meta device, where nothing can be seen, its class decides.
        d_model: What it takes.
        dtype: Of the formula.
        device: Where it is.

    Raises:
        ValueError: No formula does.
    """
    weight, bias = (_detached(getattr(norm, name, None), dtype, device) for name in ("weight", "bias"))
    zeros = torch.zeros(d_model, dtype=dtype, device=device)
    kept = [float(getattr(norm, name)) for name in _EPS_NAMES if getattr(norm, name, None) is not None]
    layernorm = "LayerNorm" in type(norm).__name__
    formulas = [
        Norm(
            weight=zeros + 1 if weight is None else weight + offset,
            bias=zeros if bias is None else bias,
            eps=eps,
            centred=centred,
        )
        for centred in (layernorm, not layernorm)
        for offset in (_WEIGHT_OFFSETS if weight is not None else _WEIGHT_OFFSETS[:1])
        for eps in kept or _USUAL_EPS
    ]
    if device.type == "meta":
        return formulas[0]
    vectors = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)
    vectors = (vectors + 0.5) * torch.tensor([1.0, 1.0, 1e-3, 1e-3], dtype=dtype, device=device)[:, None]
    with torch.inference_mode(), weights_as([norm], device):
        given = norm(vectors)
        for formula in formulas:
            if bool(((formula(vectors) - given).abs() <= _TOLERANCE * given.abs().max()).all()):
                return formula
    raise ValueError(
        f"{type(norm).__name__}: no LayerNorm or RMSNorm of its weight, bias and eps gives what it gives; the definitions do "
        "not cover it"
    )


def _detached(parameter: Tensor | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    return None if parameter is None else parameter.detach().to(device, dtype)
