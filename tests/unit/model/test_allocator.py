"""Freed memory is used again by the next layer, and does not grow with the number of prompts."""

import platform
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import selfrepair
from selfrepair.model.allocator import block_of_its_own

from conftest import VOCAB, random_model

FAULTS = """
import resource, sys
import torch
from selfrepair.model.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        block = torch.ones(2**24)
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(12)  # glibc tries a few places before it comes back to one
print(int(kept), faults(20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc's allocator")
def test_a_large_block_is_not_given_back_to_the_system() -> None:
    pages = 20 * 2**26 // resource.getpagesize()
    kept, faults = (
        int(word)
        for word in subprocess.run(
            [sys.executable, "-c", FAULTS, "keep"], check=True, capture_output=True, text=True
        ).stdout.split()
    )
    assert kept
    assert faults < pages / 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory that a process holds is read from Linux")
def test_a_block_of_its_own_goes_back_to_the_system() -> None:
    block = block_of_its_own((2**12, 2**12), torch.float32, torch.device("cpu"))
    before = resident()
    block.fill_(1)
    held = resident() - before
    del block
    freed = before + held - resident()
    assert held > 0.9 * 2**26
    assert freed > 0.9 * 2**26


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_nothing_of_one_batch_of_prompts_outlives_it(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model = selfrepair.load_model(random_model("llama", torch.float32))
    per_batch = model.batch_tokens // 32
    blocks: list[weakref.ref] = []

    def block(*args: Any) -> torch.Tensor:
        made = block_of_its_own(*args)
        blocks.append(weakref.ref(made))
        alive.append(sum(ref() is not None for ref in blocks))
        return made

    for module in ("clean", "replay"):
        monkeypatch.setattr(f"selfrepair.engine.{module}.block_of_its_own", block)
    most = []
    for n_batches in (1, 4):
        alive: list[int] = []
        tokens = rng.integers(3, VOCAB, size=(n_batches * per_batch, 32))
        selfrepair.ablate_heads(model, tokens, np.roll(tokens, 1, axis=0), heads=[(0, 1), (1, 0)])
        most.append(max(alive))
    assert most[0] == most[1] > 0
