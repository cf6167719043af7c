"""Memory on a CPU: what a layer frees is used again by the next; what outlives layers lies apart, and goes back when freed."""

import ctypes
import math
import mmap
import platform
from collections.abc import Sequence

import torch
from torch import Tensor

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGE = 2**30
_LARGEST_OF_OLD_GLIBC = 2**25


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations, where the C library is glibc.

    By default glibc returns large blocks to the system as soon as they are freed. A layer's activations are such blocks: each
    layer then pays for thousands of page faults, a tenth of its time and more (docs/performance.md). The peak of memory does
    not grow by it.

    Returns:
        Whether the C library took the setting.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGEST_OF_OLD_GLIBC)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _LARGE))


def block_of_its_own(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor for what outlives layers.

    On a CPU it lies outside of the memory that `keep_freed_memory` keeps: between blocks that live long, the memory that layers
    free would be left in pieces, and grow with every batch of prompts.

    Args:
        shape: Its shape, of one element at least.
        dtype: Its type.
        device: Where it is.
    """
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    mapped = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(mapped, dtype=dtype).view(tuple(shape))
