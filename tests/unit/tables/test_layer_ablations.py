"""Slope and R^2 over tokens are those of least squares, resample by resample."""

import numpy as np
import pytest

from selfrepair.tables.layer_ablations import _regression

pytestmark = pytest.mark.filterwarnings("error")


def test_regression_is_that_of_least_squares(rng: np.random.Generator) -> None:
    x = rng.normal(100, 1, size=(2, 3, 4, 20))
    y = 0.7 * x + rng.normal(0, 0.3, size=x.shape)
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1]])

    def mean(values: np.ndarray) -> np.ndarray:
        return weights @ values.sum(-1).reshape(-1, 4).T / (weights.sum(1, keepdims=True) * 20)

    slope, r_squared = _regression(x, y, mean)
    for row, drawn in enumerate(([0, 1, 2, 3], [0, 0, 2, 3])):
        for number, (component, layer) in enumerate(np.ndindex(2, 3)):
            of_x, of_y = x[component, layer, drawn].ravel(), y[component, layer, drawn].ravel()
            assert slope[row, number] == pytest.approx(np.polyfit(of_x, of_y, 1)[0])
            assert r_squared[row, number] == pytest.approx(np.corrcoef(of_x, of_y)[0, 1] ** 2)


def test_regression_on_what_does_not_vary_has_no_value(rng: np.random.Generator) -> None:
    constant, varying = np.ones((1, 1, 4, 5)), rng.normal(size=(1, 1, 4, 5))

    def mean(values: np.ndarray) -> np.ndarray:
        return values.mean((2, 3)).reshape(1, -1)

    for x, y in ((constant, varying), (varying, constant)):
        assert np.isnan(_regression(x, y, mean)).all()
