"""A head that the final norm alone repairs: measured as reckoned by hand."""

import numpy as np
import pytest
import torch

import selfrepair

from planted.layernorm import HEAD, LIVE, QUIET, by_hand, planted_model

pytestmark = pytest.mark.filterwarnings("error")

LENGTH = 7


def test_quiet_prompts_are_repaired_by_the_norm_alone_as_reckoned_by_hand() -> None:
    model = selfrepair.load_model(planted_model(), dtype="float64")
    tokens = np.repeat(np.array(QUIET)[:, None], LENGTH, axis=1)
    dataset = selfrepair.ablate_heads(model, tokens, kind="zero", heads=[HEAD])
    assert not dataset["self_repair_from_heads"].any()
    assert not dataset["self_repair_from_mlps"].any()
    for prompt, token in enumerate(QUIET):
        wanted = by_hand(token)
        for name, value in wanted.items():
            got = dataset[name].isel(prompt=prompt).values
            np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=f"{name} of token {token}")
        np.testing.assert_allclose(dataset["self_repair_from_layernorm"][0, prompt], wanted["self_repair"], rtol=1e-6)
        assert wanted["self_repair"] > 0.1 * wanted["direct_effect"]


def test_later_components_of_the_planted_model_can_repair() -> None:
    """They are no dead weights: with live tokens they react to the same head, and to the one that feeds them."""
    model = selfrepair.load_model(planted_model(), dtype="float64")
    tokens = np.repeat(np.array(LIVE)[:, None], LENGTH, axis=1)
    dataset = selfrepair.ablate_heads(model, tokens, kind="zero", heads=[HEAD, (0, 1)])
    assert float(np.abs(dataset["self_repair_from_heads"]).min()) > 1e-4
    assert float(np.abs(dataset["self_repair_from_mlps"]).min()) > 1e-4


def test_ratio_of_scales_is_the_ratio_of_residual_norms() -> None:
    """Up to eps: the scale is the root mean square of the final residual."""
    model = selfrepair.load_model(planted_model(), dtype="float64")
    tokens = np.repeat(np.array(QUIET)[:, None], LENGTH, axis=1)
    seen = []
    handle = model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        dataset = selfrepair.ablate_heads(model, tokens, kind="zero", heads=[HEAD])
    finally:
        handle.remove()
    # The ablated run leaves out the last position, which predicts nothing; other runs are of single prompts.
    n_prompts, length = tokens.shape
    clean, ablated = (
        next(torch.as_tensor(out) for out in seen if out.shape[:2] == (n_prompts, size))[:, : length - 1]
        .norm(dim=-1)
        .numpy()
        for size in (length, length - 1)
    )
    ratio = dataset["ablated_scale"][0].values / dataset["clean_scale"].values
    np.testing.assert_allclose(ratio, ablated / clean, rtol=1e-4)
