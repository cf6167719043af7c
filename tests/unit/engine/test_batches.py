"""Batches hold every run that is wanted once, and no more tokens than go through the layers at a time."""

import numpy as np
import pytest
import torch

from selfrepair.engine.batches import LENGTH_STEP, cut_batches, whole_batches
from selfrepair.engine.heads import group_by_layer

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("batch_tokens", [1, 60, 1000])
def test_whole_batches_hold_every_head_once(batch_tokens: int) -> None:
    heads = [4, 0, 7, 2, 5]
    batches = list(whole_batches(heads, n_prompts=3, length=10, batch_tokens=batch_tokens))
    assert [row for batch in batches for row in batch.rows] == [0, 1, 2, 3, 4]
    assert [head for batch in batches for head in batch.heads] == heads
    assert {batch.cut for batch in batches} == {0}
    assert max(len(batch.heads) for batch in batches) == max(1, min(5, batch_tokens // 30))


@pytest.mark.parametrize("batch_tokens", [1, 60, 1000])
def test_cut_batches_hold_every_pair_with_a_wanted_token_up_to_its_last(
    batch_tokens: int, rng: np.random.Generator
) -> None:
    heads, whole = [4, 0, 7], 21
    selected = torch.from_numpy(rng.random((3, 5, whole)) < 0.1)
    selected[1, 2] = False
    pairs, lengths = [], []
    for batch in cut_batches(heads, selected, batch_tokens):
        length = whole - batch.cut
        assert length == whole or length % LENGTH_STEP == 0
        assert len(batch.rows) <= max(1, batch_tokens // length)
        assert batch.heads == [heads[row] for row in batch.rows]
        assert batch.prompts is not None
        assert not selected[batch.rows, batch.prompts, length:].any()
        pairs += zip(batch.rows, batch.prompts, strict=True)
        lengths.append(length)
    assert sorted(pairs) == [tuple(pair) for pair in torch.nonzero(selected.any(-1)).tolist()]
    assert lengths == sorted(lengths, reverse=True)


def test_heads_are_grouped_by_layer_in_their_order() -> None:
    assert group_by_layer([(2, 1), (0, 3), (2, 0)]) == {0: [3], 2: [1, 0]}
    assert list(group_by_layer([(2, 1), (0, 3)])) == [0, 2]
