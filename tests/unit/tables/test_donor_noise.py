"""Donors against tokens: planted variances are found; one donor at a time adds up to what the engine gives."""

import numpy as np
import pytest
import torch

import selfrepair
from selfrepair.engine.clean import run_clean
from selfrepair.engine.replay import SuffixReplay
from selfrepair.measure.other_donor import ablated_direct_effect
from selfrepair.tables.donor_noise import donor_sums, variance_over_donors
from selfrepair.tables.statistics import Resamples, interval

from conftest import random_model
from written import totals_of

pytestmark = pytest.mark.filterwarnings("error")


TWO_TOKENS = np.array([[[1.0], [5.0]], [[3.0], [5.0]]])
"""Of two prompts, with two donors [donor, prompt, pos]."""


def over_donors(values: np.ndarray, resamples: Resamples) -> dict[str, np.ndarray]:
    sums = donor_sums(values, np.ones(values.shape[1:], bool), np.full((1, 1), 6.5))
    return variance_over_donors(totals_of(sums, resamples), len(values))


@pytest.mark.parametrize(("token_sd", "donor_sd"), [(2.0, 1.0), (0.5, 1.5), (0.0, 1.0)])
@pytest.mark.parametrize("n_donors", [2, 6])
def test_planted_variances(rng: np.random.Generator, token_sd: float, donor_sd: float, n_donors: int) -> None:
    values = 7 + token_sd * rng.normal(size=(100, 40)) + donor_sd * rng.normal(size=(n_donors, 100, 40))
    found = over_donors(values, Resamples.drawn(100, 200, 0))
    share = donor_sd**2 / (donor_sd**2 + token_sd**2)
    averaged = donor_sd**2 / n_donors / (donor_sd**2 / n_donors + token_sd**2)
    for name, planted, width in (
        ("donor_variance", donor_sd**2, 0.3),
        ("token_variance", token_sd**2, 0.8),
        ("donor_share", share, 0.12),
        ("averaged_donor_share", averaged, 0.2),
        ("mean", 7.0, 0.4),
    ):
        low, high = interval(found[name][1:], 0.99)
        assert low < planted < high, name
        assert high - low < width, name
    one, several = (np.ptp(interval(found[name][1:], 0.95)) for name in ("one_donor_mean", "mean"))
    if token_sd == 0:
        assert several / one == pytest.approx(n_donors**-0.5, rel=0.3)


def test_variances_are_those_of_an_analysis_of_variance() -> None:
    """Two tokens, two donors, by hand."""
    found = over_donors(TWO_TOKENS, Resamples.given(np.ones((1, 2), np.uint8)))
    # Within: 2 and 0; means 2 and 5, whose variance is 4.5.
    assert found["donor_variance"] == pytest.approx([1.0])
    assert found["token_variance"] == pytest.approx([4.5 - 0.5])
    assert found["donor_share"] == pytest.approx([0.2])
    assert found["averaged_donor_share"] == pytest.approx([0.5 / 4.5])
    assert found["mean"] == pytest.approx([3.5])
    assert found["one_donor_mean"] == pytest.approx([3.0])


def test_a_resample_of_one_token_has_no_variance_between_tokens() -> None:
    found = over_donors(TWO_TOKENS, Resamples.given(np.array([[1, 0]], np.uint8)))
    assert np.isnan(found["token_variance"]).all()
    assert found["donor_variance"] == pytest.approx([2.0])


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama"])
def test_projection_of_a_donor_is_what_ablation_gives(name: str, tokens: np.ndarray) -> None:
    model = selfrepair.load_model(random_model(name), dtype="float64")
    ids = torch.from_numpy(tokens)
    clean, donor = run_clean(model, ids), run_clean(model, ids.flip(0))
    selected = torch.ones(model.n_heads, len(ids), ids.shape[1] - 1, dtype=torch.bool)
    for layer in range(model.n_layers):
        found = ablated_direct_effect(model, ids, clean, layer, donor.z[layer])
        replayed = SuffixReplay(model, ids, clean).ablate(layer, range(model.n_heads), donor.z[layer], selected)
        for batch, result in replayed:
            torch.testing.assert_close(found[..., batch.heads].movedim(-1, 0), result.values["ablated_direct_effect"])
