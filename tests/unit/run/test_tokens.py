"""A head's tokens in a run of many shards: each file is opened once, and no more text is read than is asked for."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from selfrepair.files import hdf5
from selfrepair.run.opened import Run

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from made_shards import Sizes, make_shards
from many_shards import jobs

pytestmark = pytest.mark.filterwarnings("error")

SIZES = Sizes(layers=3, heads=4, prompts=8, positions=15, neurons=60, best=10)
N_SHARDS, HEAD = 24, (1, 2)
N_PROMPTS = N_SHARDS * SIZES.prompts


class MadeRun(Run):
    """A run of one made-up shard that is named many times (benchmarks/made_shards.py)."""

    kinds = ("resample",)
    settings = {"n_prompts": N_PROMPTS, "n_layers": SIZES.layers, "n_heads": SIZES.heads}  # noqa: RUF012

    def __init__(self, folder: Path, ablations: Path) -> None:
        super().__init__(folder)
        self.ablations_file = ablations
        words = {f"w{number}": number for number in range(50)}
        self.tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
        self.prompts = np.random.default_rng(1).integers(0, 50, (N_PROMPTS, SIZES.positions + 1))

    def _shards(self, name: str, kind: str) -> list[Path]:
        return [self.ablations_file] * N_SHARDS

    def _made_of(self, table: Path, shards: Any) -> None:
        pass


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> MadeRun:
    folder = tmp_path_factory.mktemp("made") / "model" / "corpus"
    folder.mkdir(parents=True)
    files = make_shards(folder.parent, SIZES)
    jobs(files, SIZES, N_SHARDS, 20, folder)["find_thresholds"]()
    return MadeRun(folder, files["ablations"])


@pytest.fixture
def asked(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[pd.DataFrame, list[Path], list[int]]]:
    """Tokens as asked for; the files that were opened, and the prompts that were read as text."""

    def ask(*arguments: Any, **options: Any) -> tuple[pd.DataFrame, list[Path], list[int]]:
        opened, read = list[Path](), list[int]()
        seal, text = hdf5.require_seal, Run.text
        monkeypatch.setattr(hdf5, "require_seal", lambda path, advice: (opened.append(path), seal(path, advice)))
        monkeypatch.setattr(Run, "text", lambda self, prompt: (read.append(prompt), text(self, prompt))[1])
        found = run.tokens(*arguments, **options)
        monkeypatch.undo()
        return found, opened, read

    return ask


def test_each_file_is_opened_once_and_each_text_read_once(asked: Callable[..., Any], run: MadeRun) -> None:
    found, opened, read = asked(*HEAD)
    assert len(found) == N_PROMPTS * SIZES.positions
    assert len(opened) == N_SHARDS + 1  # and the top tokens
    assert read == list(range(N_PROMPTS))
    assert found["selected"].sum() == N_SHARDS * SIZES.top
    row = found[(found["prompt"] == 100) & (found["pos"] == 7)].iloc[0]
    assert (row["token"], row["correct_token"]) == tuple(run.text(100)[7:9])


def test_top_tokens_alone_are_those_of_all_and_their_texts_alone_are_read(asked: Callable[..., Any]) -> None:
    every, _, _ = asked(*HEAD)
    top, opened, read = asked(*HEAD, selection="top")
    pd.testing.assert_frame_equal(top, every[every["selected"]].reset_index(drop=True))
    assert len(opened) == N_SHARDS + 1
    assert read == sorted(set(top["prompt"]))
    assert len(read) < N_PROMPTS


@pytest.mark.parametrize("selection", ["top", "all"])
def test_no_text_is_read_where_none_is_wanted(asked: Callable[..., Any], selection: str) -> None:
    with_text, _, _ = asked(*HEAD, selection=selection)
    without, _, read = asked(*HEAD, selection=selection, texts=False)
    assert read == []
    pd.testing.assert_frame_equal(without, with_text.drop(columns=["token", "correct_token"]))


def test_another_selection_is_refused(run: MadeRun) -> None:
    with pytest.raises(ValueError, match="selection is 'best': wanted one of top, all"):
        run.tokens(*HEAD, selection="best")
