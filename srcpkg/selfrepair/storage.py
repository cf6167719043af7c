"""Result files: HDF5 with named dimensions, whole or absent, that say what they are and how they were made.

A file is written under a temporary name in its own folder, flushed, synced and renamed, so a path that exists is whole. Every
variable carries fletcher32 checksums, checked by HDF5 when it is read; dimension scales give `xarray.open_dataset` its names.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

SCHEMA_VERSION = 1


class Writer:
    """A file being written. Made by `write_hdf5`."""

    def __init__(self, file: h5netcdf.File) -> None:
        self._file = file

    def attrs(self, **values: Any) -> None:
        """Write root attributes that are known at the end alone."""
        for name, value in values.items():
            self._file.attrs[name] = value

    def dims(self, **sizes: int) -> None:
        """Declare dimensions and their sizes."""
        self._file.dimensions.update(sizes)

    def variable(
        self,
        name: str,
        dims: Sequence[str],
        dtype: Any,
        *,
        chunk: dict[str, int] | None = None,
        units: str = "",
        description: str = "",
    ) -> Any:
        """Declare a variable over declared dimensions; assign to slices of what is returned.

        Args:
            name: Its name.
            dims: Its dimensions' names.
            dtype: NumPy type.
            chunk: Length of a chunk along some dimensions; the others are whole.
            units: Unit, "logits" for logits.
            description: One line for readers.
        """
        sizes = tuple(self._file.dimensions[dim].size for dim in dims)
        chunks = tuple(max(min((chunk or {}).get(dim, size), size), 1) for dim, size in zip(dims, sizes, strict=True))
        variable = self._file.create_variable(name, tuple(dims), dtype, chunks=chunks, fletcher32=True)
        variable.attrs["long_name"] = description or name
        variable.attrs["units"] = units
        return variable

    def put(
        self, name: str, dims: Sequence[str], values: np.ndarray, *, units: str = "", description: str = ""
    ) -> None:
        """Write a whole variable at once."""
        self.variable(name, dims, values.dtype, units=units, description=description)[...] = values

    def put_dataset(self, dataset: xr.Dataset, chunk: dict[str, int] | None = None) -> None:
        """Write every variable and coordinate of a dataset."""
        self.dims(**{str(name): size for name, size in dataset.sizes.items() if name not in self._file.dimensions})
        for name, array in dataset.variables.items():
            attrs = array.attrs
            variable = self.variable(
                str(name),
                [str(dim) for dim in array.dims],
                array.dtype,
                chunk=chunk,
                units=attrs.get("units", ""),
                description=attrs.get("description", ""),
            )
            variable[...] = array.values


@contextmanager
def write_hdf5(
    path: Path, *, kind: str, provenance: dict[str, Any], attrs: dict[str, Any] | None = None
) -> Iterator[Writer]:
    """Write a result file: it appears under ``path`` when the block ends well, and not at all otherwise.

    Args:
        path: Where it will be.
        kind: What it is ("tokens", "activations", ...), checked when it is opened.
        provenance: From `selfrepair.provenance.describe`.
        attrs: More root attributes.
    """
    temporary = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with h5netcdf.File(temporary, "w") as file:
            file.attrs["schema_version"] = SCHEMA_VERSION
            file.attrs["kind"] = kind
            file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
            for name, value in (attrs or {}).items():
                file.attrs[name] = value
            yield Writer(file)
            file.flush()
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_hdf5(path: Path, kind: str, *, remake: str) -> Iterator[xr.Dataset]:
    """Open a result file for reading; variables are read, and their checksums checked, where they are used.

    Args:
        path: The file.
        kind: What it must be.
        remake: The rule that makes it, for the error message.

    Yields:
        Its variables with their dimensions' names.

    Raises:
        ValueError: The file is missing, damaged, or of another kind or schema version.
    """
    # The file, not the rule: that would remake every shard.
    advice = f"remake it ({remake}) with `snakemake --forcerun {path}`"
    try:
        dataset = xr.open_dataset(path, engine="h5netcdf", decode_cf=False, phony_dims="sort")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist: {advice}") from error
    except OSError as error:
        raise ValueError(f"{path} is not a whole HDF5 file ({error}): {advice}") from error
    with dataset:
        got = (dataset.attrs.get("kind"), int(dataset.attrs.get("schema_version", 0)))
        if got != (kind, SCHEMA_VERSION):
            raise ValueError(
                f"{path} holds {got[0]} of schema version {got[1]}; wanted {kind} of version {SCHEMA_VERSION}: {advice}"
            )
        try:
            yield dataset
        except OSError as error:
            raise ValueError(f"{path} is damaged ({error}): {advice}") from error
