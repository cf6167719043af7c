"""A norm's formula is what it does, whatever its class is called and however it keeps its weight."""

import pytest
import torch
from torch import Tensor, nn

from selfrepair.model.norm import as_formula

WIDTH = 16


class CalledLayerNorm(nn.Module):
    """An RMSNorm by another name, with a weight of ones that is not kept and an eps that stands in its code."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


CalledLayerNorm.__name__ = "OddLayerNorm"


class OffsetNorm(nn.Module):
    """A LayerNorm that keeps how far its weight is from one."""

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH)), eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), self.weight + 1, self.bias, self.eps)


class Saturating(nn.Module):
    """No norm at all: what it gives depends on no scale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(x)


class HalfAnEps(OffsetNorm):
    """Another eps than the one it keeps."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (WIDTH,), self.weight + 1, self.bias, self.eps / 2)


def randomised(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize(
    ("norm", "centred", "eps"),
    [
        (randomised(nn.LayerNorm(WIDTH, eps=1e-4)), True, 1e-4),
        (nn.LayerNorm(WIDTH, elementwise_affine=False), True, 1e-5),
        (randomised(nn.RMSNorm(WIDTH, eps=1e-5)), False, 1e-5),
        (CalledLayerNorm(), False, 1e-6),
        (OffsetNorm(), True, 1e-3),
    ],
    ids=["LayerNorm", "no weight", "RMSNorm", "by another name", "offset"],
)
def test_the_formula_is_what_the_norm_does(norm: nn.Module, centred: bool, eps: float) -> None:
    formula = as_formula(norm, WIDTH, torch.float32, torch.device("cpu"))
    assert (formula.centred, formula.eps) == (centred, eps)
    x = 3 * torch.randn(5, WIDTH) + 2
    torch.testing.assert_close(formula(x), norm(x).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [Saturating(), HalfAnEps()], ids=["no norm", "another eps"])
def test_what_no_formula_gives_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"no LayerNorm or RMSNorm of its weight, bias and eps gives what it gives"):
        as_formula(norm, WIDTH, torch.float32, torch.device("cpu"))
