"""Means, fractions and intervals against the same things written out."""

import numpy as np
import pytest
import xarray as xr

from selfrepair.measure.thresholds import top_tokens
from selfrepair.quantities import HEAD_TOKEN, MEANS, PARTS
from selfrepair.tables.statistics import PromptSums, bootstrap_weights, interval, means, token_values


@pytest.fixture
def ablations(rng: np.random.Generator) -> xr.Dataset:
    shape = (3, 12, 7)
    values = {name: (("head", "prompt", "pos"), rng.normal(size=shape)) for name in HEAD_TOKEN}
    return xr.Dataset(values)


def test_means_are_means_over_the_selected_tokens(ablations: xr.Dataset, rng: np.random.Generator) -> None:
    tokens = token_values(ablations)
    selected = rng.random((3, 12, 7)) < 0.3
    result = means(PromptSums.of(tokens, selected), np.ones((1, 12)))
    for name in MEANS:
        wanted = [tokens[name][head][selected[head]].mean() for head in range(3)]
        assert np.allclose(result[name][0], wanted), name
    removed = (tokens["direct_effect"] - tokens["ablated_direct_effect"])[0][selected[0]].sum()
    assert np.isclose(result["pooled_repair_fraction"][0, 0], tokens["self_repair"][0][selected[0]].sum() / removed)


def test_resampled_means_count_prompts_as_often_as_drawn(ablations: xr.Dataset) -> None:
    tokens = token_values(ablations)
    sums = PromptSums.of(tokens, np.ones((3, 12, 7), bool))
    weights = bootstrap_weights(12, 5, seed=3)
    assert (weights.sum(1) == 12).all()
    result = means(sums, weights)["logit_change"]
    for row, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(12), counts)
        assert np.allclose(result[row], tokens["logit_change"][:, drawn].mean((1, 2)))


def test_clipped_fraction_is_of_each_token() -> None:
    effect = np.array([2.0, 2.0, 2.0, -2.0, 0.0, 0.0])
    part = np.array([1.0, -1.0, 8.0, -1.0, 0.0, 3.0])
    dataset = xr.Dataset({name: (("head", "prompt", "pos"), effect.reshape(1, 1, 6)) for name in HEAD_TOKEN})
    for name in PARTS:
        dataset[name] = (("head", "prompt", "pos"), part.reshape(1, 1, 6))
    values = token_values(dataset)["clipped_fraction_from_mlps"]
    assert values.ravel().tolist() == [0.5, 0.0, 1.0, 0.5, 0.0, 1.0]


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Means of 40 prompts whose tokens hang together: intervals over prompts cover, over tokens they would not."""
    rng = np.random.default_rng(1)
    weights = bootstrap_weights(40, 400, seed=0)
    covered = 0
    for _ in range(200):
        per_prompt = rng.normal(size=40)
        low, high = interval((weights @ per_prompt[:, None]) / 40, 0.95)
        covered += int(low[0] <= 0 <= high[0])
    assert 180 <= covered <= 198


def test_interval_leaves_out_resamples_without_a_value() -> None:
    resampled = np.array([[np.nan, np.nan], [1.0, np.nan], [3.0, np.nan]])
    low, high = interval(resampled, 0.95)
    assert 1 <= low[0] < high[0] <= 3
    assert np.isnan([low[1], high[1]]).all()


def test_same_seed_same_resamples() -> None:
    assert np.array_equal(bootstrap_weights(9, 20, 1), bootstrap_weights(9, 20, 1))
    assert not np.array_equal(bootstrap_weights(9, 20, 1), bootstrap_weights(9, 20, 2))


def test_top_tokens_are_exact_and_ties_go_to_the_earlier() -> None:
    effects = np.array([[0.5, 2.0, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert top_tokens(effects, 2).tolist() == [[1, 2], [0, 1]]
