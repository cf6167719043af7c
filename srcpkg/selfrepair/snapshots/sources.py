"""What a snapshot is taken from: `package:`, `hub:` and `path:` sources, and the user's files that they read."""

import re
from dataclasses import dataclass
from pathlib import Path

from selfrepair.snapshots.names import CONFIG, model_file_names, named_shards

_PACKAGE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
)
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")

_FORMS = (
    "package:NAME==VERSION (a distribution on the package index), hub:OWNER/NAME@COMMIT (a Hugging Face repository), "
    "path:FOLDER_OR_FILE (on this machine)"
)

TEXT_SUFFIXES = (".txt",)
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")


@dataclass(frozen=True)
class Source:
    """Where a snapshot comes from.

    Attributes:
        scheme: `package`, `hub` or `path`.
        name: Distribution, repository, or path as written.
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
        """The source as it is written in the config."""
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
        return Source(scheme, rest)
    raise ValueError(f"source {text!r}: unknown scheme {scheme!r}; wanted one of {_FORMS}")


def text_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `folder` with one of the suffixes, hidden ones left out, in the order of their relative paths."""
    found = {
        path.relative_to(folder): path for path in folder.rglob("*") if path.name.endswith(suffixes) and path.is_file()
    }
    return [path for inner, path in sorted(found.items()) if not any(part.startswith(".") for part in inner.parts)]


def source_files(source: str) -> list[Path]:
    """The user's files that a snapshot of `source` depends on: for `path:` those it reads, else none.

    A path that does not exist is returned as it is, so that a workflow reports it as a missing input.

    Args:
        source: As for `parse_source`.

    Raises:
        ValueError: If the source cannot be parsed.
    """
    parsed = parse_source(source)
    if parsed.scheme != "path":
        return []
    path = parsed.path
    if not path.is_dir():
        return [path]
    if (path / CONFIG).is_file():
        names = [entry.name for entry in path.iterdir() if entry.is_file()]
        return [path / name for name in model_file_names(names, named_shards(path))]
    return text_files(path, TEXT_SUFFIXES + JSONL_SUFFIXES)
