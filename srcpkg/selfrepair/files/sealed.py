"""Files that later steps read: sealed with the SHA-256 of their own bytes, and every error of the system by its own name.

JSON and Parquet have no checksum that covers a whole file. So ours carry one within: the field `SEAL`, computed with zeros in
its own place. Any plain tool reads such a file. Both are written whole or not at all.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SEAL = "sha256_of_this_file"
BLANK = "0" * 64
"""What stands in the seal's place until the digest is known."""

_PLACE = re.compile(rb'("%s": ")([0-9a-f]{64})(")' % SEAL.encode())

NO_LOCKS = "set HDF5_USE_FILE_LOCKING=FALSE in the environment and run again"
_REASONS = {
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM), "give this user the permission, or work where it is had; then run again"
    ),
    errno.EROFS: "its filesystem can only be read: work in another folder",
    **dict.fromkeys(
        _FULL := (errno.ENOSPC, errno.EDQUOT),
        "the disk or the quota is full: free space, set cache.keep to false, which leaves no activations on disk, or point "
        "results/ at a larger disk; then run again",
    ),
    errno.EFBIG: "the system allows no file of that size: raise the limit (`ulimit -f`), then run again",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (`ulimit -n`), or close some"),
    errno.EISDIR: "a folder is where a file is wanted: move it away, then run again",
    errno.ESTALE: "the network filesystem has lost it for now: run again, or mount it anew",
    errno.EIO: "the disk or the network failed, which says nothing of the content: check them, then run again",
}
"""What to do where the system refuses a file, by error number. Of none of these is a file damaged."""


def advice_for(path: Path, rule: str = "") -> str:
    """How a file of the workflow is made again: the file alone, not all that its rule makes."""
    return f"remake it{f' ({rule})' if rule else ''} with `snakemake --forcerun {path}`"


def refusal(
    path: Path,
    error: OSError,
    doing: str = "read",
    advice: str = "run again",
    fault: str = "is damaged",
    needs: int = 0,
) -> ValueError:
    """An error of the system, or of a library that reads or writes a file, as one that names file, cause and remedy.

    Args:
        path: The file.
        error: What was raised. Without an error number it is the library's, and about the content.
        doing: "read" or "written".
        advice: How the file is made again, where that is what helps.
        fault: What the file is where the error is about its content.
        needs: Bytes that were to be written, as far as they are known.
    """
    said = str(error)
    if "lock file" in said:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return ValueError(
                f"{path} is locked: another program has it open. Close it there (a notebook, a viewer, another run), then run "
                f"again; where the filesystem has no locks, {NO_LOCKS}"
            )
        return ValueError(
            f"{path} cannot be locked ({os.strerror(error.errno or errno.ENOLCK)}), as its filesystem has no file locks: "
            f"{NO_LOCKS}. The file itself may be sound"
        )
    if "already open for" in said:
        return ValueError(
            f"{path} is open for writing in another program, or was when that died: close it there, then run again; if none "
            f"has it open, {advice}"
        )
    if isinstance(error, FileNotFoundError):
        return ValueError(f"{path} does not exist: {advice}")
    # A place that a damaged file names may lie outside anything that the system can seek to.
    if error.errno is None or error.errno == errno.EINVAL:
        if doing == "written":
            return ValueError(f"{path} cannot be written ({said}): correct the cause, then {advice}")
        return ValueError(f"{path} {fault} ({said}): {advice}")
    reason = _REASONS.get(error.errno, "correct the cause, then run again; the file itself may be sound")
    space = f"; {_space(path, needs)}" if error.errno in _FULL and doing == "written" else ""
    return ValueError(f"{path} cannot be {doing} ({os.strerror(error.errno)}{space}): {reason}")


def full_disk(error: BaseException) -> OSError | None:
    """The error of a full disk or quota that an exception is, or stands for: not all libraries raise it as it is."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error
    number = next((number for number in _FULL if os.strerror(number) in str(error)), None)
    return None if number is None else OSError(number, os.strerror(number))


def _space(path: Path, needs: int) -> str:
    """How much is written and how much is free, in words."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    begun = _partial(path)
    # What is there of it goes with the error.
    free = shutil.disk_usage(there).free + (512 * begun.stat().st_blocks if begun.exists() else 0)
    return (
        f"{f'{max(needs / 1e6, 0.1):,.1f} MB or more are needed, ' if needs else ''}{free / 1e6:,.1f} MB are free there"
    )


@contextmanager
def writing(path: Path, needs: int = 0) -> Iterator[None]:
    """Turn what the system or a library says of writing ``path`` within the block into a `refusal`.

    Args:
        path: The file that is made.
        needs: Bytes that are written, as far as they are known.
    """
    try:
        yield
    except OSError as error:
        raise refusal(path, error, "written", needs=needs) from error


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary path to write to (`writing`), which takes the place of ``path`` when the block ends well, and goes otherwise.

    The temporary path is this process's own: where two write one file, each writes all of it, and the later takes the place.

    Raises:
        ValueError: The system refuses to write: the file and the reason.
    """
    temporary = _partial(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(path)
    try:
        yield temporary
        with writing(path):
            with temporary.open("rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.partial")


def _clear_up(path: Path) -> None:
    """Remove what processes of this machine have begun to write under ``path`` and left when they were killed."""
    with suppress(OSError):
        for left in path.parent.iterdir():
            if not (left.name.startswith(f".{path.name}.") and left.suffix == ".partial"):
                continue
            machine, _, process = left.stem.removeprefix(f".{path.name}.").rpartition("-")
            if machine == socket.gethostname() and process.isdigit() and not _runs(int(process)):
                left.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text; it appears whole or not at all."""
    content = text.encode()
    with write_whole(path) as temporary, writing(path, len(content)):
        temporary.write_bytes(content)


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file with its seal.

    Args:
        path: Where it will be.
        content: What it holds, `BLANK` in the place of the seal.
    """
    digest = hashlib.sha256(content).hexdigest()
    with write_whole(path) as temporary, writing(path, len(content)):
        temporary.write_bytes(_PLACE.sub(rb"\g<1>%s\g<3>" % digest.encode(), content))


def read_sealed(path: Path, advice: str | None = None) -> bytes:
    """What a sealed file holds, after its seal has been checked.

    Args:
        path: The file.
        advice: How it is made again; None where it is a file of the workflow's.

    Raises:
        ValueError: The file cannot be read, carries no seal, or is not what was written.
    """
    advice = advice or advice_for(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise refusal(path, error, advice=advice) from error
    seals = {digest for _, digest, _ in _PLACE.findall(content)}
    if not seals:
        raise ValueError(
            f"{path} carries no digest of itself ({SEAL}): it is damaged, or was not written by this version; {advice}"
        )
    digest = hashlib.sha256(_PLACE.sub(rb"\g<1>%s\g<3>" % BLANK.encode(), content)).hexdigest()
    if seals != {digest.encode()}:
        raise ValueError(f"{path} is damaged (it is not the content whose digest it carries): {advice}")
    return content


def write_json(path: Path, fields: dict[str, Any]) -> None:
    """Write a sealed JSON file; `read_json` gives ``fields`` back."""
    text = json.dumps({SEAL: BLANK, **fields}, indent=2, ensure_ascii=False)
    write_sealed(path, f"{text}\n".encode())


def read_json(path: Path, advice: str | None = None) -> dict[str, Any]:
    """The fields that `write_json` wrote.

    Raises:
        ValueError: As `read_sealed`.
    """
    fields = json.loads(read_sealed(path, advice))
    del fields[SEAL]
    return fields


def listed(path: Path) -> Path:
    """Where the digest of a file of the release stands."""
    return path.with_name(f"{path.name}.sha256")


def read_listed(path: Path) -> bytes:
    """What a file of the release holds, after its digest in the file of sha256sum's form beside it has been checked.

    Args:
        path: The file; ``{path}.sha256`` stands beside it.

    Raises:
        ValueError: Either of the two cannot be read, or they differ.
    """
    beside = listed(path)
    remedy = f"take it from the release again, or `git checkout {path} {beside}`"
    content = []
    for file in (path, beside):
        try:
            content.append(file.read_bytes())
        except OSError as error:
            raise refusal(file, error, advice=remedy) from error
    if content[1] != f"{hashlib.sha256(content[0]).hexdigest()}  {path.name}\n".encode():
        raise ValueError(f"{path} is not the file whose digest {beside.name} holds, one of them is damaged: {remedy}")
    return content[0]
