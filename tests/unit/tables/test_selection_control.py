"""Choosing tokens: regression to the mean that was planted is found, and only in the choices that share its noise."""

from collections.abc import Callable

import numpy as np
import pytest

from selfrepair.tables.selection_control import CHOICES, Choices, choice_sums, over_heads
from selfrepair.tables.statistics import Resamples

from written import totals_of

pytestmark = pytest.mark.filterwarnings("error")

HEADS, PROMPTS, POSITIONS, TOP = 5, 60, 50, 60


def measure(tokens: dict[str, np.ndarray], first_position: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """By choice, the estimate and its resamples, over all heads."""
    effect = np.where(np.arange(POSITIONS) >= first_position, tokens["direct_effect"], -np.inf).reshape(HEADS, -1)
    top = np.zeros_like(effect, dtype=bool)
    np.put_along_axis(top, np.argsort(-effect, axis=1)[:, :TOP], True, axis=1)
    picked = pick(tokens, top.reshape(HEADS, PROMPTS, POSITIONS), first_position)
    resamples = Resamples.drawn(PROMPTS, 200, 0)
    found = {}
    for choice in CHOICES:
        sums = choice_sums(tokens, picked[choice])
        totals = totals_of(sums, resamples)
        found[choice] = over_heads({name: totals.mean(name) for name in sums if not name.startswith("n_")})
    return found


def pick(tokens: dict[str, np.ndarray], top: np.ndarray, first_position: int) -> dict[str, np.ndarray]:
    """By choice, the picked tokens, of shards of 7 prompts."""
    choices, more = Choices(first_position, seed=0), True
    shards = [slice(first, first + 7) for first in range(0, PROMPTS, 7)]
    parts = [({name: value[:, shard] for name, value in tokens.items()}, shard) for shard in shards]
    while more:
        for part, shard in parts:
            choices.look(part, shard.start)
        more = choices.narrow(TOP)
    picked = [choices.pick(part, shard.start, top[:, shard]) for part, shard in parts]
    return {choice: np.concatenate([of[choice] for of in picked], axis=1) for choice in CHOICES}


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return float(low), float(high)


@pytest.fixture
def noise(rng: np.random.Generator) -> Callable[[], np.ndarray]:
    return lambda: rng.normal(size=(HEADS, PROMPTS, POSITIONS))


def test_noise_of_the_donor_makes_repair_only_where_tokens_are_chosen_with_that_donor(noise) -> None:
    """Nothing repairs; the noise of the donor is in the ablated direct effect alone, and the logit does not feel it."""
    effect, own, other = noise(), noise(), noise()
    tokens = {
        "direct_effect": effect,
        "ablated_direct_effect": own,
        "other_donor": other,
        "logit_change": -effect,
        "self_repair": -effect - (own - effect),
    }
    found = measure(tokens)
    low, _ = interval(found["removed"]["self_repair"])
    assert low > 1
    for choice in ("top", "absolute", "other_donor", "random"):
        low, high = interval(found[choice]["self_repair"])
        assert low < 0 < high, choice
        assert high - low < 0.5, choice


def test_noise_of_the_direct_effect_makes_repair_on_top_tokens(noise) -> None:
    """Nothing repairs, and the direct effect is noise that the logit does not feel: its mean over top tokens passes for repair.

    The other donor's choice does so less, as more of what it goes by is the donors'; a random choice does not.
    """
    effect = noise()
    own, other = 3 * noise(), 3 * noise()
    tokens = {
        "direct_effect": effect,
        "ablated_direct_effect": own,
        "other_donor": other,
        "logit_change": own,
        "self_repair": own - (own - effect),
    }
    found = measure(tokens)
    repair = {choice: values["self_repair"][0] for choice, values in found.items()}
    assert repair["top"] > 2
    assert interval(found["other_donor"]["self_repair"] - found["top"]["self_repair"])[1] < -1
    assert 0 < repair["other_donor"] < 1
    for choice in ("absolute", "random"):
        low, high = interval(found[choice]["self_repair"])
        assert low < 0 < high, choice


def test_a_planted_fraction_is_found_by_every_choice(noise) -> None:
    """30% of what ablation removes comes back, on every token; the donors only make the removed effect differ."""
    effect = 1 + noise()
    own, other = 0.1 * noise(), 0.1 * noise()
    repair = 0.3 * (effect - own)
    tokens = {
        "direct_effect": effect,
        "ablated_direct_effect": own,
        "other_donor": other,
        "logit_change": repair - (effect - own),
        "self_repair": repair,
    }
    for choice, values in measure(tokens).items():
        np.testing.assert_allclose(values["pooled_repair_fraction"], 0.3, err_msg=choice)
        np.testing.assert_allclose(values["repair_slope"], 0.3, err_msg=choice)


def test_slope_holds_where_effects_cancel(noise) -> None:
    """Effects of both signs, all on average zero: the pooled fraction says nothing, the slope what was planted."""
    effect = noise()
    effect -= effect.mean((1, 2), keepdims=True)
    tokens = {
        "direct_effect": effect,
        "ablated_direct_effect": np.zeros_like(effect),
        "other_donor": np.zeros_like(effect),
        "logit_change": -0.5 * effect,
        "self_repair": 0.5 * effect,
    }
    assert measure(tokens)["absolute"]["repair_slope"][0] == pytest.approx(0.5)


def test_choices_are_of_one_size_and_leave_out_positions(noise) -> None:
    effect, own, other = noise(), noise(), noise()
    tokens = {"direct_effect": effect, "ablated_direct_effect": own, "other_donor": other}
    counted = np.broadcast_to(np.arange(POSITIONS) >= 3, (PROMPTS, POSITIONS)).ravel()
    top = np.zeros((HEADS, PROMPTS, POSITIONS), bool)
    top[:, 0, 5:] = True
    picked = {choice: of.reshape(HEADS, -1) for choice, of in pick(tokens, top, 3).items()}
    flat = {name: value.reshape(HEADS, -1) for name, value in tokens.items()}
    assert tuple(picked) == CHOICES
    assert np.array_equal(picked["top"], top.reshape(HEADS, -1))
    for choice in CHOICES[1:]:
        assert (picked[choice].sum(1) == TOP).all()
        assert not picked[choice][:, ~counted].any()
    for choice, values in {
        "absolute": np.abs(flat["direct_effect"]),
        "removed": flat["direct_effect"] - flat["ablated_direct_effect"],
        "other_donor": flat["direct_effect"] - flat["other_donor"],
    }.items():
        for head in range(HEADS):
            left_out = values[head][~picked[choice][head] & counted]
            assert values[head][picked[choice][head]].min() >= left_out.max()
    # Each head draws its own.
    assert (picked["random"][0] != picked["random"][1]).any()
