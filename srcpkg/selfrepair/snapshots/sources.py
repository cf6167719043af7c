"""What a snapshot is taken from: `package:`, `hub:` and `path:` sources, and the user's files that they read."""

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfrepair.snapshots.names import model_file_names, named_shards
from selfrepair.snapshots.texts import list_texts

_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_FORMS = (
    "package:NAME==VERSION (a distribution on the package index), hub:OWNER/NAME@COMMIT (a Hugging Face repository), "
    "path:FOLDER_OR_FILE (on this machine)"
)


@dataclass(frozen=True)
class Source:
    """Where a snapshot comes from.

    Attributes:
        scheme: `package`, `hub` or `path`.
        name: Distribution, repository, or path, without what changes nothing in it.
        version: Pinned version of a distribution, else None.
        revision: Pinned commit of a repository, else None.
    """

    scheme: str
    name: str
    version: str | None = None
    revision: str | None = None

    @property
    def path(self) -> Path:
        """The path of a `path:` source, `~` expanded; a relative one is relative to the working directory."""
        return Path(self.name).expanduser()

    def __str__(self) -> str:
        """The source as the config may write it."""
        pin = f"=={self.version}" if self.version else f"@{self.revision}" if self.revision else ""
        return f"{self.scheme}:{self.name}{pin}"


def parse_source(text: str) -> Source:
    """The source that `text` names.

    Args:
        text: `package:name==version`, `hub:owner/name@commit` or `path:folder`.

    Raises:
        ValueError: If the scheme is unknown, or the version or commit is not pinned exactly.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "package":
        match = _PACKAGE.fullmatch(rest)
        if match is None:
            raise ValueError(
                f"source {text!r}: wanted package:NAME==VERSION with an exact version, e.g. package:gensim==4.4.0"
            )
        return Source(scheme, match["name"], version=match["version"])
    if scheme == "hub":
        name, _, revision = rest.partition("@")
        if _REPOSITORY.fullmatch(name) is None:
            raise ValueError(f"source {text!r}: {name!r} is no repository name; wanted hub:OWNER/NAME@COMMIT")
        if _COMMIT.fullmatch(revision) is None:
            got = f"revision {revision!r} is not a full commit hash" if revision else "no revision is given"
            raise ValueError(
                f"source {text!r}: {got}; branches and tags move, so wanted 40 hexadecimal digits after @ "
                "(the repository's history on the hub lists them)"
            )
        return Source(scheme, name, revision=revision)
    if scheme == "path":
        if not rest:
            raise ValueError(f"source {text!r}: no path is given; wanted path:FOLDER_OR_FILE")
        # So that `path:./model/` is `path:model`, for which nothing is made again.
        return Source(scheme, os.path.normpath(rest))
    raise ValueError(f"source {text!r}: unknown scheme {scheme!r}; wanted one of {_FORMS}")


def sources_of(settings: Mapping[str, Any]) -> list[Source]:
    """What a model or corpus of the config is taken from: its `source`, or those of its `parts`, in their order.

    Raises:
        ValueError: As `parse_source`.
    """
    return [parse_source(part["source"]) for part in settings.get("parts", [settings])]


def joined_name(sources: Collection[Source]) -> str:
    """How a manifest and errors call the sources of one model or corpus."""
    return " + ".join(map(str, sources))


def source_files(source: str, kind: str = "corpus", *, format: str | None = None) -> list[Path]:
    """The user's files that a snapshot of `source` reads: none but for `path:`.

    A path that does not exist is returned as it is, so that a workflow reports it as a missing input.

    Args:
        source: As for `parse_source`.
        kind: What is read there: `model` or `corpus`.
        format: For a corpus, the format that the config gives, if any.

    Raises:
        ValueError: If the source cannot be parsed, a corpus's folder holds nothing to read or no format follows, or a name
            cannot be watched.
    """
    if kind not in ("model", "corpus"):
        raise ValueError(f"kind is {kind!r}, wanted model or corpus")
    parsed = parse_source(source)
    if parsed.scheme != "path":
        return []
    files = _files_of_model(parsed.path) if kind == "model" else _files_of_corpus(parsed.path, format)
    for file in files:
        if "{" in str(file):
            raise ValueError(
                f"the name {str(file)!r} holds a brace, which the workflow takes for a wildcard: rename it"
            )
    return files


def _files_of_model(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    names = [entry.name for entry in path.iterdir() if entry.is_file()]
    return [path / name for name in model_file_names(names, named_shards(path))]


def _files_of_corpus(path: Path, format: str | None) -> list[Path]:
    return list_texts(path, format).files if path.exists() else [path]


def file_sizes(files: Collection[Path]) -> str:
    """A digest of names and sizes: another file under an old name may be older than the snapshot, which times do not show."""
    sizes = [f"{path}\0{path.stat().st_size if path.exists() else None}\0" for path in files]
    return hashlib.sha256("".join(sizes).encode("utf-8")).hexdigest()
