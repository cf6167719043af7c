"""Files that are written whole or not at all, whoever else writes them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfrepair.files.sealed import write_whole

pytestmark = pytest.mark.filterwarnings("error")

WRITER = """
import sys, time
from pathlib import Path
from selfrepair.files.sealed import write_whole
path, letter = Path(sys.argv[1]), sys.argv[2]
with write_whole(path) as temporary:
    with temporary.open("w") as file:
        for part in range(20):
            file.write(letter * 1000)
            file.flush()
            time.sleep(0.02)
"""


def writer(path: Path, letter: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), letter])


def test_two_writers_of_one_file_each_write_all_of_it(tmp_path: Path) -> None:
    """As a job that was taken for dead, and the copy that was started in its place."""
    path = tmp_path / "shard.h5"
    writers = [writer(path, letter) for letter in "ab"]
    assert [process.wait() for process in writers] == [0, 0]
    assert path.read_text() in ("a" * 20_000, "b" * 20_000)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_has_left_goes_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "shard.h5"
    path.write_text("before")
    killed = writer(path, "a")
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    host = socket.gethostname()
    others = [
        tmp_path / f".shard.h5.{host}-{os.getppid()}.partial",  # runs
        tmp_path / f".shard.h5.another-machine-{killed.pid}.partial",  # may run there
        tmp_path / f".shard.h5.csv.{host}-{killed.pid}.partial",  # of another file
        tmp_path / ".shard.h5.partial",
    ]
    for other in others:
        other.touch()
    assert path.read_text() == "before"
    with write_whole(path) as temporary:
        temporary.write_text("after")
    assert path.read_text() == "after"
    assert sorted(tmp_path.iterdir()) == sorted([path, *others])


def write_half(path: Path) -> None:
    with write_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="midway"):
        write_half(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("table.csv", "before")]
