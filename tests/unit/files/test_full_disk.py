"""What is written to a disk that is too small: one line, nothing half there, and a process that lives."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.filterwarnings("error")

# A limit of a file's size stands for a full disk where none can be mounted: HDF5 meets both in the middle of a write.
WRITE = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np, pandas as pd
from matplotlib.figure import Figure
from selfrepair.figures.style.saving import save
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.sealed import write_json, write_text
from selfrepair.files.tables import write_table

folder, kind, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000 if kind == "figure.png" else 1_000_000, resource.RLIM_INFINITY))
path = folder / kind


def write():
    if kind == "ablations.h5":
        with write_hdf5(path, kind="ablations", provenance={"identity": "x"}) as file:
            file.dims(head=size, prompt=100)
            for name in "abc":
                file.put(name, ("head", "prompt"), np.random.default_rng(0).random((size, 100), np.float32))
    elif kind == "heads.parquet":
        write_table(pd.DataFrame({"value": np.random.default_rng(0).random(size * 100)}), path, {})
    elif kind == "chosen_heads.json":
        write_json(path, {"heads": "x" * size * 1000})
    elif kind == "findings.md":
        write_text(path, "x" * size * 1000)
    else:
        figure = Figure()
        figure.add_subplot().plot(np.random.default_rng(0).random(size * 30))
        save(figure, path, path.with_suffix(".svg"))


try:
    write()
except ValueError as error:
    print(error)
# The process goes on: the same again, with room.
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(sorted(os.listdir(folder)))
write()
print(sorted(os.listdir(folder)))
"""


@pytest.mark.parametrize("size", [1000, 2500, 3500, 7000, 100_000])
def test_hdf5(tmp_path: Path, size: int) -> None:
    """The error may come with a write, or when the file is closed, which crashed."""
    assert said(tmp_path, "ablations.h5", size) == ["ablations.h5"]


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        ("heads.parquet", ["heads.csv", "heads.parquet"]),
        ("chosen_heads.json", ["chosen_heads.json"]),
        ("findings.md", ["findings.md"]),
        ("figure.png", ["figure.png", "figure.svg"]),
    ],
)
def test_other_files(tmp_path: Path, kind: str, made: list[str]) -> None:
    assert said(tmp_path, kind, 2000) == made


def said(folder: Path, kind: str, size: int) -> list[str]:
    """Write a file that is too large, then with room.

    Returns:
        The files that are there in the end.
    """
    done = subprocess.run(
        [sys.executable, "-c", WRITE, str(folder), kind, str(size)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    error, left, made = done.stdout.splitlines()
    assert "cannot be written (File too large): the system allows no file of that size" in error
    assert [name for name in eval(left) if ".partial" in name] == []
    return eval(made)
