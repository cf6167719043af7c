"""Top tokens over several shards, and positions that count nowhere."""

from pathlib import Path

import numpy as np
import pytest

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.thresholds import find_thresholds, open_top_tokens

LAYERS, HEADS, PROMPTS, POSITIONS = 2, 3, 4, 6


@pytest.fixture
def effects(rng: np.random.Generator) -> np.ndarray:
    """Direct effects [layer, head, prompt, pos] of three shards, with many ties."""
    return rng.integers(-4, 5, size=(LAYERS, HEADS, 3 * PROMPTS, POSITIONS)).astype(np.float32)


@pytest.fixture
def shards(effects: np.ndarray, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.h5" for number in range(3)]
    for number, path in enumerate(paths):
        with write_hdf5(path, kind="activations", provenance={"identity": str(number)}) as file:
            file.dims(layer=LAYERS, head=HEADS, prompt=PROMPTS, predicting_pos=POSITIONS)
            part = effects[:, :, number * PROMPTS : (number + 1) * PROMPTS]
            file.put("head_direct_effect", ("layer", "head", "prompt", "predicting_pos"), part, units="logits")
    return paths


@pytest.mark.parametrize("first_position", [0, 1, 3])
def test_selected_tokens_are_the_exact_fraction_over_all_shards(
    shards: list[Path], effects: np.ndarray, tmp_path: Path, first_position: int
) -> None:
    out = tmp_path / "thresholds.h5"
    find_thresholds(
        shards=shards, out=out, top_fraction=0.2, first_position=first_position, provenance={"identity": "x"}
    )
    heads = [(1, 2), (0, 0), (1, 0)]
    count = int(0.2 * 3 * PROMPTS * (POSITIONS - first_position))
    with open_top_tokens(out) as top:
        assert (top.n_top, top.n_prompts, top.n_layers) == (count, 3 * PROMPTS, LAYERS)
        parts = [top.of(heads, slice(first, first + PROMPTS)) for first in range(0, 3 * PROMPTS, PROMPTS)]
    selected = np.concatenate(parts, axis=1)
    assert (selected.sum((1, 2)) == count).all()
    assert not selected[..., :first_position].any()
    for row, (layer, head) in enumerate(heads):
        counted = effects[layer, head, :, first_position:].ravel()
        smallest_taken = effects[layer, head][selected[row]].min()
        assert (counted > smallest_taken).sum() < count <= (counted >= smallest_taken).sum()
        # Of tokens with equal effect, the earlier ones are taken.
        ties = selected[row, :, first_position:].ravel()[counted == smallest_taken]
        assert (np.diff(ties.astype(int)) <= 0).all()


def test_fraction_that_takes_no_token(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"top_fraction 0.001 of 72 tokens takes none: raise tokens.prompts or"):
        find_thresholds(
            shards=shards, out=tmp_path / "out.h5", top_fraction=0.001, first_position=0, provenance={"identity": "x"}
        )
    assert not (tmp_path / "out.h5").exists()
