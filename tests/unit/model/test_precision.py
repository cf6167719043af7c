"""Code written for half precision computes a float64 model in float64, and leaves nothing behind."""

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from selfrepair.model.precision import Float64


def test_a_norm_that_computes_in_float32_does_so_in_float64() -> None:
    norm = LlamaRMSNorm(8).double()
    x = torch.randn(3, 8, dtype=torch.float64)
    wanted = nn.functional.rms_norm(x, (8,), norm.weight, norm.variance_epsilon)
    assert float((norm(x) - wanted).abs().max()) > 1e-9
    with Float64():
        assert float((norm(x) - wanted).abs().max()) < 1e-15


def test_what_has_no_type_is_float64_too() -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    with Float64():
        assert torch.full((), torch.finfo(x.dtype).min).dtype == torch.float64
        assert torch.softmax(x, -1, dtype=torch.float32).dtype == torch.float64
        assert torch.arange(3).float().dtype == torch.float64
        assert torch.arange(3).dtype == torch.int64


def test_nothing_is_left_behind() -> None:
    with pytest.raises(KeyError), Float64():
        raise KeyError
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32
