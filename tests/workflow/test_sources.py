"""The user's own files: what is read of them is watched, and nothing of theirs is lost. Only snapshots are taken here."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from workflow.running import Space

pytestmark = pytest.mark.filterwarnings("error")

CORPUS = "results/snapshots/corpora/words/manifest.json"
MODEL = "results/snapshots/models/tiny/manifest.json"
SENTENCE = "This sentence is one of many in an article about nothing in particular, as articles go. " * 6
PAGE = f"<page><title>A</title><ns>0</ns><id>1</id><revision><text>{SENTENCE}</text></revision></page>"
DUMP = f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/"><siteinfo/>{PAGE}</mediawiki>'
ROW = json.dumps({"text": SENTENCE}) + "\n"


@pytest.fixture(scope="module")
def taken(fresh: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """With both snapshots; a config lies beside the texts."""
    space = fresh.copy(tmp_path_factory.mktemp("taken") / "space")
    (space.work / "text" / "config.json").write_text("{}", encoding="utf-8")
    space.make(CORPUS, MODEL)
    return space


@pytest.fixture
def space(taken: Space, tmp_path: Path) -> Space:
    return taken.copy(tmp_path / "space")


def _new(name: str) -> Callable[[Path], None]:
    return lambda text: (text / name).write_text("the cat sat .", encoding="utf-8") and None


def _edit(text: Path) -> None:
    (text / "0.txt").write_text("the cat sat .", encoding="utf-8")


def _older(text: Path) -> None:
    """As `mv` and `cp -p` do: the time is older than the snapshot's."""
    _edit(text)
    os.utime(text / "0.txt", (1, 1))


def _linked_folder(text: Path) -> None:
    (text.parent / "more").mkdir()
    _edit(text)
    (text / "0.txt").rename(text.parent / "more" / "x.txt")
    (text / "link").symlink_to(text.parent / "more")


@pytest.mark.parametrize(
    "change",
    [
        _edit,
        _older,
        _linked_folder,
        lambda text: (text / "0.txt").unlink(),
        lambda text: (text / "0.txt").rename(text / "9.txt"),
        _new("new 'é' * [1] \\n ? #x $x %s.TXT"),
    ],
    ids=["edited", "an older file", "linked folder", "removed", "renamed", "new"],
)
def test_a_change_of_what_is_read_makes_the_snapshot_stale(space: Space, change: Callable[[Path], None]) -> None:
    change(space.work / "text")
    assert space.jobs(CORPUS, MODEL) == {"snapshot_corpus": 1}


def test_names_of_any_kind_are_read_and_watched(space: Space) -> None:
    _new("new 'é' * [1] \\n ? #x $x %s.TXT")(space.work / "text")
    space.make(CORPUS)
    assert json.loads((space.work / CORPUS).read_text(encoding="utf-8"))["n_documents"] == 6
    assert space.jobs(CORPUS, MODEL) == {}


def test_what_is_not_read_makes_nothing_stale(space: Space) -> None:
    text = space.work / "text"
    for name in ("new.md", ".hidden.txt", "new.jsonl.bak", "CONFIG.json"):
        _new(name)(text)
    os.mkfifo(text / "fifo.txt")
    (text / "loop").symlink_to(text)
    (text / "dangling.txt").symlink_to("nowhere")
    (text / "config.json").write_text("[]", encoding="utf-8")
    (space.work / "model" / "pytorch_model.bin").write_bytes(b"x")
    assert space.jobs(CORPUS, MODEL) == {}


def test_texts_of_every_format_are_watched(fresh: Space, tmp_path: Path) -> None:
    """With a config beside them, and texts of another format where the config gives one."""
    space = fresh.copy(tmp_path / "space")
    texts = {
        "lines": ("a.lines", SENTENCE),
        "cor": ("a.COR", SENTENCE),
        "wikitext": ("a.xml", DUMP),
        "upper": ("a.JSONL", ROW),
        "jsonl": ("a.jsonl", ROW),
    }
    formats = {"lines": "lines", "cor": "lines", "wikitext": "wikitext", "jsonl": "jsonl"}
    for corpus, (name, content) in texts.items():
        (space.work / corpus).mkdir()
        (space.work / corpus / name).write_text(content, encoding="utf-8")
        (space.work / corpus / "config.json").write_text("{}", encoding="utf-8")
        if corpus in formats:
            (space.work / corpus / "b.txt").write_text("the cat sat .", encoding="utf-8")
        given = {"format": formats[corpus]} if corpus in formats else {}
        space.change(f"corpora.{corpus}", {"source": f"path:{corpus}", **given})
    manifests = [f"results/snapshots/corpora/{corpus}/manifest.json" for corpus in texts]
    space.make(*manifests)
    for corpus in formats:
        (space.work / corpus / "b.txt").write_text("the cat ran .", encoding="utf-8")
    assert space.jobs(*manifests) == {}
    for corpus, (name, content) in texts.items():
        (space.work / corpus / name).write_text(content.replace("This", "That one"), encoding="utf-8")
    assert space.jobs(*manifests) == {"snapshot_corpus": len(texts)}


def _mine(space: Space) -> Path:
    """A user's model that lies where its own snapshot goes."""
    folder = (space.work / MODEL).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(space.work / "model", folder)
    return folder


def _refused(space: Space, section: str, sources: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is said of each of some sources before anything runs."""
    for name, settings in sources.items():
        space.change(f"{section}.{name}", settings)
    space.change(f"run.{section}", list(sources))
    done = space.snakemake("--dry-run")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    told = [line.strip().partition(".source is ")[::2] for line in done.stdout.splitlines() if ".source is " in line]
    found = {name.removeprefix(f"{section}."): words for name, words in told}
    assert set(found) == set(sources), done.stdout
    return found


def test_a_source_among_the_results_is_refused_before_anything_is_removed(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    mine = _mine(space)
    for other in ("results/mine", "results/snapshots/models/other", "results/snapshots/corpora/words"):
        shutil.copytree(mine, space.work / other)
    (space.work / "link").symlink_to(mine)
    before = _files(space.work / "results")
    places = {
        "models": {
            "tiny": "results/snapshots/models/tiny",
            "another": "results/snapshots/models/tiny",
            "other": "results/snapshots/models/../models/other",
            "mine": "results/mine",
            "linked": "link",
            "all": "results",
        },
        "corpora": {"words": "results/snapshots/corpora/words", "file": "results/mine/tokenizer.json"},
    }
    kept = space.config
    for section, of_section in places.items():
        told = _refused(space, section, {name: {"source": f"path:{place}"} for name, place in of_section.items()})
        assert all("which lies in results" in words for words in told.values())
        space.write_config(kept)
    assert _files(space.work / "results") == before


@pytest.mark.parametrize(("linked", "manifest"), [(False, None), (False, "{}"), (True, None)])
def test_the_users_files_where_a_snapshot_goes_are_kept(
    fresh: Space, tmp_path: Path, linked: bool, manifest: str | None
) -> None:
    space = fresh.copy(tmp_path / "space")
    folder = _mine(space)
    if manifest:
        (folder / "manifest.json").write_text(manifest, encoding="utf-8")
    if linked:
        folder.rename(space.work / "mine")
        folder.symlink_to(space.work / "mine")
    before = _files(space.work / ("mine" if linked else MODEL.rpartition("/")[0]))
    printed = space.snakemake("--forcerun", "snapshot_model", "--", MODEL)
    assert printed.returncode != 0
    assert ("is a link to" if linked else "no snapshot") in printed.stdout
    assert _files(space.work / ("mine" if linked else MODEL.rpartition("/")[0])) == before


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_that_fails_does_not_pass_for_a_fresh_one(space: Space) -> None:
    """Nor does the old one, which was of another config; and the next run replaces what is left of it."""
    good = space.config
    old = _files((space.work / CORPUS).parent)
    space.change("corpora.words.text_column", "body")
    assert "text_column is for jsonl and hub: sources" in space.snakemake(CORPUS).stdout
    assert not (space.work / CORPUS).exists()
    assert space.jobs(CORPUS) == {"snapshot_corpus": 1}
    space.write_config(good)
    assert space.jobs(CORPUS) == {"snapshot_corpus": 1}
    space.make(CORPUS)
    assert _files((space.work / CORPUS).parent) == old


def test_a_damaged_snapshot_is_replaced(space: Space) -> None:
    for name in ("documents.jsonl", "manifest.json"):
        with ((space.work / CORPUS).parent / name).open("r+b") as file:
            file.write(b"\xff")
    space.make("--forcerun", "snapshot_corpus", "--", CORPUS)
    assert json.loads((space.work / CORPUS).read_text(encoding="utf-8"))["n_documents"] == 5


def test_texts_that_cannot_be_listed_are_refused_before_anything_runs(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    os.mkfifo(space.work / "fifo")
    os.mkfifo(space.work / "fifo.txt")
    for name in ("empty", "both", "latin", "braces"):
        (space.work / name).mkdir()
    _new("{corpus}.txt")(space.work / "braces")
    for name in ("a.txt", "a.jsonl"):
        (space.work / "both" / name).write_text("{}", encoding="utf-8")
    Path(os.fsdecode(os.fsencode(space.work) + b"/latin/\xff.txt")).write_text("x", encoding="utf-8")
    (space.work / "round").symlink_to("round")
    wanted = {
        "fifo": ({"source": "path:fifo"}, "is a FIFO: wanted a file or folder"),
        "named": ({"source": "path:fifo.txt"}, "is a FIFO: wanted a file or folder"),
        "device": ({"source": "path:/dev/zero", "format": "text"}, "is a device: wanted a file or folder"),
        "here": ({"source": "path:."}, "which holds results"),
        "empty": ({"source": "path:empty"}, "holds no .txt and no .jsonl file"),
        "round": ({"source": "path:round"}, "does not exist"),
        "latin": ({"source": "path:latin"}, "is not UTF-8"),
        "braces": ({"source": "path:braces"}, "holds a brace, which the workflow takes for a wildcard"),
        "both": ({"source": "path:both"}, "holds both .txt and .jsonl files: say format"),
    }
    told = _refused(space, "corpora", {name: settings for name, (settings, _) in wanted.items()})
    for name, (_, words) in wanted.items():
        assert words in told[name], told[name]
