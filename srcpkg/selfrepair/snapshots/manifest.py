"""The manifest of a snapshot, and how its folder is written so that it is whole or has no manifest."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfrepair.files.sealed import read_json, refusal, write_json

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
OWNED = "snapshot_files.json"
"""Names of a snapshot's files, in its folder: they are the snapshot's also when Snakemake has removed the manifest."""
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


def refuse_overlap(source: Path, manifest: Path, *, below: bool) -> None:
    """Refuse a source of the user that lies in a snapshot's folder, or holds the one to be written.

    Args:
        source: The user's file or folder.
        manifest: Of the snapshot to be written.
        below: Whether a folder is read with everything below it.

    Raises:
        ValueError: If one lies in the other.
    """
    folder = Path(os.path.realpath(manifest.parent))
    real = Path(os.path.realpath(source))
    # Snapshots lie side by side; a copy of one that is kept elsewhere is as good a source as any.
    if any(
        _same(one, folder) or (_names_of_ours(one) and folder.parents[1] in one.parents)
        for one in (real, *real.parents)
    ):
        raise ValueError(
            f"source {source} lies in the folder of a snapshot, which is replaced when that is taken again: "
            "move it elsewhere, or name what the snapshot was taken from"
        )
    if below and any(_same(real, one) for one in folder.parents):
        raise ValueError(
            f"source {source} holds {manifest.parent}, where its own snapshot goes: give the texts a folder of their own"
        )


@contextmanager
def staging(manifest: Path) -> Iterator[Path]:
    """An empty folder to fill, beside the manifest's folder; `publish` puts it in that folder's place.

    Until then an old snapshot stays as it is, manifest and all. That it does not pass for a new one is Snakemake's part: it
    removes the declared output, which is the manifest, before the job, and what a job that fails has written.

    Args:
        manifest: Path of the manifest; its folder belongs to the snapshot.

    Raises:
        ValueError: If the manifest's folder holds what no snapshot of ours has written, or is a link.
    """
    folder = manifest.parent
    refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial, old = _beside(folder, "partial"), _beside(folder, "old")
    # Left by a run that was killed; the old snapshot only, if it is still ours alone.
    _remove(old)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(manifest: Path, partial: Path, fields: Mapping[str, Any]) -> None:
    """Write the manifest into the staged folder and put this in place of the manifest's folder, whole.

    Whoever looks sees the old snapshot, or none for a moment, or the new one, also after a kill.

    Args:
        manifest: Path of the manifest.
        partial: The staged folder, flat.
        fields: Everything but `schema_version` and `files`, which are added here.

    Raises:
        ValueError: If the manifest's folder holds what no snapshot of ours has written.
    """
    names = sorted(path.name for path in partial.iterdir())
    write_json(partial / OWNED, {"files": names})
    files = {}
    for name in [*names, OWNED]:
        path = partial / name
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
            os.fsync(handle.fileno())
        path.chmod(0o644)
        files[name] = {"sha256": digest, "bytes": path.stat().st_size}
    write_json(
        partial / manifest.name, {"schema_version": SCHEMA_VERSION, "files": files, **dict(sorted(fields.items()))}
    )
    folder = manifest.parent
    refuse_foreign(folder)
    old = _beside(folder, "old")
    if folder.is_dir() and any(folder.iterdir()):
        folder.rename(old)
    partial.rename(folder)
    _remove(old)


def refuse_place(folder: Path) -> None:
    """Refuse a snapshot's folder that is a link to another place, or that holds another program's manifest.

    Raises:
        ValueError: With what is there; nothing is removed.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to {folder.readlink()}, but a snapshot's folder is replaced when the snapshot is taken: "
            "remove the link (a link in place of the whole results folder is fine)"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder, but a snapshot goes there: move it elsewhere")
    if MANIFEST in _foreign(folder):
        raise ValueError(f"{folder / MANIFEST} is no snapshot's, but a snapshot goes there: move the folder elsewhere")


def refuse_foreign(folder: Path) -> None:
    """As `refuse_place`, and refuse a folder that holds anything but the files of a snapshot.

    Raises:
        ValueError: With what it holds; nothing is removed.
    """
    refuse_place(folder)
    foreign = _foreign(folder)
    if foreign:
        more = f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise ValueError(
            f"{folder} holds {', '.join(map(repr, foreign[:5]))}{more}, which no snapshot is known to have written: move it "
            "elsewhere (if it is left from an earlier version of this package, delete it) and run again"
        )


def _foreign(folder: Path) -> list[str]:
    """Entries of a folder that are not a snapshot's; a snapshot holds ordinary files alone."""
    if not folder.is_dir():
        return []
    ours = _names_of_ours(folder)
    return sorted(
        entry.name for entry in folder.iterdir() if entry.name not in ours or entry.is_symlink() or not entry.is_file()
    )


def _names_of_ours(folder: Path) -> set[str]:
    """Names that a snapshot has written in a folder, by its manifest or, where that is gone, by its own list."""
    names = set()
    manifest = json_or_nothing(folder / MANIFEST)
    if manifest.get("kind") in ("model", "corpus") and isinstance(manifest.get("files"), dict):
        names |= {MANIFEST, *manifest["files"]}
    owned = json_or_nothing(folder / OWNED).get("files")
    if isinstance(owned, list):
        names |= {MANIFEST, OWNED, *map(str, owned)}
    return names


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one place, however their names are written."""
    return one.exists() and other.exists() and one.samefile(other)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _remove(old: Path) -> None:
    """Remove an old snapshot's folder, its list last, so that one which is removed in part is still known as ours."""
    if not old.is_dir() or old.is_symlink():
        return
    refuse_foreign(old)
    for entry in sorted(old.iterdir(), key=lambda entry: entry.name == OWNED):
        entry.unlink()
    old.rmdir()


def json_or_nothing(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none, or another thing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


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
