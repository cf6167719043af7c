"""Memory that is used again instead of being given back to the system after every layer."""

import ctypes
import platform

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
