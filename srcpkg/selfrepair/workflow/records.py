"""Records of what jobs have made, beside results that carry none themselves: tables, figures, findings, snapshots.

HDF5 files hold how they were made (`selfrepair.files.hdf5.write_hdf5`). Of the others, a JSON file below results/provenance
says it, with the digest of each file that the job has made; so that one that is edited or removed later is not taken for what
was made, and a result whose code, config or inputs are others now is known without Snakemake's own notes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfrepair.files.hdf5_seal import read_attribute
from selfrepair.files.sealed import read_json, write_json
from selfrepair.snapshots.manifest import json_or_nothing

PROVENANCE = "provenance"
"""Folder of the records below results/."""
MANIFEST = "manifest.json"
DAMAGED = "its record is damaged"

Record = Mapping[str, Any]


def record_path(output: Path) -> Path:
    """Where the record of a job is, by the first file that it makes."""
    results = next((folder for folder in output.parents if folder.name == "results"), output.parent)
    return (results / PROVENANCE / output.relative_to(results)).with_suffix(".json")


def code_path(code: str) -> Path:
    """Where the digests of the modules lie that a digest of code is of."""
    return Path("results") / PROVENANCE / "code" / f"{code}.json"


def write_code(modules: Mapping[str, str], code: str) -> None:
    """Keep which modules a digest of code is of (`selfrepair.workflow.provenance.module_digests`)."""
    path = code_path(code)
    if not path.exists():
        write_json(path, {"modules": dict(modules)})


def read_code(code: str) -> dict[str, str]:
    """Digests of the modules that a digest of code is of, by path; empty where they were not kept."""
    return dict(json_or_nothing(code_path(code)).get("modules", {}))


def write_record(outputs: Iterable[Path], rule: str, provenance: Record, edited: str) -> None:
    """Write what a job has made; nothing where all that is HDF5.

    Args:
        outputs: Files that the job has made.
        rule: The job's rule.
        provenance: How (`selfrepair.workflow.provenance.describe`).
        edited: What `edited` gave when the job was asked for.
    """
    files = [file for output in outputs for file in _with_snapshot(output)]
    if all(file.suffix == ".h5" for file in files):
        return
    path = record_path(files[0])
    beside = {name: {**_state(file), "sha256": _sha256(file)} for file in files for name in [_name(file, files[0])]}
    write_json(path, {"rule": rule, **provenance, "edited": edited, "outputs": beside})


def read_record(output: Path) -> dict[str, Any]:
    """How a job has made what it made, by the first file; empty where nothing says it."""
    if output.suffix != ".h5":
        path = record_path(output)
        try:
            return read_json(path) if path.exists() else {}
        except ValueError:
            return {"edited": DAMAGED}
    try:
        return dict(json.loads(read_attribute(output, "provenance", "")))
    except ValueError:  # missing or damaged, as who reads it will say
        return {}


def changed_files(output: Path, record: Record, sure: bool = False) -> Iterator[str]:
    """Files of a job that are no longer as it has made them: what each is, missing or edited.

    Args:
        output: The first file that it has made.
        record: Its record (`read_record`).
        sure: Read every file; otherwise only those whose size or time is another than it was.
    """
    for name, made in record.get("outputs", {}).items():
        path = output.parent / name
        try:
            state = _state(path)
        except OSError:
            yield f"{name} is missing"
            continue
        if (sure or state != {key: made[key] for key in state}) and _sha256(path) != made["sha256"]:
            yield f"{name} was edited"


def edited(output: Path) -> str:
    """What has become of a job's files since: a param of its rule, so that Snakemake makes them again.

    Snakemake does not see that a file which nothing reads was edited or removed, nor files that it knows nothing of.

    Args:
        output: The first file that it has made.

    Returns:
        The same as when the job was asked for, while its files are as it has made them; another text when they are not.
    """
    record = read_record(output)
    try:
        found = ", ".join(changed_files(output, record))
    except (AttributeError, KeyError, TypeError, ValueError):  # another version's, or by hand
        found = DAMAGED
    # That of the last time, so that the same job need not run again once it has mended them.
    before = str(record.get("edited", ""))
    return before if not found else f"{found} again" if found == before else found


def _with_snapshot(output: Path) -> list[Path]:
    """A file; for a manifest, what it lists too."""
    if output.name != MANIFEST:
        return [output]
    return [output, *(output.parent / name for name in json_or_nothing(output)["files"])]


def _name(file: Path, first: Path) -> str:
    return file.relative_to(first.parent).as_posix()


def _state(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns}


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
