"""What this machine has, and in what words it is said that something does not fit."""

import os
import re
import resource
import shutil
from pathlib import Path

PLAN = "`selfrepair plan` says what takes it, and which key of the config to change"
"""What to do where nothing more is known."""

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says what a container may hold."""

_NO_MEMORY = re.compile(r"out of memory|(can't|cannot|unable to|failed to) allocate|bad_alloc", re.IGNORECASE)
"""What libraries say where memory cannot be had: few of them raise a MemoryError."""
_WANTED = re.compile(r"(?:allocate|mmap) ([\d.]+) (bytes|KiB|MiB|GiB|TiB)")
_OF_DEVICE = re.compile(r"(\w+ \d+) has a total capacity of ([\d.]+ \wiB) of which ([\d.]+ \wiB) is free")
_BYTES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


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


def out_of_memory(error: BaseException | None, advice: str = PLAN) -> str:
    """What an error says of memory that could not be had, in a line; empty where it is about something else.

    Args:
        error: What was raised, itself or for the sake of another error.
        advice: What to do.
    """
    while error is not None:
        said = str(error)
        if isinstance(error, MemoryError) or _NO_MEMORY.search(said):
            size, unit = wanted.groups() if (wanted := _WANTED.search(said)) else ("", "")
            more = f"another {amount(float(size) * _BYTES[unit] / 1e6)}" if size else "more"
            if of_device := _OF_DEVICE.search(said):
                where, total, free = of_device.groups()
                return f"out of GPU memory: {more} could not be had ({where} has {total}, of which {free} are free): {advice}"
            if type(error).__name__ == "OutOfMemoryError":  # torch's, of a device
                return f"out of GPU memory: {more} could not be had: {advice}"
            limit = resource.getrlimit(resource.RLIMIT_AS)[0]
            limited = (
                "" if limit == resource.RLIM_INFINITY else f", and `ulimit -v` allows a process {amount(limit / 1e6)}"
            )
            return f"out of memory: {more} could not be had ({amount(memory_mb())} are here{limited}): {advice}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""
