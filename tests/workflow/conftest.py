"""The workflow on a tiny model, run once for all tests; a test that changes anything gets a copy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from workflow.running import Space

from conftest import MakeOnce
from tiny_model import WORDS, save_tiny_model

TINY = {
    "run": {"models": ["tiny"], "corpora": ["words"]},
    "models": {"tiny": {"source": "path:model", "license": "none"}},
    "corpora": {"words": {"source": "path:text", "license": "none"}},
    "tokens": {"prompts": 8, "prompts_per_shard": 4, "prompt_length": 16},
    "ablations": {"resample": {"heads": "all"}, "mean": {"heads": "all"}, "zero": {"heads": "all"}},
    "statistics": {"top_fraction": 0.1, "n_bootstrap": 50},
}


@pytest.fixture(scope="session")
def fresh(make_once: MakeOnce) -> Space:
    """A model, text and config, with nothing made of them yet."""

    def fill(folder: Path) -> None:
        space = Space.new(folder / "space")
        save_model(space.work / "model")
        _save_text(space.work / "text")
        space.write_config(TINY)

    return Space(make_once("fresh", fill) / "space")


@pytest.fixture(scope="session")
def finished(fresh: Space, make_once: MakeOnce) -> Space:
    """After a full run of every figure. Only to be read."""

    def fill(folder: Path) -> None:
        space = fresh.copy(folder / "space")
        (space.work / "printed.txt").write_text(space.make(), encoding="utf-8")

    return Space(make_once("finished", fill) / "space")


@pytest.fixture
def copied(finished: Space, tmp_path: Path) -> Space:
    """A copy of the finished run that a test may change."""
    return finished.copy(tmp_path / "space")


def save_model(folder: Path, **sizes: int) -> None:
    """The tiny model of the runs; ``sizes`` are other than its own."""
    model = save_tiny_model(folder, **sizes)
    enlarge(model)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(folder)


def enlarge(model: PreTrainedModel) -> None:
    """Weights large enough that effects are tenths of logits: the 0.02 of transformers' initialisation hides every error."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if parameter.ndim == 1 else noise * 1.5 * parameter.shape[-1] ** -0.5)


def _save_text(folder: Path) -> None:
    """Five documents, 17 prompts of 16 tokens."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        words = rng.choice(WORDS[2:], size=52)
        (folder / f"{number}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
