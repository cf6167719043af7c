"""The final scale really frozen gives what the closed form says, and freezing does something."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import selfrepair
from selfrepair.engine.clean import CleanRun, run_clean
from selfrepair.engine.heads import group_by_layer
from selfrepair.engine.replay import SuffixReplay
from selfrepair.measure.frozen_layernorm import frozen_layernorm_change, frozen_scale, own_correct_logit
from selfrepair.model.model import Model

from conftest import CONFIGS, VOCAB, random_model

HEADS = [(0, 1), (1, 0), (1, 3), (2, 2)]


def load(name: str, **options: bool) -> Model:
    return selfrepair.load_model(random_model(name), dtype="float64", **options)


def really_frozen(
    model: Model, tokens: np.ndarray, clean: CleanRun, donors: np.ndarray, selected: np.ndarray
) -> np.ndarray:
    """The logit change with the scale frozen, [head, prompt, pos-1] for `HEADS`."""
    ids = torch.from_numpy(tokens)
    donor = run_clean(model, torch.from_numpy(donors))
    replay = SuffixReplay(model, ids, clean)
    change = np.zeros(selected.shape)
    for layer, heads in group_by_layer(HEADS).items():
        rows = [HEADS.index((layer, head)) for head in heads]
        wanted = torch.from_numpy(selected[rows])
        change[rows] = frozen_layernorm_change(replay, ids, layer, heads, donor.z[layer], wanted)[0].numpy()
    return change


def by_formula(model: Model, tokens: np.ndarray, donors: np.ndarray) -> np.ndarray:
    dataset = selfrepair.ablate_heads(model, tokens, donors, heads=HEADS)
    assert float(np.abs(dataset["self_repair_from_layernorm"]).max()) > 1e-3
    return (dataset["logit_change"] - dataset["self_repair_from_layernorm"]).values


@pytest.mark.parametrize("center_unembed", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_freezing_equals_the_closed_form(
    name: str, center_unembed: bool, tokens: np.ndarray, donors: np.ndarray, rng: np.random.Generator
) -> None:
    """Every architecture, LayerNorm and RMSNorm, the last layer of a parallel model too."""
    model = load(name, center_unembed=center_unembed)
    selected = rng.random((len(HEADS), 6, 9)) < 0.4
    frozen = really_frozen(model, tokens, run_clean(model, torch.from_numpy(tokens)), donors, selected)
    np.testing.assert_array_equal(np.isnan(frozen), ~selected)
    wanted = by_formula(model, tokens, donors)
    # Tables of rotary angles are float32 and differ a little between prompt lengths.
    tolerance = 1e-10 if name in ("gpt2", "opt") else 1e-6
    assert np.nanmax(np.abs(frozen - wanted)) < tolerance
    # All positions wanted: one length throughout, so that nothing but float64's rounding is left.
    whole = really_frozen(
        model, tokens, run_clean(model, torch.from_numpy(tokens)), donors, np.ones_like(selected, bool)
    )
    assert np.abs(whole - wanted).max() < 1e-9


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_frozen_scale_is_what_the_norm_divides_by(name: str, tokens: np.ndarray, donors: np.ndarray) -> None:
    """Freezing at another scale gives another result, so that it is no silent no-op."""
    model = load(name)
    clean = run_clean(model, torch.from_numpy(tokens))
    everything = np.ones((len(HEADS), 6, 9), bool)
    doubled = replace(clean, scale=2 * clean.scale)
    d = model.direction(torch.from_numpy(tokens[:, 1:]))
    at_clean, at_doubled = (really_frozen(model, tokens, run, donors, everything) for run in (clean, doubled))
    constant = model.token_constant(torch.from_numpy(tokens[:, 1:])).numpy()
    direct = at_clean + clean.correct_logit.numpy() - constant  # r' . d / s
    np.testing.assert_allclose(at_doubled, at_clean - direct / 2, atol=1e-9)
    assert np.abs(direct).max() > 0.1
    assert float(d.abs().max()) > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_norm_frozen_at_its_own_scale_is_the_norm(name: str, rng: np.random.Generator) -> None:
    model = load(name)
    resid = torch.from_numpy(rng.normal(size=(5, model.d_model)))
    norm = model.final_norm_module
    with torch.no_grad():
        free = norm(resid)
        with frozen_scale(model, model.final_norm.scale(resid)):
            frozen = norm(resid)
        with frozen_scale(model, torch.ones(5, dtype=torch.float64)):
            other = norm(resid)
        after = norm(resid)
    assert torch.allclose(free.double(), frozen, atol=1e-6)
    assert not torch.allclose(free.double(), other, atol=1e-3)
    assert torch.equal(free, after)


@pytest.mark.parametrize("center_unembed", [True, False])
def test_own_correct_logit_is_the_models(center_unembed: bool, rng: np.random.Generator) -> None:
    """More tokens than are unembedded at a time."""
    model = load("phi", center_unembed=center_unembed)
    resid = torch.from_numpy(rng.normal(size=(600, model.d_model)))
    targets = torch.from_numpy(rng.integers(VOCAB, size=600))
    with torch.no_grad():
        logits = model.hf.lm_head(model.final_norm_module(resid))
        found = own_correct_logit(model, resid, targets)
    if center_unembed:
        logits = logits - logits.mean(-1, keepdim=True)
    assert torch.allclose(found, logits[torch.arange(600), targets], atol=1e-12)


def with_final_eps(name: str, eps: float) -> Model:
    """A random model whose final norm has another eps; for a large one its scale is constant."""
    hf = random_model(name)
    norm = hf.transformer.ln_f if name == "gpt2" else hf.model.norm
    assert isinstance(norm, nn.Module)
    setattr(norm, "eps" if name == "gpt2" else "variance_epsilon", eps)
    return selfrepair.load_model(hf, dtype="float64")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_part_vanishes_where_the_final_scale_has_no_freedom(
    name: str, tokens: np.ndarray, donors: np.ndarray
) -> None:
    """Control: with eps above everything else the scale is sqrt(eps), and the part's share of the effect falls as 1/eps."""
    shares, others = [], []
    for eps in (1e-5, 1e6, 1e8):
        model = with_final_eps(name, eps)
        dataset = selfrepair.ablate_heads(model, tokens, donors, heads=HEADS)
        size = float(np.abs(dataset["direct_effect"]).mean())
        shares.append(float(np.abs(dataset["self_repair_from_layernorm"]).mean()) / size)
        others.append(float(np.abs(dataset["self_repair_from_mlps"]).mean()) / size)
        ratio = dataset["clean_scale"] / dataset["ablated_scale"]
        assert float(np.abs(ratio - 1).max()) < (10 if eps < 1 else 100 / eps)
    assert shares[0] > 0.05
    assert shares[1] < 1e-4
    assert shares[1] / shares[2] == pytest.approx(100, rel=0.01)
    # The rest of the repair is still there: nothing but the norm was held.
    assert others[2] > 0.1


def test_freezing_the_real_model(smollm2: Path, rng: np.random.Generator) -> None:
    """SmolLM2 in float32: the two agree to rounding, and differ from the logit change by much more."""
    model = selfrepair.load_model(smollm2)
    tokens = rng.integers(1000, 20000, size=(4, 24))
    ids, donors = torch.from_numpy(tokens), np.roll(tokens, 1, axis=0)
    heads = [(20, 3), (26, 0), (29, 8)]
    dataset = selfrepair.ablate_heads(model, tokens, donors, heads=heads)
    clean, donor = run_clean(model, ids), run_clean(model, torch.from_numpy(donors))
    replay = SuffixReplay(model, ids, clean)
    everything = torch.ones(1, 4, 23, dtype=torch.bool)
    for row, (layer, head) in enumerate(heads):
        frozen = frozen_layernorm_change(replay, ids, layer, [head], donor.z[layer], everything)[0][0].numpy()
        closed = (dataset["logit_change"] - dataset["self_repair_from_layernorm"]).values[row]
        assert np.abs(frozen - closed).max() < 2e-4
        assert np.abs(frozen - dataset["logit_change"].values[row]).max() > 1e-2
