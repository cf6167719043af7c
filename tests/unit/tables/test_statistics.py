"""Means, fractions and intervals against the same things written out."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr

from selfrepair.quantities import HEAD_TOKEN, MEANS, PARTS
from selfrepair.tables.statistics import (
    BLOCK,
    DRAWN,
    Resamples,
    Totals,
    estimated,
    interval,
    means,
    prompt_sums,
    token_values,
)

from written import totals_of


@pytest.fixture
def ablations(rng: np.random.Generator) -> xr.Dataset:
    shape = (3, 12, 7)
    values = {name: (("head", "prompt", "pos"), rng.normal(size=shape)) for name in HEAD_TOKEN}
    return xr.Dataset(values)


def test_means_are_means_over_the_selected_tokens(ablations: xr.Dataset, rng: np.random.Generator) -> None:
    tokens = token_values(ablations)
    selected = rng.random((3, 12, 7)) < 0.3
    result = means(totals_of(prompt_sums(tokens, selected), Resamples.drawn(12, 0, 0)))
    for name in MEANS:
        wanted = [tokens[name][head][selected[head]].mean() for head in range(3)]
        assert np.allclose(result[name][0], wanted), name
    removed = (tokens["direct_effect"] - tokens["ablated_direct_effect"])[0][selected[0]].sum()
    assert np.isclose(result["pooled_repair_fraction"][0, 0], tokens["self_repair"][0][selected[0]].sum() / removed)


def test_resampled_means_count_prompts_as_often_as_drawn(ablations: xr.Dataset) -> None:
    tokens = token_values(ablations)
    sums = prompt_sums(tokens, np.ones((3, 12, 7), bool))
    resamples = Resamples.drawn(12, 5, seed=3)
    result = means(totals_of(sums, resamples))["logit_change"]
    draws = [np.arange(12), *np.random.default_rng(3).integers(12, size=(5, 12))]
    assert len(result) == len(draws)
    for row, drawn in enumerate(draws):
        assert np.allclose(result[row], tokens["logit_change"][:, drawn].mean((1, 2)))


def test_draws_of_many_prompts_are_draws_from_all() -> None:
    """Made a block at a time, they are as many in every resample, and fall on each block and prompt as often as by chance."""
    n_prompts, n_bootstrap = 3 * DRAWN + 20, 2000
    resamples = Resamples.drawn(n_prompts, n_bootstrap, seed=1)
    counts = resamples.counts.astype(int)
    assert counts.shape == (1 + n_bootstrap, n_prompts)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == n_prompts).all()
    drawn = counts[1:]
    for start in range(0, n_prompts, DRAWN):
        of_block = drawn[:, start : start + DRAWN].sum(1)
        share = min(DRAWN, n_prompts - start) / n_prompts
        spread = np.sqrt(n_prompts * share * (1 - share))
        assert abs(of_block.mean() - n_prompts * share) < 4 * spread / np.sqrt(n_bootstrap)
        assert np.isclose(of_block.std(), spread, rtol=0.08)
    assert np.allclose(drawn.mean(0), 1, atol=5 / np.sqrt(n_bootstrap))
    assert np.isclose(drawn.var(0).mean(), 1 - 1 / n_prompts, rtol=0.01)
    # Of no two prompts, of one block or of two, do the draws go together.
    together = np.corrcoef(drawn[:, [0, 1, DRAWN, DRAWN + 1, -1]].T) - np.eye(5)
    assert np.abs(together).max() < 5 / np.sqrt(n_bootstrap)


@pytest.mark.parametrize("step", [7, 100, DRAWN, 2 * DRAWN + 1])
def test_draws_are_the_same_however_many_prompts_are_asked_for(step: int) -> None:
    n_prompts = 2 * DRAWN + 50
    whole = Resamples.drawn(n_prompts, 5, seed=3).counts
    resamples = Resamples.drawn(n_prompts, 5, seed=3)
    steps = [(first, min(first + step, n_prompts)) for first in range(0, n_prompts, step)]
    assert np.array_equal(np.concatenate([resamples.between(*of) for of in steps], axis=1), whole)


def test_draws_of_few_prompts_are_held_at_once() -> None:
    n_prompts, n_bootstrap = 20 * DRAWN, 100
    resamples = Resamples.drawn(n_prompts, n_bootstrap, seed=0)
    tracemalloc.start()
    try:
        for first in range(0, n_prompts, BLOCK):
            resamples.between(first, first + BLOCK)
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert held < 4 * DRAWN * (1 + n_bootstrap) < n_prompts * n_bootstrap


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
    per_prompt = rng.normal(size=(200, 40))
    totals = totals_of(
        prompt_sums({"value": per_prompt[..., None]}, np.ones((200, 40, 1), bool)), Resamples.drawn(40, 400, 0)
    )
    found = estimated("value", totals.mean("value"))
    assert 180 <= ((found["value_low"] <= 0) & (found["value_high"] >= 0)).sum() <= 198


def test_interval_leaves_out_resamples_without_a_value() -> None:
    resampled = np.array([[np.nan, np.nan], [1.0, np.nan], [3.0, np.nan]])
    low, high = interval(resampled, 0.95)
    assert 1 <= low[0] < high[0] <= 3
    assert np.isnan([low[1], high[1]]).all()


def test_same_seed_same_resamples() -> None:
    counts = Resamples.drawn(9, 20, 1).counts
    assert np.array_equal(counts, Resamples.drawn(9, 20, 1).counts)
    assert not np.array_equal(counts, Resamples.drawn(9, 20, 2).counts)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 9).all()


def test_it_does_not_matter_how_prompts_come(rng: np.random.Generator) -> None:
    """One by one, in shards, or all at once: the same to rounding, whatever block they are weighted in."""
    n_prompts = 3 * BLOCK + 5
    resamples = Resamples.drawn(n_prompts, 30, 0)
    values = {"one": rng.normal(size=(4, 2, n_prompts)), "other": rng.normal(size=n_prompts)}
    wanted = {name: np.moveaxis(of @ resamples.counts.T.astype(float), -1, 0) for name, of in values.items()}
    for cuts in ([], range(1, n_prompts), range(7, n_prompts, 7), [BLOCK - 1, BLOCK, 2 * BLOCK + 1]):
        totals = Totals(resamples)
        for part in np.split(np.arange(n_prompts), list(cuts)):
            totals.add({name: of[..., part] for name, of in values.items()})
        for name in values:
            np.testing.assert_allclose(totals[name], wanted[name], rtol=1e-12, atol=1e-12)


def test_missing_prompts_are_an_error() -> None:
    totals = Totals(Resamples.drawn(5, 3, 0))
    totals.add({"value": np.ones(4)})
    with pytest.raises(AssertionError, match="prompts are missing"):
        totals["value"]
