"""Tokens that are listed: all where they are few, a random part of fixed size where they are many."""

import numpy as np
import pytest

from selfrepair.tables.sample import Sample

pytestmark = pytest.mark.filterwarnings("error")


def sampled(n_rows: int, size: int, in_shard: int = 13, seed: int = 0) -> Sample:
    sample = Sample(seed, size)
    for first in range(0, n_rows, in_shard):
        number = np.arange(first, min(first + in_shard, n_rows))
        sample.add({"number": number, "pair": np.stack([number, -number], axis=1)})
    return sample


@pytest.mark.parametrize("n_rows", [0, 1, 99, 100])
def test_few_are_all_there_in_their_order(n_rows: int) -> None:
    sample = sampled(n_rows, 100) if n_rows else Sample(0, 100)
    if not n_rows:
        sample.add({"number": np.arange(0), "pair": np.zeros((0, 2))})
    rows = sample.rows()
    assert rows["number"].tolist() == list(range(n_rows))
    assert rows["pair"].shape == (n_rows, 2)
    assert sample.settings == {}


@pytest.mark.parametrize("n_rows", [101, 250, 5000])
def test_of_many_a_part_of_fixed_size_is_drawn(n_rows: int) -> None:
    sample = sampled(n_rows, 100)
    number = sample.rows()["number"]
    assert len(set(number)) == 100
    assert (np.diff(number) > 0).all()
    assert (sample.rows()["pair"] == np.stack([number, -number], axis=1)).all()
    assert sample.settings == {"listed": 100, "listed_of": n_rows}
    assert sampled(n_rows, 100).rows()["number"].tolist() == number.tolist()
    assert sampled(n_rows, 100, seed=1).rows()["number"].tolist() != number.tolist()


def test_rows_that_are_several_of_a_table_are_fewer() -> None:
    sample = Sample(0, 100, each=7)
    sample.add({"number": np.arange(50)})
    assert len(sample.rows()["number"]) == 14
    assert sample.settings == {"listed": 14, "listed_of": 50}


def test_every_row_is_drawn_as_often() -> None:
    """The first as the last, though most of the early ones meet more draws."""
    times = np.zeros(200)
    for seed in range(2000):
        times[sampled(200, 20, seed=seed).rows()["number"]] += 1
    # 200 expected each; five standard deviations.
    assert np.abs(times - 200).max() < 5 * np.sqrt(200 * 0.9)
    assert np.abs(times[:100].sum() - 20000) < 5 * np.sqrt(20000 / 2)
