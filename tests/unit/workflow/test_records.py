"""Records of what jobs have made: what has been edited or removed since is known, and what was only copied is not."""

import os
from pathlib import Path

import pytest

from selfrepair.files.sealed import write_json
from selfrepair.workflow.records import (
    changed_files,
    edited,
    read_code,
    read_record,
    record_path,
    write_code,
    write_record,
)

pytestmark = pytest.mark.filterwarnings("error")

PROVENANCE = {"code": "c0de", "config": {"seed": 0}, "upstream": {}}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files of a job with their record."""
    monkeypatch.chdir(tmp_path)
    files = [Path("results") / "tiny" / "words" / "tables" / name for name in ("heads.parquet", "heads.csv")]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_text(file.name)
    write_record(files, "tabulate_heads", PROVENANCE, "")
    return files


def test_a_record_says_how_a_file_was_made(made: list[Path]) -> None:
    record = read_record(made[0])
    assert {key: record[key] for key in PROVENANCE} == PROVENANCE
    assert record["rule"] == "tabulate_heads"
    assert set(record["outputs"]) == {"heads.parquet", "heads.csv"}
    assert record_path(made[0]) == Path("results/provenance/tiny/words/tables/heads.json")
    assert edited(made[0]) == ""


@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_was_edited_or_removed_is_named(made: list[Path], number: int) -> None:
    file = made[number]
    file.write_text("another")
    assert edited(made[0]) == f"{file.name} was edited"
    file.unlink()
    assert edited(made[0]) == f"{file.name} is missing"


def test_files_of_one_time_are_told_apart_where_all_are_read(made: list[Path]) -> None:
    times = made[1].stat()
    made[1].write_text("HEADS.csv")
    os.utime(made[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    record = read_record(made[0])
    assert list(changed_files(made[0], record)) == []
    assert list(changed_files(made[0], record, sure=True)) == ["heads.csv was edited"]


def test_a_file_of_another_time_is_not_edited(made: list[Path]) -> None:
    os.utime(made[0])
    assert edited(made[0]) == ""


def test_what_was_mended_is_mended(made: list[Path]) -> None:
    """What a job is asked with is what its record gives afterwards, whatever had become of its files."""
    made[1].write_text("another")
    found = edited(made[0])
    write_record(made, "tabulate_heads", PROVENANCE, found)
    assert edited(made[0]) == found
    made[1].write_text("yet another")
    again = edited(made[0])
    assert again not in (found, "")
    write_record(made, "tabulate_heads", PROVENANCE, again)
    assert edited(made[0]) == again


def test_all_files_of_a_snapshot_are_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("results/snapshots/models/tiny")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights")
    write_json(folder / "manifest.json", {"files": {"model.safetensors": {}}})
    write_record([folder / "manifest.json"], "snapshot_model", PROVENANCE, "")
    (folder / "model.safetensors").unlink()
    assert edited(folder / "manifest.json") == "model.safetensors is missing"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"outputs": 1}', '{"outputs": {"heads.csv": 2}}'])
def test_a_record_that_is_lost_or_damaged_hides_nothing_and_stops_nothing(
    made: list[Path], content: str | None
) -> None:
    path = record_path(made[0])
    path.unlink() if content is None else path.write_text(content)
    made[1].write_text("another")
    assert edited(made[0]) in ("", "its record is damaged")


def test_modules_of_a_digest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_code({"selfrepair/a.py": "1"}, "c0de")
    assert read_code("c0de") == {"selfrepair/a.py": "1"}
    assert read_code("another") == {}
