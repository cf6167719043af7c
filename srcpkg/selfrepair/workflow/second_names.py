"""A second name for a result that takes hours, until Snakemake has noted its job as finished.

Snakemake removes what a job has made that fails, though it be whole: where a time limit strikes while it still winds up around
the job, and in a group of jobs the results of all where one fails. A hard link costs neither space nor a file, and from it the
job's next attempt has its result at once. When Snakemake has noted the job the link goes, so that a result that is asked for
once more is computed.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

RUNNING = Path(".snakemake/selfrepair.running")
"""While it is there, a run goes on, or has died before Snakemake wrote down what its last jobs had made."""


def second_name(out: Path) -> Path:
    """The second name of a result: hidden, and of no result's form."""
    return out.with_name(f".{out.stem}.whole")


@contextmanager
def two_names(out: Path, kind: str, provenance: Mapping[str, Any]) -> Iterator[bool]:
    """Give a job's result its second name when the block ends, however it ends, if the result is there: then it is whole.

    Args:
        out: The result's path; Snakemake has removed what was there.
        kind: Of the result, as `selfrepair.files.hdf5.open_hdf5` knows it.
        provenance: From `selfrepair.workflow.jobs.job`.

    Yields:
        Whether an earlier attempt had finished the very same, so that the result is back and there is nothing to compute.
    """
    try:
        yield _taken_back(out, kind, provenance)
    finally:
        # Where no run says that it goes on, nothing would take the second name away at its end.
        if RUNNING.exists() and out.exists():
            # Some filesystems have no hard links: there the job starts over.
            with suppress(OSError):
                second_name(out).unlink(missing_ok=True)
                second_name(out).hardlink_to(out)


def _taken_back(out: Path, kind: str, provenance: Mapping[str, Any]) -> bool:
    """Put what an earlier attempt has finished in the result's place, if it is of the same job and undamaged."""
    second = second_name(out)
    if not second.exists():
        return False
    from selfrepair.files.hdf5 import open_hdf5  # late: Snakemake reads the workflow faster without it

    try:
        with open_hdf5(second, kind) as dataset:
            if dataset.attrs["provenance"] != json.dumps(provenance, sort_keys=True):
                raise ValueError("of another job")
            for variable in dataset.variables.values():
                variable.to_numpy()  # their checksums are checked where they are read
    except (ValueError, KeyError):
        logger.warning("what an earlier attempt finished is of another job, or damaged: removed, nothing of it is used")
        second.unlink(missing_ok=True)
        return False
    # Newer than its inputs, as if it had been made now.
    os.utime(second)
    second.replace(out)
    logger.info("taken back whole: an earlier attempt had finished it, and nothing is computed")
    return True
