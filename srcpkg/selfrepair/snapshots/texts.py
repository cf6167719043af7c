"""The files of a corpus: which are read, and which are left out and why. The reader and the rules share this list."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SUFFIXES = {
    "text": (".txt",),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "lines": (".cor", ".lines"),
    "wikitext": (".xml.bz2", ".bz2", ".xml"),
}
"""By format, the ends of file names; upper or lower case."""

MAX_LINES = 100
"""Files that are left out are named one by one up to here, and counted beyond."""

_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class LeftOut(NamedTuple):
    """A file or folder that is not read, by its path below the corpus's folder, and why."""

    name: str
    reason: str
    other_format: bool
    """Whether it is left out for its name alone."""


@dataclass(frozen=True)
class Texts:
    """What is read of a file or folder.

    Attributes:
        format: A key of `SUFFIXES`.
        files: Files in the order in which they are read: of their paths below the folder.
        left_out: What is not read.
    """

    format: str
    files: list[Path]
    left_out: list[LeftOut]

    def warnings(self) -> list[str]:
        """A line for each thing that is left out, files of other formats last; counts where there are very many."""
        ordered = sorted(self.left_out, key=lambda one: (one.other_format, one.name))
        lines = [f"left out: {one.name!r} ({one.reason})" for one in ordered[:MAX_LINES]]
        more = Counter(one.reason for one in ordered[MAX_LINES:])
        return lines + [f"left out: {count} more ({reason})" for reason, count in more.most_common()]


def list_texts(path: Path, format: str | None) -> Texts:
    """What is read of a file, or of a folder and everything below it.

    Links to files and folders are followed, and no folder is read twice. Hidden files are left out, and so is what is no
    ordinary file. Nothing is opened but ordinary files.

    Args:
        path: A file or folder.
        format: A key of `SUFFIXES`; None to take it from the suffixes.

    Raises:
        ValueError: If there is nothing to read, no format follows, or a file's name is not UTF-8.
    """
    if format is not None and format not in SUFFIXES:
        raise ValueError(f"format is {format!r}, wanted one of {', '.join(SUFFIXES)}")
    if not path.exists():
        raise ValueError(f"{path.absolute()} does not exist; correct the path (relative to the working directory)")
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return Texts(format or _format_of_file(path), [_named_in_utf8(path)], [])
    if not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is {_kind(mode)}: wanted a file or folder; write what it gives to a file")
    found = list(_walk(path))
    names = [name for name, reason in found if reason is None]
    format = format or _format_of_folder(path, names)
    return _sorted_out(path, found, format)


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends in one of the suffixes, in upper or lower case."""
    return name.lower().endswith(suffixes)


def _format_of_file(path: Path) -> str:
    for name, suffixes in SUFFIXES.items():
        if has_suffix(path.name, suffixes):
            return name
    raise ValueError(f"{path}: no format follows from the name: say format: {', '.join(SUFFIXES)}")


def _format_of_folder(path: Path, names: list[str]) -> str:
    held = [format for format, suffixes in SUFFIXES.items() if any(has_suffix(name, suffixes) for name in names)]
    found = [format for format in ("text", "jsonl") if format in held]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"folder {path} holds both .txt and .jsonl files: say format: text or jsonl, or correct the path"
        )
    others = f" (but files of format {' and '.join(held)})" if held else ""
    raise ValueError(
        f"folder {path} holds no .txt and no .jsonl file{others}: say format: {' or '.join(held) or 'text or jsonl'}, "
        "or correct the path"
    )


def _sorted_out(path: Path, found: list[tuple[str, str | None]], format: str) -> Texts:
    suffixes = SUFFIXES[format]
    names, left_out = [], []
    for name, reason in found:
        other_format = reason is None and not has_suffix(name, suffixes)
        if other_format:
            reason = f"format {format} reads {' and '.join(suffixes)}"
        elif reason is None:
            reason = _unreadable(path / name)
        if reason is None:
            names.append(name)
        else:
            left_out.append(LeftOut(name, reason, other_format))
    if not names:
        raise ValueError(
            f"folder {path} holds no file ending in {' or '.join(suffixes)}, which format {format} reads"
            + "".join(f"; {one.name!r} is left out: {one.reason}" for one in left_out if has_suffix(one.name, suffixes))
        )
    files = [_named_in_utf8(path / name) for name in sorted(names, key=lambda name: Path(name).parts)]
    return Texts(format, files, left_out)


def _walk(root: Path) -> Iterator[tuple[str, str | None]]:
    """Files below a folder by their relative names, and why one is not read; with folders that are not entered."""
    seen = {_identity(root)}
    # Linked folders come last: what is there under its own name as well is read under that.
    folders, links = [root], list[Path]()
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        if folder.is_symlink() and folder != root:
            if _identity(folder) in seen:
                yield folder.relative_to(root).as_posix(), "a link to a folder that is read already"
                continue
            seen.add(_identity(folder))
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            if folder == root:
                raise ValueError(f"folder {root} cannot be read ({error.strerror}): change its permissions") from error
            yield folder.relative_to(root).as_posix(), f"a folder that cannot be read: {error.strerror}"
            continue
        for entry in entries:
            name = entry.relative_to(root).as_posix()
            mode, reason = _mode(entry)
            if entry.name.startswith("."):
                yield name, "hidden"
            elif stat.S_ISDIR(mode):
                if entry.is_symlink():
                    links.append(entry)
                else:
                    seen.add(_identity(entry))
                    folders.append(entry)
            elif reason is None and not stat.S_ISREG(mode):
                yield name, f"{_kind(mode)}, no ordinary file"
            else:
                yield name, reason


def _mode(path: Path) -> tuple[int, str | None]:
    """The mode of what a path leads to; or 0, and why there is none."""
    try:
        return path.stat().st_mode, None
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():
            return 0, f"a link to {str(path.readlink())!r}, which does not exist"
        return 0, f"cannot be read: {error.strerror}"


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "no file")


def _unreadable(path: Path) -> str | None:
    """Why an ordinary file cannot be opened; None if it can."""
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _named_in_utf8(path: Path) -> Path:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the file name {os.fsencode(path)!r} is not UTF-8, which its document and the workflow are named by: rename it"
        ) from error
    return path
