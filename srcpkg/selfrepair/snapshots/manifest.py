"""The manifest of a snapshot, and how its folder is written so that it is whole or has no manifest."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfrepair.sealed import read_json, refusal, write_json

SCHEMA_VERSION = 2
_PARTIAL = ".partial"
_REQUIRED = ("schema_version", "kind", "source", "license", "files")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def require_sha256(path: Path, expected: str | None, *, what: str) -> str:
    """The file's sha256, which must be the expected one where that is given.

    Args:
        path: The file.
        expected: Hexadecimal sha256, or None to check nothing.
        what: The file in the words of an error message.

    Raises:
        ValueError: If the file has another sha256.
    """
    found = sha256_of(path)
    if expected is not None and found != expected.lower():
        raise ValueError(
            f"{what} has sha256 {found}, the config wants {expected}: correct the config, or find out why it differs"
        )
    return found


@contextmanager
def staging(manifest: Path) -> Iterator[Path]:
    """An empty folder to fill, beside the manifest; `publish` makes its files the snapshot.

    An old manifest goes first and whatever an earlier run left goes with it, so that a failure leaves no manifest.

    Args:
        manifest: Path of the manifest; its folder belongs to the snapshot and must hold nothing else of value.

    Raises:
        ValueError: If the folder holds another folder, which no snapshot writes.
    """
    folder = manifest.parent
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name != _PARTIAL]
    if foreign:
        raise ValueError(
            f"{folder} holds the folder {foreign[0]!r}, which no snapshot writes: give the snapshot a folder of its own"
        )
    manifest.unlink(missing_ok=True)
    for entry in folder.iterdir():
        if not entry.is_dir():
            entry.unlink()
    partial = folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(manifest: Path, partial: Path, fields: Mapping[str, Any]) -> None:
    """Move the staged files beside the manifest and write the manifest, last and atomically.

    Args:
        manifest: Path of the manifest.
        partial: The staged folder, flat.
        fields: Everything but `schema_version` and `files`, which are added here.
    """
    files = {}
    for path in sorted(partial.iterdir()):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        path.chmod(0o644)
        files[path.name] = {"sha256": digest, "bytes": path.stat().st_size}
    for name in files:
        (partial / name).replace(manifest.parent / name)
    write_json(manifest, {"schema_version": SCHEMA_VERSION, "files": files, **dict(sorted(fields.items()))})


def read_manifest(path: Path, kind: str) -> dict[str, Any]:
    """A snapshot's manifest, after checking that every file it names is there with the recorded size (bytes).

    Args:
        path: Path of the manifest.
        kind: `model` or `corpus`.

    Raises:
        ValueError: If the manifest or a file is missing, of another schema or kind, or of another size.
    """
    remake = f"remake it with `snakemake --forcerun snapshot_{kind}`"
    manifest = read_json(path, remake)
    if not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{path}: not a manifest of a snapshot; {remake}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {manifest.get('schema_version')!r}, this package reads {SCHEMA_VERSION}; {remake}"
        )
    missing = [name for name in _REQUIRED if name not in manifest]
    if missing:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; {remake}")
    if manifest["kind"] != kind:
        raise ValueError(
            f"{path}: a {manifest['kind']} snapshot where a {kind} snapshot is wanted; check the config's paths"
        )
    for name, record in manifest["files"].items():
        file = path.parent / name
        if not file.is_file():
            raise ValueError(f"{file}: missing, but {path.name} names it; {remake}")
        if file.stat().st_size != record["bytes"]:
            raise ValueError(f"{file}: {file.stat().st_size} bytes, {path.name} records {record['bytes']}; {remake}")
    return manifest


def verify_manifest(path: Path, kind: str, weights: bool = True) -> dict[str, Any]:
    """As `read_manifest`, and the content of every file is held to its sha256, which reads them all.

    Args:
        path: Path of the manifest.
        kind: `model` or `corpus`.
        weights: Weights (safetensors) too, for a job that reads them.

    Raises:
        ValueError: As `read_manifest`, or if a file cannot be read or is not what was written.
    """
    manifest = read_manifest(path, kind)
    advice = f"remake it with `snakemake --forcerun snapshot_{kind}`"
    for name, record in manifest["files"].items():
        if name.endswith(".safetensors") and not weights:
            continue
        file = path.parent / name
        try:
            found = sha256_of(file)
        except OSError as error:
            raise refusal(file, error, advice=advice) from error
        if found != record["sha256"]:
            raise ValueError(f"{file}: sha256 {found}, {path.name} records {record['sha256']}: it is damaged; {advice}")
    return manifest
