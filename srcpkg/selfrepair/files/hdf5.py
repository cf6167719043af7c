"""Result files: HDF5 with named dimensions, whole or absent, that say what they are and how they were made.

A file is written under a temporary name in its own folder, flushed, synced and renamed, so a path that exists is whole. Every
bit of it is under a checksum: values under HDF5's fletcher32, checked where they are read; all else under a seal of our own
(`selfrepair.files.hdf5_seal`), checked before it is opened. Dimension scales give `xarray.open_dataset` its names.
"""

import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5netcdf
import h5py
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from selfrepair.files.hdf5_seal import add_seal, require_seal
from selfrepair.files.sealed import advice_for, refusal, write_whole, writing

SCHEMA_VERSION = 3
FORMAT = ("v110", "v110")
"""HDF5's library version bounds: the first whose chunk indexes have checksums."""
SMALL_CHUNK = 32_000
"""Bytes: of smaller chunks, finding each takes longer than reading it."""

_OWN = ("kind", "schema_version")
_NETCDF = ("CLASS", "DIMENSION_LIST", "NAME", "REFERENCE_LIST", "_NCProperties", "_Netcdf4Coordinates", "_Netcdf4Dimid")
"""Attributes that hold what netCDF makes of HDF5."""
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
"""What begins the name of a dimension that holds no values."""

T = TypeVar("T")


MADE_BY = {
    "tokens": "tokenize_corpus",
    "activations": "cache_activations",
    "thresholds": "find_thresholds",
    "mean_activations": "average_activations",
    "ablations": "ablate_heads",
    "frozen_layernorm": "freeze_layernorm",
    "neurons": "measure_neurons",
    "other_donor": "project_other_donor",
    "donor_noise": "measure_donor_noise",
    "reinforcement": "reinforce_heads",
    "moved_residual": "move_residual",
    "layer_ablations": "ablate_layers",
}
"""Kinds of files, each with the rule that makes it."""


class Slots:
    """A variable being written: assign to its slices."""

    def __init__(self, variable: Any, path: Path, needs: int) -> None:
        self._variable, self._path, self._needs = variable, path, needs

    def __setitem__(self, key: Any, values: Any) -> None:
        """Write values where ``key`` points."""
        with _writing(self._path, self._needs):
            self._variable[key] = values


class Writer:
    """A file being written. Made by `write_hdf5`."""

    def __init__(self, file: h5netcdf.File, path: Path) -> None:
        self._file, self._path = file, path
        self.held: list[h5py.Dataset] = []
        """Variables that are open: what HDF5 holds of one is written when it is closed, so they stay so to the end."""

    def attrs(self, **values: Any) -> None:
        """Write root attributes that are known at the end alone."""
        with _writing(self._path):
            for name, value in values.items():
                self._file.attrs[name] = _attribute(value)

    def dims(self, **sizes: int) -> None:
        """Declare dimensions and their sizes."""
        with _writing(self._path):
            self._file.dimensions.update(sizes)

    def variable(
        self,
        name: str,
        dims: Sequence[str],
        dtype: Any,
        *,
        chunk: dict[str, int] | None = None,
        compress: bool = False,
        units: str = "",
        description: str = "",
    ) -> Slots:
        """Declare a variable over declared dimensions; assign to slices of what is returned.

        Args:
            name: Its name.
            dims: Its dimensions' names.
            dtype: NumPy type.
            chunk: Length of a chunk along some dimensions, or more where that would be little (`SMALL_CHUNK`); the others are
                whole.
            compress: Keep it small: for what is the same nearly everywhere.
            units: Unit, "logits" for logits.
            description: One line for readers.
        """
        sizes = tuple(self._file.dimensions[dim].size for dim in dims)
        chunks = _chunks(dict(zip(dims, sizes, strict=True)), chunk or {}, np.dtype(dtype).itemsize)
        with _writing(self._path):
            variable = self._file.create_variable(
                name, tuple(dims), dtype, chunks=chunks, fletcher32=True, compression="gzip" if compress else None
            )
            variable.attrs["long_name"] = _attribute(description or name)
            variable.attrs["units"] = _attribute(units)
            self.held.append(self._file._h5file[name])
        return Slots(variable, self._path, _bytes(self.held))

    def put(
        self,
        name: str,
        dims: Sequence[str],
        values: np.ndarray,
        *,
        chunk: dict[str, int] | None = None,
        units: str = "",
        description: str = "",
    ) -> None:
        """Write a whole variable at once; the rest is as for `variable`."""
        self.variable(name, dims, values.dtype, chunk=chunk, units=units, description=description)[...] = values

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


def _chunks(sizes: dict[str, int], chunk: dict[str, int], itemsize: int) -> tuple[int, ...]:
    """Lengths of a chunk along each dimension: those asked for, grown from the last dimension on while it is small."""
    lengths = {dim: max(min(chunk.get(dim, size), size), 1) for dim, size in sizes.items()}
    for dim in reversed(lengths):
        times = -(-SMALL_CHUNK // (itemsize * math.prod(lengths.values())))
        lengths[dim] = max(min(times * lengths[dim], sizes[dim]), 1)
    return tuple(lengths.values())


@contextmanager
def write_hdf5(
    path: Path, *, kind: str, provenance: dict[str, Any], attrs: dict[str, Any] | None = None
) -> Iterator[Writer]:
    """Write a result file: it appears under ``path`` when the block ends well, and not at all otherwise.

    Args:
        path: Where it will be.
        kind: What it is ("tokens", "activations", ...), checked when it is opened.
        provenance: From `selfrepair.workflow.provenance.describe`.
        attrs: More root attributes.

    Raises:
        ValueError: The system refuses to write (no space, no permission, no locks): the file, the reason and the remedy.
    """
    with write_whole(path) as temporary:
        with writing(path):
            file = h5netcdf.File(temporary, "w", libver=FORMAT)
        writer = Writer(file, path)
        with _closed_well(file, file._h5file, path, writer.held):
            with _writing(path):
                described = {"schema_version": SCHEMA_VERSION, "kind": kind, "identity": provenance.get("identity", "")}
                described["provenance"] = json.dumps(provenance, sort_keys=True)
                for name, value in (described | (attrs or {})).items():
                    file.attrs[name] = _attribute(value)
            yield writer
        with writing(path):
            add_seal(temporary)


@contextmanager
def _writing(path: Path, needs: int = 0) -> Iterator[None]:
    """As `selfrepair.files.sealed.writing`, of what HDF5 writes: not all that it says of the system is an OSError.

    Args:
        path: The file that is made.
        needs: Bytes that are written, as far as they are known.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = getattr(error, "errno", None) or next(map(int, re.findall(r"errno = (\d+)", str(error))), None)
        found = OSError(number, str(error)) if number else _what_the_system_says(path) or OSError(str(error))
        raise refusal(path, found, "written", needs=needs) from error


def _bytes(variables: list[h5py.Dataset]) -> int:
    return sum(variable.nbytes for variable in variables)


def _what_the_system_says(path: Path) -> OSError | None:
    """What becomes of a plain write beside a file, where HDF5 does not tell why its own failed."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as handle:
            handle.write(bytes(1 << 20))
    except OSError as error:
        return error
    return None


@contextmanager
def _closed_well(file: Any, plain: h5py.File, path: Path, held: list[h5py.Dataset]) -> Iterator[None]:
    """Close a file at the end of the block; what HDF5 cannot write then must not take the process with it.

    HDF5 writes what it still holds when a file is closed, and once more when its objects go, where an error ends the process by
    a fault of memory. So a file that will be thrown away is turned to a place where writing succeeds.

    Args:
        file: As it was opened, by h5netcdf or h5py.
        plain: The same as h5py has it.
        path: The file that is made.
        held: Its variables that are open.
    """
    try:
        yield
        with _writing(path, _bytes(held)):
            file.flush()
            plain.flush()  # h5netcdf's own leaves values where they are
    except BaseException:
        with Path(os.devnull).open("r+b") as nowhere:
            os.dup2(nowhere.fileno(), plain.id.get_vfd_handle())
        with suppress(Exception):
            held.clear()
            plain.close()
        if file is not plain:
            file._closed = True  # or h5netcdf closes it once more, when it goes
        raise
    with _writing(path):
        held.clear()
        file.close()


@contextmanager
def open_hdf5(path: Path, kind: str) -> Iterator[xr.Dataset]:
    """Open a result file for reading; variables are read, and their checksums checked, where they are used.

    Args:
        path: The file.
        kind: What it must be.

    Yields:
        Its variables with their dimensions' names.

    Raises:
        ValueError: The file is missing, damaged (when it is opened, or when the damaged part is read), or of another kind or
            schema version; or the system refuses to read it, as where another program has locked it.
    """
    # The file, not the rule: that would remake every shard.
    advice = advice_for(path, MADE_BY.get(kind, ""))
    require_seal(path, advice)
    with _checked(path, advice, lambda: h5py.File(path, "r")) as plain:
        own = _checked(path, advice, lambda: {name: _text(plain, name) for name in plain.attrs if name in _OWN})
        got = (own.get("kind"), own.get("schema_version", 0))
        if got != (kind, SCHEMA_VERSION):
            raise ValueError(
                f"{path} holds {got[0]} of schema version {got[1]}; wanted {kind} of version {SCHEMA_VERSION}: {advice}"
            )
        header = _checked(path, advice, lambda: _Header.of(plain))
        lazy = {}
        for name, (dims, attrs) in header.variables.items():
            values = indexing.LazilyIndexedArray(_Values(plain[name], path, advice))
            lazy[name] = xr.Variable(dims, values, attrs)
        yield xr.Dataset(lazy, attrs=header.attrs)


def open_shards(paths: Sequence[Path], kind: str, *, n_prompts: int | None = None) -> Iterator[tuple[xr.Dataset, int]]:
    """Open the shards of a data set one after the other, and hold each to those before it.

    Args:
        paths: Files of one kind, in the order of their prompts.
        kind: What they must be.
        n_prompts: How many prompts they hold together; None where nothing says.

    Yields:
        Each file's dataset (`open_hdf5`), and the number of its first prompt.

    Raises:
        ValueError: A file that cannot be read, is out of its order, or has other heads, sizes or inputs than the first; or
            prompts that are missing at the end.
    """
    first, wanted, rule = 0, None, MADE_BY.get(kind, "")
    for path in paths:
        with open_hdf5(path, kind) as dataset:
            config = json.loads(dataset.attrs["provenance"]).get("config", {})
            at, after = config.get("prompts", (first, None))
            if at != first:
                raise ValueError(
                    f"{path} begins with prompt {at} where prompt {first} follows: name every shard of the run once, in order"
                )
            found = _common(dataset)
            if wanted is not None and found != wanted:
                other = next(name for name in {**wanted, **found} if found.get(name) != wanted.get(name))
                raise ValueError(
                    f"{path} and {paths[0]} are not of one run, as their {other} differ: {advice_for(path, rule)}, or name "
                    "the shards of one run"
                )
            wanted = found
            size = dataset.sizes["prompt"] if "prompt" in dataset.sizes else int(dataset.attrs["n_prompts"])
            if after not in (None, first + size):
                raise ValueError(f"{path} holds {size} prompts of {after - at}: {advice_for(path, rule)}")
            yield dataset, first
            first += size
    if n_prompts is not None and first != n_prompts:
        raise ValueError(
            f"{paths[0]} and the shards after it hold {first} prompts, the run {n_prompts}: name every shard of the run once"
        )


def heads_of(dataset: xr.Dataset) -> list[tuple[int, int]]:
    """The (layer, head) pairs of a file that holds some heads, in its order."""
    return list(zip(dataset["layer"].values.tolist(), dataset["head_index"].values.tolist(), strict=True))


def same_heads(path: Path, dataset: xr.Dataset, heads: Sequence[tuple[int, int]], whose: Path) -> None:
    """Check that a file holds the heads of another, in the same order, before rows of the two are joined.

    Raises:
        ValueError: Other heads, with both files.
    """
    if (got := heads_of(dataset)) != list(heads):
        raise ValueError(
            f"{path} holds the heads {_few(got)}, {whose} names {_few(heads)}: {advice_for(path)}, or remake {whose}"
        )


def rows_of(heads: Sequence[tuple[int, int]], whose: Path, dataset: xr.Dataset, path: Path) -> list[int]:
    """Where heads stand in a file that holds some heads.

    Args:
        heads: The (layer, head) pairs.
        whose: The file that names them.
        dataset: What the file holds.
        path: The file.

    Raises:
        ValueError: Heads that the file lacks, with both files.
    """
    held = {pair: row for row, pair in enumerate(heads_of(dataset))}
    missing = [pair for pair in heads if pair not in held]
    if missing:
        raise ValueError(
            f"{path} lacks heads {missing}, which {whose} names: name them under ablations.*.heads, or name others in "
            "analyses.heads"
        )
    return [held[pair] for pair in heads]


def _few(heads: Sequence[tuple[int, int]]) -> str:
    shown = ", ".join(f"{layer}.{head}" for layer, head in heads[:6])
    return f"{shown}{', ...' if len(heads) > 6 else ''} ({len(heads)})"


def _common(dataset: xr.Dataset) -> dict[str, Any]:
    """What all shards of a run share: heads, sizes but prompts', and the identities of inputs that are no shards."""
    provenance = json.loads(dataset.attrs["provenance"])
    config = {name: value for name, value in provenance.get("config", {}).items() if name != "prompts"}
    inputs = {name: of for name, of in provenance.get("upstream", {}).items() if not Path(name).stem.isdigit()}
    return {
        "heads": heads_of(dataset) if "head_index" in dataset else None,
        "sizes": {name: size for name, size in dataset.sizes.items() if name not in ("prompt", "token")},
        "settings": config,
        "inputs": inputs,
    }


class _Values(BackendArray):
    """A variable's values, read where they are used; an error of reading names the file."""

    def __init__(self, variable: Any, path: Path, advice: str) -> None:
        self.shape, self.dtype = variable.shape, variable.dtype
        self._variable, self._path, self._advice = variable, path, advice

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER_1VECTOR, self._read)

    def _read(self, key: Any) -> np.ndarray:
        return _checked(self._path, self._advice, lambda: self._variable[key])


def _checked(path: Path, advice: str, read: Callable[[], T], fault: str = "is damaged") -> T:
    """What HDF5 reads. Whatever it or its wrappers raise, of a file that we wrote, is the file's fault or the system's."""
    try:
        return read()
    except MemoryError:
        raise
    except OSError as error:
        raise refusal(path, error, advice=advice, fault=fault) from error
    except Exception as error:
        raise ValueError(f"{path} {fault} ({type(error).__name__}: {error}): {advice}") from error


def _attribute(value: Any) -> Any:
    """Text of fixed length lies in a header, under its checksum; HDF5 keeps other text in a heap that has none."""
    if not isinstance(value, str):
        return value
    data = value.encode()
    return np.array(data, dtype=h5py.string_dtype("utf-8", max(len(data), 2)))


def _text(file: h5py.File, name: str) -> Any:
    """A root attribute, text as text and a single number as a number."""
    value = file.attrs[name]
    return value.decode() if isinstance(value, bytes) else np.asarray(value).item()


@dataclass(frozen=True)
class _Header:
    """All that a file holds but its values.

    Read by h5py alone: through h5netcdf it takes several times as long, which is most of what a job of a thousand shards does.

    Attributes:
        variables: By name, the dimensions' names and the attributes.
        attrs: The file's own attributes.
    """

    variables: dict[str, tuple[list[str], dict[str, Any]]]
    attrs: dict[str, Any]

    @classmethod
    def of(cls, file: h5py.File) -> "_Header":
        """The header of an open file."""
        variables = {}
        for name, values in file.items():
            dims = [name]
            if values.is_scale:
                if values.attrs["NAME"].startswith(_NO_VARIABLE):
                    continue
            else:
                scales = values.attrs.get("DIMENSION_LIST", [])
                dims = [h5py.h5r.get_name(scale[0], file.id).decode().removeprefix("/") for scale in scales]
            variables[name] = (dims, _attributes(values))
        return cls(variables, _attributes(file))


def _attributes(of: h5py.File | h5py.Dataset) -> dict[str, Any]:
    """Attributes of a file or a variable: text as text, one number as a number; netCDF's own left out."""
    found: dict[str, Any] = {}
    for name in of.attrs:
        if name in _NETCDF:
            continue
        value = of.attrs[name]
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, np.ndarray) and value.shape == (1,):
            value = value[0]
        found[name] = value
    return found
