"""The largest of each row, part by part, are those of sorting all at once."""

import numpy as np
import pytest

from selfrepair.measure.largest import Largest

pytestmark = pytest.mark.filterwarnings("error")

ROWS, LENGTH = 5, 1000


def rows_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    values = rng.normal(size=(ROWS, LENGTH))
    match kind:
        case "few values":
            return np.round(2 * values)
        case "zeros of both signs":
            return np.where(values > 0, 0.0, -0.0)
        case "infinite, and none":
            return np.where(values > 1, values, np.where(values > 0, -np.inf, np.nan))
        case "negative":
            return -np.abs(values)
        case "near in the last bits":
            return 1 + np.spacing(1.0) * np.round(values)
        case "all sizes":
            return values * 10.0 ** rng.integers(-44, 38, size=values.shape)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "kind",
    [
        *("noise", "few values", "zeros of both signs", "infinite, and none", "negative", "near in the last bits"),
        "all sizes",
    ],
)
@pytest.mark.parametrize("count", [1, 37, LENGTH])
def test_they_are_those_of_a_stable_sort(
    dtype: type[np.floating], kind: str, count: int, rng: np.random.Generator
) -> None:
    values = rows_of(kind, rng).astype(dtype)
    parts = np.array_split(values, [100, 101, 900], axis=1)
    largest, more = Largest(), True
    while more:
        for part in parts:
            largest.look(part)
        more = largest.narrow(count)
    picked = np.concatenate([largest.pick(part) for part in parts], axis=1)
    # Not a number comes last, as the smallest does: of equals the earlier.
    numbers = np.where(np.isnan(values), -np.inf, values)
    wanted = np.zeros_like(picked)
    np.put_along_axis(wanted, np.argsort(-numbers, axis=1, kind="stable")[:, :count], True, axis=1)
    assert np.array_equal(picked, wanted)
    assert np.array_equal(largest.smallest, np.where(picked, numbers, np.inf).min(1))


def test_more_than_there_are_is_an_error() -> None:
    largest = Largest()
    largest.look(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="6 values of each row are wanted, and one has 5"):
        largest.narrow(6)
