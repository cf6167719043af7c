"""Code of the documentation, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.measure.tokens import check_prompts

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

PROVENANCE = {"identity": "x"}


def recipe(page: str, word: str) -> str:
    """The one block of Python on a page that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if word in block]
    return found


def _shard(path: Path, value: float, prompts: int = 4, heads: int = 3) -> None:
    with write_hdf5(path, kind="ablations", provenance=PROVENANCE) as file:
        file.dims(head=heads, prompt=prompts, by_layer=2, by_head=2)
        file.put("layer", ("head",), np.arange(heads))
        file.put("head_index", ("head",), np.arange(heads))
        file.put("repair_by_head", ("head", "prompt", "by_layer", "by_head"), np.full((heads, prompts, 2, 2), value))
        file.put("n_selected", ("head", "prompt"), np.full((heads, prompts), 2))


def test_shards_of_an_earlier_larger_run_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards on the disk, the last of a run with more prompts and other top tokens."""
    run = tmp_path / "results" / "smollm2-135m-instruct" / "wikipedia"
    with write_hdf5(run / "tokens.h5", kind="tokens", provenance=PROVENANCE, attrs={"prompts_per_shard": 4}) as file:
        file.dims(prompt=12, pos=5)
        file.put("tokens", ("prompt", "pos"), np.zeros((12, 5), np.int32))
    for name, value in (("00000", 2.0), ("00001", 4.0), ("00002", np.nan)):
        _shard(run / "ablations" / "resample" / f"{name}.h5", value)
    check_prompts(tokens=run / "tokens.h5", out=run / "prompts.json", prompts=8)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(recipe("files.md", "repair_by_head.sum"), found)
    assert found["ablations"].sizes["prompt"] == 8  # type: ignore[attr-defined]
    assert np.array_equal(found["repair_by_head"], np.full((3, 2, 2), 1.5))


def test_no_page_looks_for_shards(tmp_path: Path) -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        assert "glob(" not in page.read_text(encoding="utf-8"), page
