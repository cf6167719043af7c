"""The seal of an HDF5 file: a digest of all its bytes but the values', behind its end, checked before HDF5 looks into it.

Values have checksums of their own (fletcher32); where they have none they are under the seal too. What is left (headers,
indexes, heaps, attributes) HDF5 follows as it stands, and damage there may keep it busy for ever or end the process. HDF5
itself overlooks what stands behind a file's end.

The seal: JSON of the ranges that hold values, as [start, stop]; the SHA-256 of this JSON and of all bytes before it outside of
these ranges; the length of the JSON, in 8 bytes; `MARK`.
"""

import fcntl
import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from selfrepair.files.sealed import refusal

MARK = b"\nseal1\n\0"
_DIGEST, _LENGTH = 32, 8
_TAIL = _DIGEST + _LENGTH + len(MARK)

Ranges = list[list[int]]


def add_seal(path: Path) -> None:
    """Seal a finished file.

    Args:
        path: An HDF5 file.

    Raises:
        OSError: The system refuses to write.
    """
    content = json.dumps(_values(path)).encode()
    with path.open("r+b") as handle:
        end = handle.seek(0, 2)
        digest = _digest(handle, content, end)
        handle.seek(end)
        handle.write(content + digest + len(content).to_bytes(_LENGTH, "little") + MARK)


def require_seal(path: Path, advice: str) -> None:
    """Check a file's seal.

    Args:
        path: The file.
        advice: What to do where it does not hold.

    Raises:
        ValueError: The file is missing, cut, damaged or changed, carries no seal, or is open for writing elsewhere.
    """
    try:
        with path.open("rb") as handle:
            size = handle.seek(0, 2)
            handle.seek(max(size - _TAIL, 0))
            tail = handle.read()
            length = int.from_bytes(tail[_DIGEST : -len(MARK)], "little")
            end = size - _TAIL - length
            if tail[-len(MARK) :] != MARK or end < 0:
                _refuse_where_locked(handle, path)
                raise ValueError(
                    f"{path} is not a whole HDF5 file of this workflow, as it carries no seal (one that was cut or changed, of "
                    f"another version, or not ours): {advice}"
                )
            handle.seek(end)
            content = handle.read(length)
            try:
                sound = _digest(handle, content, end) == tail[:_DIGEST]
            except (ValueError, TypeError, OverflowError, RecursionError):  # ranges that are none
                sound = False
            if not sound:
                _refuse_where_locked(handle, path)
                raise ValueError(f"{path} is damaged (what is not values is not what was written): {advice}")
    except OSError as error:
        raise refusal(path, error, advice=advice) from error


def read_attribute(path: Path, name: str, advice: str) -> str:
    """A root attribute of a sealed file that is text.

    Raises:
        ValueError: As `require_seal`; or the file has no such attribute.
    """
    require_seal(path, advice)
    import h5py  # late: Snakemake reads the workflow faster without it

    try:
        with h5py.File(path, "r") as file:
            text = file.attrs[name]
            return text.decode() if isinstance(text, bytes) else str(text)
    except OSError as error:
        raise refusal(path, error, advice=advice) from error
    except KeyError as error:
        raise ValueError(f"{path} has no {name} that can be read: {advice}") from error


def _refuse_where_locked(handle: BinaryIO, path: Path) -> None:
    """A file that another program is writing is no damaged one."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise refusal(path, OSError(error.errno, "unable to lock file")) from None
    except OSError:  # a filesystem without locks
        pass


def _digest(handle: BinaryIO, ranges: bytes, end: int) -> bytes:
    """Of the ranges' text, and of the bytes before ``end`` outside of them."""
    digest, place = hashlib.sha256(ranges), 0
    for start, stop in [*json.loads(ranges), [end, end]]:
        if not place <= start <= stop <= end:
            raise ValueError("ranges of values are out of order")
        handle.seek(place)
        digest.update(handle.read(start - place))
        place = stop
    return digest.digest()


def _values(path: Path) -> Ranges:
    """Where values with checksums of their own lie, in order; what touches is one."""
    import h5py

    found: list[tuple[int, int]] = []

    def chunk(stored: Any) -> None:
        found.append((stored.byte_offset, stored.byte_offset + stored.size))

    with h5py.File(path, "r") as file:
        for variable in file.values():
            if variable.fletcher32:
                variable.id.chunk_iter(chunk)
    ranges: Ranges = []
    for start, stop in sorted(found):
        if ranges and ranges[-1][1] == start:
            ranges[-1][1] = stop
        else:
            ranges.append([start, stop])
    return ranges
