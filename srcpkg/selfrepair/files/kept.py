"""Finished parts of a job, kept beside its result until that is whole: a job that is ended goes on from them.

They are a help, not a result. Each file of them is written as results are (`selfrepair.files.hdf5`) and says what it is of:
code, config, inputs, versions, device. One that is of anything else, or damaged, is removed unused. Where they cannot be
written the job goes on without.
"""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfrepair.files.hdf5 import open_hdf5, write_hdf5

logger = logging.getLogger(__name__)

KIND = "finished_layers"
SUFFIX = ".kept"
EVERY = 300.0
"""Seconds between two times that finished parts are written. What a job has computed since is lost where it is killed; where it
is told to end it writes that too. Shorter jobs write nothing."""

Arrays = Mapping[str, np.ndarray]
"""Of a batch of prompts, by name [head, prompt, ...]."""


def kept_beside(out: Path) -> Path:
    """The folder of a job's finished parts. Its name is hidden, and no file in it has a result's."""
    return out.with_name(f".{out.stem}{SUFFIX}")


@dataclass(frozen=True)
class _Part:
    """The heads of a layer on a batch of prompts.

    Attributes:
        prompts: First row of the batch in its shard, and the one after its last.
        layer: The layer.
        rows: Of its heads in ``arrays``.
        arrays: Of the batch, filled in these rows.
    """

    prompts: tuple[int, int]
    layer: int
    rows: np.ndarray
    arrays: Arrays


class Kept:
    """A job's finished parts. Made by `keep`."""

    def __init__(self, out: Path, job: Mapping[str, Any], every: float) -> None:
        self._out, self._folder, self._every = out, kept_beside(out), every
        self._job, self._text = job, json.dumps(job, sort_keys=True)
        self._before: dict[tuple[tuple[int, int], int], dict[str, np.ndarray]] = {}
        self._taken = 0
        self._waiting: list[_Part] = []
        self._written = time.monotonic()
        self._said = False
        # Whoever gives no identity does not say what the parts would be of.
        self._on = bool(job.get("identity"))
        if self._on:
            self._read()

    def batch(self, prompts: slice) -> "KeptBatch":
        """Those of a batch of prompts, rows of the shard."""
        return KeptBatch(self, (prompts.start, prompts.stop))

    def write(self) -> None:
        """Write what is finished and not written. An error of it is said once, and no error of the job."""
        self._written = time.monotonic()
        # Where another process has made the result meanwhile, nobody will ask for parts of it.
        if not self._on or self._out.exists():
            return
        try:
            while self._waiting:
                first = self._waiting[0]
                together = [part for part in self._waiting if part.prompts == first.prompts]
                self._write(together)
                self._waiting = self._waiting[len(together) :]
                last = together[-1].layer
                logger.info("kept: %d finished layers up to layer %d of %s", len(together), last, _named(first.prompts))
        except (ValueError, OSError) as error:
            if not self._said:
                logger.warning("finished layers cannot be kept, the job goes on without: %s", error)
            self._said = True

    def remove(self) -> None:
        """Remove all that was kept: the result is there, or the numbers are not to be trusted."""
        self._waiting, self._before = [], {}
        if self._on:
            shutil.rmtree(self._folder, ignore_errors=True)

    def take(self, prompts: tuple[int, int], layer: int) -> Arrays | None:
        """A part that an earlier attempt finished; it is forgotten here."""
        part = self._before.pop((prompts, layer), None)
        self._taken += part is not None
        if part is None and self._taken:
            said = "goes on with layer %d of %s: %d layers were kept by an earlier attempt"
            logger.info(said, layer, _named(prompts), self._taken)
            self._taken = 0
        return part

    def finished(self, prompts: tuple[int, int], layer: int, rows: np.ndarray, arrays: Arrays) -> None:
        """Be told of a finished part; write what waits where it is time."""
        self._waiting.append(_Part(prompts, layer, rows, arrays))
        if time.monotonic() - self._written >= self._every:
            self.write()

    def _write(self, parts: list[_Part]) -> None:
        """Write parts of one batch as a file: a name of its own, as a copy of the job may write at the same time."""
        arrays, rows = parts[0].arrays, np.concatenate([part.rows for part in parts])
        attrs = {"prompts": json.dumps(parts[0].prompts)}
        path = self._folder / f"{uuid.uuid4().hex}{SUFFIX}"
        with write_hdf5(path, kind=KIND, provenance=dict(self._job), attrs=attrs) as file:
            file.dims(row=len(rows))
            file.put("layer", ("row",), np.repeat([part.layer for part in parts], [len(part.rows) for part in parts]))
            for name, values in arrays.items():
                dims = {f"{name}_{axis}": size for axis, size in enumerate(values.shape[1:], 1)}
                file.dims(**dims)
                file.put(name, ("row", *dims), values[rows], chunk={"row": 1})

    def _read(self) -> None:
        unused = 0
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                self._before |= self._of_file(path)
            except (ValueError, KeyError):
                unused += 1
                with suppress(OSError):
                    path.unlink()
        if unused:
            said = (
                "%d files that an earlier attempt kept are of another job, or damaged: removed, nothing of them is used"
            )
            logger.warning(said, unused)

    def _of_file(self, path: Path) -> dict[tuple[tuple[int, int], int], dict[str, np.ndarray]]:
        with open_hdf5(path, KIND) as dataset:
            if dataset.attrs["provenance"] != self._text:
                raise ValueError("of another job")
            start, stop = json.loads(dataset.attrs["prompts"])
            found = {str(name): variable.values for name, variable in dataset.variables.items()}
        layers = found.pop("layer")
        return {
            ((start, stop), layer): {name: values[layers == layer] for name, values in found.items()}
            for layer in np.unique(layers).tolist()
        }


@dataclass(frozen=True)
class KeptBatch:
    """A job's finished parts of a batch of prompts (`selfrepair.engine.sweep.Keeper`).

    Attributes:
        kept: Of the job.
        prompts: First row of the batch in its shard, and the one after its last.
    """

    kept: Kept
    prompts: tuple[int, int]

    def take(self, layer: int) -> Arrays | None:
        """What an earlier attempt found of the heads of a layer; None where it did not finish them."""
        return self.kept.take(self.prompts, layer)

    def finished(self, layer: int, rows: np.ndarray, arrays: Arrays) -> None:
        """Be told that the heads of a layer are finished: rows of ``arrays``, which stay as they are from now on."""
        self.kept.finished(self.prompts, layer, rows, arrays)


def _named(prompts: tuple[int, int]) -> str:
    return f"prompts {prompts[0]} to {prompts[1] - 1} of the shard"


@contextmanager
def keep(out: Path, job: Mapping[str, Any], every: float = EVERY) -> Iterator[Kept]:
    """Keep a job's finished parts while the block makes its result; the block must end with the result whole.

    Args:
        out: The result's path.
        job: All that the parts depend on, JSON-like: the result's provenance and what that leaves out. Without an ``identity``
            nothing is kept.
        every: Seconds between two times that parts are written.
    """
    kept = Kept(out, job, every)
    try:
        yield kept
    except BaseException:  # SIGTERM and Ctrl-C too
        kept.write()
        raise
    kept.remove()
