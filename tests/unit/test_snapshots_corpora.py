"""Snapshots of corpora from packages and local paths; from a hub: test_snapshots_hub."""

import bz2
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfrepair.snapshots.corpora import snapshot_corpus
from selfrepair.snapshots.manifest import verify_manifest
from selfrepair.snapshots.wikitext import plain_text

WIKIPEDIA = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

pytestmark = pytest.mark.filterwarnings("error")


def _snapshot(folder: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    manifest = folder / "snapshot" / "manifest.json"
    snapshot_corpus(manifest, **options)
    read = verify_manifest(manifest, "corpus")
    rows = [json.loads(line) for line in (manifest.parent / "documents.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read["n_documents"] == len(rows)
    assert read["n_characters"] == sum(len(row["text"]) for row in rows)
    assert all(set(row) == {"id", "text"} for row in rows)
    return read, rows


def test_wikipedia_reads_as_prose(tmp_path: Path) -> None:
    read, rows = _snapshot(tmp_path, source="package:gensim==4.4.0", file=WIKIPEDIA, license="CC-BY-SA")
    assert (read["format"], read["version"], read["license"]) == ("wikitext", "4.4.0", "CC-BY-SA")
    assert len(rows) == 97
    assert read["n_characters"] > 2_400_000
    assert rows[0]["id"] == "Anarchism"
    assert rows[0]["text"].startswith("Anarchism is a political philosophy that advocates self-governed societies")
    text = "\n\n".join(row["text"] for row in rows)
    for remnant in (
        r"\[\[|\]\]|\{\{|\}\}|\|\||thumb\|",
        r"''|==|__[A-Z]+__|&[a-z]+;",
        r"</?(ref|br|sup|small)\b",
        r"https?://",
    ):
        assert not re.search(remnant, text), remnant
    assert not re.search(r"\(\s*\)|\( | \)|\([,;]|  ", text)
    paragraphs = text.split("\n\n")
    assert all(paragraph[-1] in ".!?…\"'”’»)]" for paragraph in paragraphs)
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
    assert letters / len(text) > 0.93


def test_number_of_documents_is_limited(tmp_path: Path) -> None:
    _, rows = _snapshot(tmp_path, source="package:gensim==4.4.0", file=WIKIPEDIA, documents=20)
    assert len(rows) == 20
    with pytest.raises(ValueError, match="documents is 0, wanted 1 or more"):
        _snapshot(tmp_path, source="package:gensim==4.4.0", file=WIKIPEDIA, documents=0)


def test_lee_news_is_a_document_a_line(tmp_path: Path) -> None:
    read, rows = _snapshot(tmp_path, source="package:gensim==4.4.0", file="gensim/test/test_data/lee_background.cor")
    assert (read["format"], len(rows)) == ("lines", 300)
    assert rows[0]["id"] == "lee_background.cor:1"
    assert rows[0]["text"].startswith("Hundreds of people have been forced to vacate their homes")


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        (
            "== Heading ==\n* item one is long enough to be taken for a paragraph, was it not a list, as lists often are.\n",
            "",
        ),
        (
            'The [[river|Great River]] is {{convert|1234|km|mi}} long<ref name="a">See {{cite|x}}.</ref> and it flows '
            "from the hills to the [[sea]] in the far north.",
            "The Great River is 1234 km long and it flows from the hills to the sea in the far north.",
        ),
        (
            "'''Bern''' ({{IPA-de|bɛrn}}; {{lang-fr|Berne}}) is the ''de facto'' capital of "
            "Switzerland, on the steep banks of the river Aare.",
            "Bern is the de facto capital of Switzerland, on the steep banks of the river Aare.",
        ),
        (
            "{| class=x\n|-\n| Fresh asphalt\n| 0.04.\n|-\n| Conifer forest (summer)\n| 0.08, 0.09 to 0.15.\n|}",
            "",
        ),
        (
            "The area of a circle of radius <math>r</math> is given by the well known formula <math>\\pi r^2</math> for all r.",
            "",
        ),
        (
            "== References ==\n=== Books ===\nSomebody, A. (1999). A book with a title that is long enough for a paragraph.",
            "",
        ),
        (
            "Less &lt; more&nbsp;&ndash; and AT&amp;T is a company with a rather long and quite tedious history.",
            "Less < more – and AT&T is a company with a rather long and quite tedious history.",
        ),
    ],
)
def test_markup_becomes_prose(markup: str, prose: str) -> None:
    assert plain_text(markup) == prose


def test_dump_without_redirects_stubs_copies_and_other_namespaces(tmp_path: Path) -> None:
    article = "This sentence is one of many in an article about nothing in particular, as articles go. " * 6
    pages = [("A", "0", article), ("B", "0", "#REDIRECT [[A]] " + article), ("C", "1", article), ("D", "0", article)]
    pages += [
        ("E", "0", "A sentence that is long enough to be a paragraph, and no more than that."),
        ("F", "0", article + "End."),
    ]
    body = "".join(
        f"<page><title>{title}</title><ns>{space}</ns><id>1</id><revision><text>{text}</text></revision></page>"
        for title, space, text in pages
    )
    dump = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo/>{body}</mediawiki>'.encode()
    (tmp_path / "dump.xml.bz2").write_bytes(bz2.compress(dump))
    _, rows = _snapshot(tmp_path, source=f"path:{tmp_path / 'dump.xml.bz2'}")
    assert [row["id"] for row in rows] == ["A", "F"]
    (tmp_path / "cut.xml.bz2").write_bytes(bz2.compress(dump)[:-20])
    (tmp_path / "cut.xml").write_bytes(dump[:-20])
    for name in ("cut.xml.bz2", "cut.xml"):
        with pytest.raises(ValueError, match=rf"{name}: no whole MediaWiki XML dump"):
            _snapshot(tmp_path, source=f"path:{tmp_path / name}")


def test_text_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfSecond,\r\nna\xc3\xafve.\n")
    (folder / "a.txt").write_text("First.")
    (folder / "inner" / "c.txt").write_text("Third.")
    (folder / "empty.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    read, rows = _snapshot(tmp_path, source="path:texts")
    assert rows == [
        {"id": "a.txt", "text": "First."},
        {"id": "b.txt", "text": "Second,\nnaïve.\n"},
        {"id": "inner/c.txt", "text": "Third."},
    ]
    assert (read["format"], read["revision"], read["version"]) == ("text", None, None)
    _, rows = _snapshot(tmp_path, source="path:texts/a.txt")
    assert rows == [{"id": "a.txt", "text": "First."}]


def test_jsonl_file_compressed_file_and_folder(tmp_path: Path) -> None:
    rows = b'{"id": 7, "story": "One."}\n\n{"story": "Two."}\n'
    folder = tmp_path / "stories"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(rows)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows))
    for name, ids in (
        ("a.jsonl", ["7", "a.jsonl:3"]),
        ("b.jsonl.gz", ["7", "b.jsonl.gz:3"]),
        ("", ["7", "a.jsonl:3", "7", "b.jsonl.gz:3"]),
    ):
        read, found = _snapshot(tmp_path, source=f"path:{folder / name}", text_column="story")
        assert read["format"] == "jsonl"
        assert [row["id"] for row in found] == ids
        assert {row["text"] for row in found} == {"One.", "Two."}


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({}, {}, "does not exist; correct the path"),
        ({"in/x.pdf": b"x"}, {}, "no .txt and no .jsonl file"),
        ({"in/x.txt": b"x", "in/y.jsonl": b"{}"}, {}, "both .txt and .jsonl files: say format"),
        ({"in/x.txt": b"x"}, {"format": "jsonl"}, "no file ending in .jsonl or .jsonl.gz"),
        ({"in/x.txt": b"good\nna\xefve"}, {}, r"x.txt: byte 0xef at offset 7 is not UTF-8"),
        (
            {"in/x.jsonl": b'{"text": "good"}\n{"text": "na\xefve"}'},
            {},
            r"x.jsonl: byte 0xef at offset 29 is not UTF-8",
        ),
        (
            {"in/x.jsonl": b'{"text": "good"}\n{"body": "bad"}'},
            {},
            "x.jsonl, line 2: no text in column 'text', got .*'body'",
        ),
        ({"in/x.jsonl": b'{"text": "good"}\n\n{"text"'}, {}, "x.jsonl, line 3: not JSON"),
        ({"in/x.jsonl": b'["text"]'}, {}, "line 1: no text in column 'text', got list"),
        ({"in/x.jsonl.gz": gzip.compress(b'{"text": "good"}')[:-9]}, {}, "no whole gzip file"),
        ({"in/x.jsonl.gz": b"plain"}, {}, "no whole gzip file"),
        ({"in/x.txt": b" \n"}, {}, "holds no text"),
        ({"in": b"x"}, {}, "no format follows from the name: say format: text, jsonl, lines, wikitext"),
        ({"in": b"x"}, {"format": "epub"}, "format is 'epub', wanted one of"),
        ({"in": b"x"}, {"format": "lines", "sha256": "0" * 64}, "has sha256 2d711642.*, the config wants 0000"),
        ({"in/x.txt": b"x"}, {"sha256": "0" * 64}, "sha256 is for one file"),
        ({"in": b"x"}, {"format": "lines", "text_column": "body"}, "text_column is for jsonl and hub: sources"),
        ({"in": b"x"}, {"split": "train"}, "split is for hub: sources only"),
        ({"in": b"x"}, {"file": "y"}, "file is for package: sources only"),
    ],
)
def test_bad_input_is_said_in_one_line(
    files: dict[str, bytes], options: dict[str, str], words: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        _snapshot(tmp_path, source=f"path:{tmp_path / 'in'}", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "snapshot").iterdir()) == []


def test_package_source_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`file` is missing"):
        _snapshot(tmp_path, source="package:gensim==4.4.0")
