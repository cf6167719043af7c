"""The shards of a run as one data set, read where it is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from selfrepair.files.hdf5 import open_hdf5, open_shards


@dataclass(frozen=True)
class _Part:
    """A shard: its file, and what it holds of the whole."""

    path: Path
    start: int
    stop: int


def join_shards(paths: Sequence[Path], kind: str, n_prompts: int) -> xr.Dataset:
    """Shards of one run as one data set; values are read, and their checksums checked, where they are used.

    No file stays open.

    Args:
        paths: Every shard of the run, in the order of their prompts.
        kind: What they hold (`selfrepair.files.hdf5.MADE_BY`).
        n_prompts: Prompts that they hold together.

    Returns:
        Their variables joined along ``prompt``, or along ``token`` where a file lists tokens; there ``prompt`` counts from the
        run's first prompt. What has neither dimension is that of the first shard, where it is the same in all (heads, for one),
        and left out otherwise.

    Raises:
        ValueError: A file that is missing, damaged, not of one run with the others, or out of its order; or one that says why
            nothing was measured, as of neurons of a mixture of experts.
    """
    parts: list[_Part] = []
    offsets = list[np.ndarray]()
    dims: dict[str, tuple[tuple[str, ...], tuple[int, ...], np.dtype, dict[str, Any]]] = {}
    whole: dict[str, xr.Variable] = {}
    along, attrs = "prompt", dict[Any, Any]()
    for path, (dataset, first) in zip(paths, open_shards(paths, kind, n_prompts=n_prompts), strict=True):
        if "note" in dataset.attrs and "prompt" not in dataset.variables and "prompt" not in dataset.sizes:
            raise ValueError(f"{path} holds no measurement: {dataset.attrs['note']}")
        along = "token" if "token" in dataset.sizes else "prompt"
        start = parts[-1].stop if parts else 0
        parts.append(_Part(path, start, start + dataset.sizes[along]))
        if along == "token":
            offsets.append(first + dataset["prompt"].values)
        alone = {str(name): of.load() for name, of in dataset.variables.items() if along not in of.dims}
        if not attrs:
            attrs, whole = _settings(dataset.attrs), alone
            joined_here = {str(name): of for name, of in dataset.variables.items() if along in of.dims}
            for name, of in joined_here.items():
                dims[name] = (tuple(map(str, of.dims)), of.shape, of.dtype, dict(of.attrs))
        whole = {name: of for name, of in whole.items() if of.identical(alone.get(name))}
    joined = {
        name: xr.Variable(of, indexing.LazilyIndexedArray(_Joined(parts, kind, name, along, of, shape, dtype)), text)
        for name, (of, shape, dtype, text) in dims.items()
    }
    if offsets:
        text = {**dims["prompt"][3], "long_name": "prompt, counted from the run's first"}
        joined["prompt"] = xr.Variable((along,), np.concatenate(offsets), text)
    found = xr.Dataset({**joined, **whole}, attrs=attrs)
    return found.set_coords([name for name in ("layer", "head_index") if name in found])


def _settings(attrs: dict[Any, Any]) -> dict[Any, Any]:
    """Attributes of a shard that hold for all: not its own provenance and proof."""
    own = ("identity", "provenance", "coordinates", "n_prompts")
    return {name: value for name, value in attrs.items() if name not in own and not str(name).startswith("proof_")}


class _Joined(BackendArray):
    """A variable over all shards: each access opens those that it reads."""

    def __init__(
        self,
        parts: Sequence[_Part],
        kind: str,
        name: str,
        along: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        self._parts, self._kind, self._name, self._along, self._dims = parts, kind, name, along, dims
        self.shape = tuple(parts[-1].stop if dim == along else size for dim, size in zip(dims, shape, strict=True))
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        where = dict(zip(self._dims, key, strict=True))
        one = np.ndim(asked := where.pop(self._along)) == 0 and not isinstance(asked, slice)
        places = np.atleast_1d(np.arange(self._parts[-1].stop)[asked])
        part_of = np.searchsorted([part.stop for part in self._parts], places, side="right")
        order = np.argsort(part_of, kind="stable")
        kept = [dim for dim in self._dims if dim == self._along or not _is_number(where[dim])]
        axis = kept.index(self._along)
        pieces = []
        for number in np.unique(part_of):
            part = self._parts[number]
            local = places[order][part_of[order] == number] - part.start
            with open_hdf5(part.path, self._kind) as dataset:
                values = dataset[self._name].variable.isel({**where, self._along: local}).values
            pieces.append(values)
        if not pieces:
            sizes = [len(np.arange(self.shape[at])[key[at]]) for at, dim in enumerate(self._dims) if dim in kept]
            return np.empty([0 if at == axis else size for at, size in enumerate(sizes)], self.dtype)
        found = np.take(np.concatenate(pieces, axis), np.argsort(order, kind="stable"), axis)
        return np.asarray(found.take(0, axis)) if one else found


def _is_number(key: Any) -> bool:
    return not isinstance(key, slice) and np.ndim(key) == 0
