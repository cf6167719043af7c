"""One attention run again on a changed residual, against a forward pass of the whole model with that residual hooked in."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import selfrepair
from selfrepair.engine.clean import by_head, run_clean
from selfrepair.engine.single_attention import Attentions
from selfrepair.model.calls import hooked
from selfrepair.model.model import Model

from conftest import CONFIGS, in_bfloat16, random_model

pytestmark = pytest.mark.filterwarnings("error")


def hooked_z(model: Model, tokens: torch.Tensor, layer: int, resid: torch.Tensor) -> torch.Tensor:
    """``z`` of a layer whose input is ``resid`` in a forward pass of the whole model."""
    seen = []

    def put(_, args, kwargs):
        return ((resid, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": resid})

    def register():
        return [
            model.layers[layer].register_forward_pre_hook(put, with_kwargs=True),
            model.attention_out(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        ]

    with hooked(register), torch.no_grad(), model.running():
        model.hf(input_ids=tokens, use_cache=False)
    return by_head(model, seen[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_one_changed_position(name: str, tokens: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    ids = torch.from_numpy(tokens)
    clean = run_clean(model, ids)
    torch.manual_seed(3)
    positions = torch.tensor([9, 0, 4, 4, 7])
    for layer in (0, 2):
        resid = clean.resid_pre[layer]
        changed = resid[1, positions] + torch.randn(5, model.d_model, dtype=torch.float64)
        found = Attentions(model, ids.shape[1]).z_at(layer, resid[1], positions, changed)
        for row, position in enumerate(positions.tolist()):
            other = resid.clone()
            other[1, position] = changed[row]
            wanted = hooked_z(model, ids, layer, other)[1, position]
            assert float((found[row] - wanted).abs().max()) < 1e-6, (layer, row)
            assert float((wanted - clean.z[layer][1, position]).abs().max()) > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_another_residual_everywhere(name: str, tokens: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    ids = torch.from_numpy(tokens)
    clean = run_clean(model, ids)
    found = Attentions(model, ids.shape[1]).z(2, clean.resid_pre[1])
    wanted = hooked_z(model, ids, 2, clean.resid_pre[1])
    assert float((found - wanted).abs().max()) < 1e-12
    assert float((wanted - clean.z[2]).abs().max()) > 1e-2
    assert model._layer_recorder._length == 8  # only the check at loading has recorded layers


def test_bfloat16_kernels_that_round_otherwise_are_no_masks(
    tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU an attention with a mask runs in another kernel than one without."""
    kernel = functional.scaled_dot_product_attention

    def rounding(query: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        out = kernel(query, *args, **kwargs)
        return out * (1 + 2**-7) if out.dtype == torch.bfloat16 and kwargs.get("attn_mask") is not None else out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", rounding)
    model = selfrepair.load_model(in_bfloat16(random_model("llama", torch.float32)), weights="bfloat16")
    resid = run_clean(model, torch.from_numpy(tokens)).resid_pre[1]
    positions = torch.tensor([5, 2])
    found = Attentions(model, tokens.shape[1]).z_at(1, resid[0], positions, resid[0, positions])
    own = run_clean(model, torch.from_numpy(tokens)).z[1][0, positions]
    torch.testing.assert_close(found, own, rtol=2**-5, atol=2**-5)
