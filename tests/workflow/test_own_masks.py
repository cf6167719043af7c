"""A model whose attention makes masks of its own: self-reinforcement is off by itself, with the reason in its place."""

from pathlib import Path

import h5py
import pandas as pd
import pytest
from transformers import AutoTokenizer, GPTNeoConfig, GPTNeoForCausalLM

from workflow.conftest import enlarge
from workflow.running import Space

from tiny_model import WORDS

pytestmark = pytest.mark.filterwarnings("error")

MASKS = "the attention of layer 0 makes masks of its own (a window, a slope)"
NOTE = f"{MASKS}, so that single positions cannot be changed one at a time"


def save_model(folder: Path) -> None:
    """Two layers, the second with a window; both mask by where tokens lie."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GPTNeoConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=5,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoForCausalLM(config).eval()
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_self_reinforcement_is_left_out_with_the_reason(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    save_model(space.work / "model")
    space.make("self_reinforcement")
    for shard in ("00000", "00001"):
        with h5py.File(space.run / "reinforcement" / f"{shard}.h5") as file:
            assert file.attrs["note"].decode() == NOTE
            assert "direct_effect" not in file
    table = pd.read_parquet(space.run / "tables" / "resample" / "self_reinforcement.parquet")
    assert table["note"].tolist() == [NOTE]
    assert (space.run / "figures" / "self_reinforcement.png").stat().st_size > 0
    assert "makes masks of its own" in (space.run / "figures" / "self_reinforcement.svg").read_text(encoding="utf-8")
