"""What checking files costs: one like a shard's activations, written and read with and without it, in processor seconds.

python benchmarks/checksums.py
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5netcdf
import numpy as np
import xarray as xr

from selfrepair.files.hdf5 import open_hdf5, write_hdf5

LAYERS, PROMPTS, LENGTH, HEADS, D_HEAD = 30, 8, 128, 9, 64
SIZES = {"layer": LAYERS, "prompt": PROMPTS, "pos": LENGTH, "d_model": HEADS * D_HEAD, "head": HEADS, "d_head": D_HEAD}
VARIABLES = {"resid_pre": ("layer", "prompt", "pos", "d_model"), "z": ("layer", "prompt", "pos", "head", "d_head")}


def plain(file: Path, values: dict[str, np.ndarray]) -> None:
    """Write without any checksum."""
    with h5netcdf.File(file, "w") as written:
        written.dimensions.update(SIZES)
        for name, dims in VARIABLES.items():
            chunks = (1, 1, *values[name].shape[2:])
            written.create_variable(name, dims, values[name].dtype, chunks=chunks)[...] = values[name]


def checked(file: Path, values: dict[str, np.ndarray]) -> None:
    """Write as the workflow does."""
    with write_hdf5(file, kind="activations", provenance={}) as written:
        written.dims(**SIZES)
        for name, dims in VARIABLES.items():
            variable = written.variable(name, dims, values[name].dtype, chunk={"layer": 1, "prompt": 1})
            variable[...] = values[name]


def read(dataset: xr.Dataset) -> None:
    """Read a layer at a time, as ablations do."""
    for layer in range(LAYERS):
        for name in VARIABLES:
            dataset[name][layer].to_numpy()


def read_plain(file: Path) -> None:
    """Read by xarray alone."""
    with xr.open_dataset(file, engine="h5netcdf", decode_cf=False) as dataset:
        read(dataset)


def read_checked(file: Path, values: bool = True) -> None:
    """Read as the workflow does; without values, what opening alone checks."""
    with open_hdf5(file, "activations") as dataset:
        if values:
            read(dataset)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Least processor time of a few runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def digest(file: Path) -> str:
    """SHA-256 of a whole file, as of a snapshot's weights."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=[SIZES[dim] for dim in dims]).astype(np.float32) for name, dims in VARIABLES.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "activations.h5"
        rows = {"written plainly": lambda: plain(file, values), "read plainly": lambda: read_plain(file)}
        rows |= {"written": lambda: checked(file, values), "read": lambda: read_checked(file)}
        rows |= {"opened": lambda: read_checked(file, values=False), "its SHA-256": lambda: digest(file)}
        found = {name: seconds(work) for name, work in rows.items()}
        print(f"{file.stat().st_size / 1e6:.0f} MB", *(f"{name}: {found[name]:.2f} s" for name in found), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
