"""Results of two runs, compared to the bit."""

from collections.abc import Iterator
from pathlib import Path

import h5py

KINDS = (".h5", ".parquet", ".csv", ".svg", ".png", ".md", ".json", ".jsonl", ".safetensors")


def results(folder: Path) -> dict[str, Path]:
    """Files of results by name; not records, which say when a file was written, and not times of jobs."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in KINDS and path.is_file() and not {"provenance", "benchmarks"} & set(path.parts)
    }


def differences(got: Path, wanted: Path) -> Iterator[str]:
    """Names of results that only one of two folders has, or that are not the same in both.

    HDF5 files are compared by what they hold: where in the file it lies may differ.
    """
    here, there = results(got), results(wanted)
    for name in sorted(here.keys() | there.keys()):
        if name not in here or name not in there:
            yield f"{name} is in one alone"
        elif not (_same_hdf5 if name.endswith(".h5") else _same_bytes)(here[name], there[name]):
            yield name


def _same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _same_hdf5(one: Path, other: Path) -> bool:
    with h5py.File(one) as got, h5py.File(other) as wanted:
        return (
            set(got) == set(wanted)
            and all(got[name][...].tobytes() == wanted[name][...].tobytes() for name in wanted)
            and got.attrs["provenance"] == wanted.attrs["provenance"]
        )
