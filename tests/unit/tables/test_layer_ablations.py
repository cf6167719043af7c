"""Slope and R^2 over tokens are those of least squares, resample by resample."""

import numpy as np
import pytest

from selfrepair.tables.layer_ablations import COMPENSATIONS, moments, regression
from selfrepair.tables.statistics import Resamples, Totals, prompt_sums

pytestmark = pytest.mark.filterwarnings("error")


def regressed(x: np.ndarray, y: np.ndarray, counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Slope and R^2 of y on x [component, layer, prompt, pos], prompts in two shards."""
    totals = Totals(Resamples.given(np.array(counts, np.uint8)))
    tokens = {"removed": x, **dict.fromkeys(COMPENSATIONS, y)}
    centres = {name: of[:, :, :1].mean((2, 3), keepdims=True) for name, of in tokens.items()}
    for part in (slice(0, 1), slice(1, 4)):
        of_part = {name: of[:, :, part] for name, of in tokens.items()}
        sums = prompt_sums(moments(of_part, centres), np.ones(of_part["removed"].shape, bool))
        totals.add({name: of.reshape(-1, of.shape[-1]) for name, of in sums.items()})
    return regression(totals, "self_repair")


def test_regression_is_that_of_least_squares(rng: np.random.Generator) -> None:
    x = rng.normal(100, 1, size=(2, 3, 4, 20))
    y = 0.7 * x + rng.normal(0, 0.3, size=x.shape)
    slope, r_squared = regressed(x, y, [[1, 1, 1, 1], [2, 0, 1, 1]])
    for row, drawn in enumerate(([0, 1, 2, 3], [0, 0, 2, 3])):
        for number, (component, layer) in enumerate(np.ndindex(2, 3)):
            of_x, of_y = x[component, layer, drawn].ravel(), y[component, layer, drawn].ravel()
            assert slope[row, number] == pytest.approx(np.polyfit(of_x, of_y, 1)[0])
            assert r_squared[row, number] == pytest.approx(np.corrcoef(of_x, of_y)[0, 1] ** 2)


def test_regression_on_what_does_not_vary_has_no_value(rng: np.random.Generator) -> None:
    constant, varying = np.ones((1, 1, 4, 5)), rng.normal(size=(1, 1, 4, 5))
    for x, y in ((constant, varying), (varying, constant)):
        assert np.isnan(regressed(x, y, [[1, 1, 1, 1]])).all()
