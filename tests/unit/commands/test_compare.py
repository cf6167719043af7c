"""Differences of two runs: their intervals are those of a bootstrap over prompts, drawn together or apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from selfrepair.commands import compare
from selfrepair.measure import thresholds
from selfrepair.quantities import HEAD_TOKEN, OWN_POSTNORM, POSTNORMS

pytestmark = pytest.mark.filterwarnings("error")

HEADS, PROMPTS, POSITIONS, N_BOOTSTRAP = [(0, 0), (0, 1), (1, 0)], 12, 5, 400
NAMES = [name for name in HEAD_TOKEN if name not in (POSTNORMS, OWN_POSTNORM)]


class Run(SimpleNamespace):
    """What `compare.differences` asks of a run: ablations in which every token is a top token."""

    def __init__(self, values: np.ndarray, heads: list[tuple[int, int]] = HEADS, first: int = 0) -> None:
        prompts = np.arange(first, first + values.shape[1])[:, None]
        settings = {"n_prompts": values.shape[1], "n_bootstrap": N_BOOTSTRAP, "bootstrap_seed": 0, "first_position": 1}
        layers, of_layer = zip(*heads, strict=True)
        found = xr.Dataset(
            dict.fromkeys(NAMES, (("head", "prompt", "pos"), values)),
            coords={"layer": ("head", list(layers)), "head_index": ("head", list(of_layer))},
        )
        found["ablated_direct_effect"] = found["ablated_direct_effect"] * 0
        super().__init__(settings=settings, folder=Path(), ablations=lambda kind: found, prompts=prompts)


@pytest.fixture(autouse=True)
def every_token_is_a_top_token(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(path: Path) -> Iterator[Any]:
        def of(heads: list[tuple[int, int]], prompts: slice) -> np.ndarray:
            return np.ones((len(heads), prompts.stop - prompts.start, POSITIONS), bool)

        yield SimpleNamespace(of=of)

    monkeypatch.setattr(thresholds, "open_top_tokens", opened)


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(len(HEADS), PROMPTS, POSITIONS))


def differences(runs: Any, by: str, selection: str) -> Any:
    resamples, _ = compare.draw_prompts(runs)
    return compare.differences(runs, "resample", by, selection, resamples)


def test_what_is_added_to_all_tokens_is_the_difference_and_is_sure_where_prompts_are_the_same(
    values: np.ndarray,
) -> None:
    runs: Any = (Run(values), Run(values + 0.5))
    heads, overall = differences(runs, "self_repair", "top")
    np.testing.assert_allclose(heads[["difference", "difference_low", "difference_high"]], 0.5)
    np.testing.assert_allclose(heads["first"], values.mean((1, 2)))
    np.testing.assert_allclose([overall[f"difference{end}"] for end in ("", "_low", "_high")], 0.5)


def test_other_prompts_are_drawn_apart(values: np.ndarray) -> None:
    runs: Any = (Run(values), Run(values + 0.5, first=PROMPTS))
    heads, _ = differences(runs, "self_repair", "top")
    np.testing.assert_allclose(heads["difference"], 0.5)
    # Of independent draws variances add up: each is that of a mean over prompts.
    wanted = 2 * 1.96 * np.sqrt(2 * values.mean(-1).var(-1) / PROMPTS)
    np.testing.assert_allclose(heads["difference_high"] - heads["difference_low"], wanted, rtol=0.25)


@pytest.mark.parametrize("n_shared", [12, 9, 6, 0])
def test_what_shared_prompts_have_in_common_cancels(rng: np.random.Generator, n_shared: int) -> None:
    """Against the spread of the difference over many texts, of runs of which the second has the last prompts of the first."""
    of_prompt = rng.normal(size=(len(HEADS), 2 * PROMPTS - n_shared, POSITIONS))
    own = rng.normal(scale=0.1, size=(2, len(HEADS), PROMPTS, POSITIONS))
    first = PROMPTS - n_shared
    runs: Any = (Run(of_prompt[:, :PROMPTS] + own[0]), Run(of_prompt[:, first:] + own[1], first=first))
    resamples, shared = compare.draw_prompts(runs)
    assert shared == n_shared
    heads, _ = differences(runs, "self_repair", "top")
    width = (heads["difference_high"] - heads["difference_low"]).mean()
    alone = 2 * (PROMPTS - n_shared) / PROMPTS**2 / POSITIONS  # variance of what is in one run only
    noise = 2 * 0.1**2 / (PROMPTS * POSITIONS)
    assert width == pytest.approx(2 * 1.96 * np.sqrt(alone + noise), rel=0.35)
    whole = resamples[0].counts.shape[1]
    assert whole == PROMPTS
    same = resamples[0].counts[:, first:] == resamples[1].counts[:, :n_shared]
    assert n_shared == 0 or same.all()


def test_a_text_that_stands_in_a_run_twice_is_two_prompts(values: np.ndarray) -> None:
    runs: Any = (Run(values), Run(values))
    for run in runs:
        run.prompts[3] = run.prompts[8]
    (one, two), shared = compare.draw_prompts(runs)
    assert shared == PROMPTS
    assert one.counts.shape == (1 + N_BOOTSTRAP, PROMPTS)
    np.testing.assert_array_equal(one.counts, two.counts)
    assert (one.counts[1:, 3] != one.counts[1:, 8]).any()


def test_heads_are_matched_by_name_and_not_by_place(values: np.ndarray) -> None:
    order = [2, 0]
    runs: Any = (Run(values), Run(values[order], [HEADS[at] for at in order]))
    heads, _ = differences(runs, "self_repair", "top")
    assert list(zip(heads["layer"], heads["head"], strict=True)) == [(0, 0), (1, 0)]
    np.testing.assert_allclose(heads["difference"], 0, atol=1e-12)
    other: Any = (Run(values[:1], HEADS[:1]), Run(values[1:], HEADS[1:]))
    with pytest.raises(ValueError, match=r"no head was ablated in both runs \(resample\)"):
        differences(other, "self_repair", "top")


def test_all_tokens_begin_at_the_first_that_counts(values: np.ndarray) -> None:
    runs: Any = (Run(values), Run(values))
    heads, _ = differences(runs, "self_repair", "all")
    np.testing.assert_allclose(heads["first"], values[:, :, 1:].mean((1, 2)))


def test_the_pooled_fraction_over_heads_is_a_ratio_of_sums(values: np.ndarray) -> None:
    runs: Any = (Run(values), Run(3 * values))
    heads, overall = differences(runs, "pooled_repair_fraction", "top")
    # Self-repair is what the direct effect is, and nothing is left of that by ablation.
    np.testing.assert_allclose(heads[["first", "second"]], 1)
    assert overall["first"] == pytest.approx(1)


def test_a_head_without_a_value_is_left_out_of_the_mean_of_both(values: np.ndarray) -> None:
    holed = values.copy()
    holed[1] = np.nan
    runs: Any = (Run(values), Run(holed))
    heads, overall = differences(runs, "self_repair", "top")
    assert np.isnan(heads["difference"][1])
    assert np.isnan(heads["difference_low"][1])
    assert overall["difference"] == pytest.approx(0, abs=1e-12)
