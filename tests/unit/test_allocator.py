"""Freed memory is used again."""

import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from selfrepair.allocator import keep_freed_memory
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
