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
    with (manifest.parent / "documents.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
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
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0))
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
        ({"in/x.jsonl.gz": gzip.compress(b'{"text": "good"}', mtime=0)[:-9]}, {}, "no whole gzip file"),
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


DEEP = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GOOD = b'{"text": "good"}\n'
ZIPPED = gzip.compress(b"".join(b'{"text": "%d"}\n' % (number * 7919**3) for number in range(9000)), mtime=0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", GOOD + b'{"text": "half \\ud800."}', r"x.jsonl, line 2: holds '\\ud800', half of a surrogate pair"),
        ("x.jsonl", GOOD + b'{"text": "good", "id": "\\udc00"}', r"x.jsonl, line 2: holds '\\udc00'"),
        ("x.jsonl", GOOD + DEEP, "x.jsonl, line 2: not JSON .*recursion"),
        ("x.jsonl", GOOD + b'{"n": ' + b"9" * 5000 + b', "text": "x"}', "x.jsonl, line 2: not JSON"),
        ("x.jsonl", GOOD + b'{"text": "one", "text": "two"}', "x.jsonl, line 2: not JSON .'text' stands twice"),
        ("x.jsonl", GOOD + b'{"text": null}', "x.jsonl, line 2: no text in column 'text', got null there"),
        ("x.jsonl", GOOD + b'{"text": 7}', "x.jsonl, line 2: no text in column 'text', got int there"),
        ("x.jsonl", GOOD + b'{"text": ["a"]}', "x.jsonl, line 2: no text in column 'text', got list there"),
        ("x.jsonl", GOOD + b"null", "x.jsonl, line 2: no text in column 'text', got NoneType"),
        ("x.jsonl", GOOD + b'{"text": "a\0b"}', r"x.jsonl: byte 0x00 at offset 28 is not UTF-8 text .line 2"),
        ("x.jsonl", gzip.compress(GOOD, mtime=0), "x.jsonl: byte 0x8b at offset 1 .*begins as gzip"),
        ("x.jsonl", GOOD.decode().encode("utf-16"), "x.jsonl: byte 0xff at offset 0 .*begins as UTF-16"),
        ("x.jsonl.gz", GOOD, "x.jsonl.gz: no whole gzip file"),
        ("x.jsonl.gz", ZIPPED[:-8] + bytes(4) + ZIPPED[-4:], "x.jsonl.gz: no whole gzip file .CRC.*after line 9000"),
        ("x.jsonl.gz", ZIPPED[: len(ZIPPED) // 2], r"x.jsonl.gz: no whole gzip file .*after line \d+"),
        (
            "x.jsonl.gz",
            ZIPPED[:9000] + b"\xff" * 40 + ZIPPED[9040:],
            r"x.jsonl.gz.*(no whole gzip|is not UTF-8|not JSON)",
        ),
        ("x.jsonl.gz", ZIPPED + b"garbage", "x.jsonl.gz: no whole gzip file .Not a gzipped file"),
        ("x.txt", b"good\nbad \x00", r"x.txt: byte 0x00 at offset 9 is not UTF-8 text .line 2; perhaps"),
        ("x.txt", "text".encode("utf-16-le"), "x.txt: byte 0x00 at offset 1 .*perhaps the file is UTF-16"),
        ("x.txt", b"\xfe\xff" + "text".encode("utf-16-be"), "x.txt: byte 0xfe at offset 0 .*begins as UTF-16"),
        ("x.txt", "text".encode("utf-32"), "x.txt: byte 0xff at offset 0 .*begins as UTF-16 or UTF-32"),
        ("x.txt", b"one\n\n\nna\xefve", "x.txt: byte 0xef at offset 8 is not UTF-8 text .line 4"),
        ("x.txt", b"\xed\xa0\x80", "x.txt: byte 0xed at offset 0"),
        ("x.lines", b"one\ntwo\nna\xefve", "x.lines: byte 0xef at offset 10 is not UTF-8 text .line 3"),
        ("x.bz2", bz2.compress(b"x" * 900)[:30], "x.bz2: no whole MediaWiki XML dump"),
        ("x.xml.bz2", b"plain", "x.xml.bz2: no whole MediaWiki XML dump"),
        ("x.xml", b"<mediawiki>\n<a></b>", r"x.xml: no whole MediaWiki XML dump .*line 2"),
    ],
)
def test_damage_is_said_with_file_and_line(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        _snapshot(tmp_path, source=f"path:{tmp_path / name}")
    assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "snapshot").iterdir()) == []


def test_zlib_errors_are_said(tmp_path: Path) -> None:
    """A flipped byte is seen by zlib, by the checksum or in the text: every one of a sample is refused by the file's name."""
    whole = gzip.compress(b"".join(b'{"text": "number %d"}\n' % number for number in range(300)), mtime=0)
    for at in range(10, len(whole) - 4, 29):
        (tmp_path / "x.jsonl.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"x\.jsonl\.gz"):
            _snapshot(tmp_path, source=f"path:{tmp_path / 'x.jsonl.gz'}")


HARD = "line\u2028paragraph\u2029next\x85feed\x0ctab\x0bfile\x1cgroup\x1drecord\x1eend"


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """And what is written is read back the same by lines of the file, as tokenising does."""
    (tmp_path / "x.lines").write_bytes(f"{HARD}\r\n\n\tsecond\r\n".encode())
    _, rows = _snapshot(tmp_path, source=f"path:{tmp_path / 'x.lines'}")
    assert rows == [{"id": "x.lines:1", "text": HARD}, {"id": "x.lines:3", "text": "\tsecond"}]
    texts = [HARD, "carriage\rreturn", "nul \0", "pair \U0001f600"]
    for ascii in (False, True):
        lines = "".join(json.dumps({"text": text}, ensure_ascii=ascii) + "\n" for text in texts)
        (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        _, rows = _snapshot(tmp_path, source=f"path:{tmp_path / 'x.jsonl'}")
        assert [row["text"] for row in rows] == texts
        assert [row["id"] for row in rows] == [f"x.jsonl:{number}" for number in range(1, 5)]


def test_nothing_is_left_out_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a.txt", "text"), ("B.TXT", "more"), ("empty.txt", " \n"), ("none.txt", ""), ("c.md", "x")):
        (folder / name).write_text(text)
    (folder / "dangling.txt").symlink_to("nowhere")
    _, rows = _snapshot(tmp_path, source=f"path:{folder}")
    assert [row["id"] for row in rows] == ["B.TXT", "a.txt"]
    said = [
        record.getMessage().removeprefix(f"path:{folder}: ")
        for record in caplog.records
        if record.levelname == "WARNING"
    ]
    assert said == [
        "left out: 'dangling.txt' (a link to 'nowhere', which does not exist)",
        "left out: 'c.md' (format text reads .txt)",
        "left out: 2 empty documents",
    ]


def test_a_folder_of_texts_that_holds_the_snapshot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="where its own snapshot goes"):
        _snapshot(tmp_path, source=f"path:{tmp_path}")
    assert (tmp_path / "a.txt").read_text() == "text"


def test_the_ids_of_rows_are_kept_where_they_have_one(tmp_path: Path) -> None:
    rows = [{"text": "a", "id": 0}, {"text": "b", "id": None}, {"text": "c", "id": ""}, {"text": "d"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, found = _snapshot(tmp_path, source=f"path:{tmp_path / 'x.jsonl'}")
    assert [row["id"] for row in found] == ["0", "x.jsonl:2", "", "x.jsonl:4"]


def test_package_source_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`file` is missing"):
        _snapshot(tmp_path, source="package:gensim==4.4.0")
