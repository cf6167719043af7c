"""What this machine has, and in what words it is said that something does not fit."""

import os
import shutil
from pathlib import Path

PLAN = "`selfrepair plan` says what takes it, and which key of the config to change"
"""What to do where nothing more is known."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may hold."""


def memory_mb() -> int:
    """Memory of this machine, or of the container that this process runs in, in MB of 10^6 bytes."""
    held = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _LIMITS:
        try:
            held.append(int(limit.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(held) // 10**6


def disk_mb(folder: Path) -> int:
    """Free disk where a folder is or will be, in MB of 10^6 bytes."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free // 10**6


def shortage(what: str, kind: str, asked: int | float, has: int | float, advice: str = PLAN) -> str:
    """What does not fit, in a line.

    Args:
        what: What asks for it.
        kind: "memory", "GPU memory" or "disk".
        asked: MB.
        has: MB that are there.
        advice: What to do.
    """
    where = "free here" if kind == "disk" else "here"
    return f"{what} needs {amount(asked)} of {kind}, {amount(has)} are {where}: {advice}"


def amount(mb: int | float) -> str:
    """MB in words, to two digits or so: 950 MB, 3.2 GB, 34 GB, 1.5 TB."""
    for unit, size in (("TB", 1e6), ("GB", 1e3)):
        if mb >= size:
            return f"{mb / size:.1f} {unit}" if mb < 10 * size else f"{mb / size:,.0f} {unit}"
    return f"{mb:.0f} MB"
