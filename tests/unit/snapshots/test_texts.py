"""Which texts of a folder are read, and that nothing else of it goes unsaid."""

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfrepair.snapshots.sources import source_files
from selfrepair.snapshots.texts import MAX_LINES, SUFFIXES, list_texts

pytestmark = pytest.mark.filterwarnings("error")


def _names(folder: Path, format: str | None = None) -> list[str]:
    listed = list_texts(folder, format)
    assert source_files(f"path:{folder}", format=format) == listed.files
    return [path.relative_to(folder).as_posix() for path in listed.files]


def test_a_config_beside_texts_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert _names(tmp_path) == ["a.txt"]
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("format", "suffix"), [(name, one) for name, ends in SUFFIXES.items() for one in ends])
def test_every_suffix_is_read_in_upper_and_lower_case(tmp_path: Path, format: str, suffix: str, upper: bool) -> None:
    name = f"a{suffix.upper() if upper else suffix}"
    (tmp_path / name).write_text("x")
    (tmp_path / "b.pdf").write_text("x")
    assert _names(tmp_path, format) == [name]
    assert list_texts(tmp_path / name, None).format == format
    if format in ("text", "jsonl"):
        assert list_texts(tmp_path, None).format == format
    else:
        with pytest.raises(ValueError, match=f"no .txt and no .jsonl file .but files of format {format}.: say format"):
            list_texts(tmp_path, None)


def test_texts_beside_those_of_the_given_format_are_named(tmp_path: Path) -> None:
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text("{}")
    assert _names(tmp_path, "text") == ["a.txt"]
    assert list_texts(tmp_path, "text").warnings() == ["left out: 'b.jsonl' (format text reads .txt)"]
    assert _names(tmp_path, "jsonl") == ["b.jsonl"]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user of the machine may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_everything_is_read_or_named(open_folder: Path) -> None:
    root = open_folder / "texts"
    elsewhere = open_folder / "elsewhere"
    for folder in (root / "inner", root / "closed", root / ".git", elsewhere / "deep"):
        folder.mkdir(parents=True)
    for path in ("a.txt", "B.TXT", "inner/c.txt", "closed/d.txt", ".git/e.txt", ".f.txt", "locked.txt", "notes.md"):
        (root / path).write_text("x")
    (elsewhere / "deep" / "g.txt").write_text("x")
    os.mkfifo(root / "pipe.txt")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "sock.txt"))
    (root / "zero.txt").symlink_to("/dev/zero")
    (root / "dangling.txt").symlink_to("nowhere")
    (root / "self.txt").symlink_to("self.txt")
    (root / "link.txt").symlink_to(elsewhere / "deep" / "g.txt")
    (root / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (elsewhere / "deep" / "up").symlink_to("..")
    (root / "again").symlink_to(root / "inner")
    (root / "locked.txt").chmod(0)
    (root / "closed").chmod(0)
    # Permissions do not bind the superuser.
    os.seteuid(65534 if os.geteuid() == 0 else os.geteuid())
    try:
        listed = list_texts(root, None)
    finally:
        os.seteuid(os.getuid())
        server.close()
        (root / "closed").chmod(0o755)
    names = [path.relative_to(root).as_posix() for path in listed.files]
    assert names == ["B.TXT", "a.txt", "inner/c.txt", "link.txt", "more/deep/g.txt"]
    assert {one.name: one.reason for one in listed.left_out} == {
        ".f.txt": "hidden",
        ".git": "hidden",
        "again": "a link to a folder that is read already",
        "closed": "a folder that cannot be read: Permission denied",
        "dangling.txt": "a link to 'nowhere', which does not exist",
        "locked.txt": "cannot be read: Permission denied",
        "more/back": "a link to a folder that is read already",
        "more/deep/up": "a link to a folder that is read already",
        "notes.md": "format text reads .txt",
        "pipe.txt": "a FIFO, no ordinary file",
        "self.txt": "cannot be read: Too many levels of symbolic links",
        "sock.txt": "a socket, no ordinary file",
        "zero.txt": "a device, no ordinary file",
    }
    lines = listed.warnings()
    assert len(lines) == len(listed.left_out)
    assert lines[-1] == "left out: 'notes.md' (format text reads .txt)"


def test_hundreds_of_others_are_counted_and_come_last(tmp_path: Path) -> None:
    for number in range(3 * MAX_LINES):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "zz.txt").symlink_to("nowhere")
    lines = list_texts(tmp_path, None).warnings()
    assert lines[0] == "left out: 'zz.txt' (a link to 'nowhere', which does not exist)"
    assert lines[-1] == f"left out: {2 * MAX_LINES + 1} more (format text reads .txt)"
    assert len(lines) == MAX_LINES + 1


@pytest.mark.parametrize("folder", [False, True])
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path, folder: bool) -> None:
    name = os.fsencode(tmp_path) + (b"/caf\xe9/a.txt" if folder else b"/caf\xe9.txt")
    path = Path(os.fsdecode(name))
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    for one in (tmp_path, path):
        with pytest.raises(ValueError, match=r"file name b'.*caf\\xe9.*' is not UTF-8.*rename it"):
            list_texts(one, None)
    path.rename(path.with_name("a.pdf"))
    (tmp_path / "a.txt").write_text("x")
    assert len(list_texts(tmp_path, None).warnings()) == 1


@pytest.mark.parametrize("name", ["a.txt", "a"])
def test_what_is_no_file_is_refused_unopened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    (tmp_path / "link.txt").symlink_to(tmp_path / name)
    for path in (tmp_path / name, tmp_path / "link.txt"):
        with pytest.raises(ValueError, match="is a FIFO: wanted a file or folder"):
            list_texts(path, "text")
    with pytest.raises(ValueError, match=r"holds no file ending in \.txt"):
        list_texts(tmp_path, "text")
    with pytest.raises(ValueError, match="/dev/zero is a device"):
        list_texts(Path("/dev/zero"), "text")
