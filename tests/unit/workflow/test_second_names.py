"""A second name of a finished result: the very same job gets its file back, and no other job, nor a damaged one."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from selfrepair.files.hdf5 import write_hdf5
from selfrepair.workflow.second_names import RUNNING, second_name, two_names

pytestmark = pytest.mark.filterwarnings("error")

KIND = "ablations"
PROVENANCE = {"identity": "c0ffee", "config": {"prompts": (0, 4)}, "upstream": {"tokens.h5": "decaf"}, "torch": "2.9.0"}
FLIPS = 60


class Stopped(BaseException):
    """As SIGTERM is raised in a job."""


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result's path, while a run goes on."""
    monkeypatch.chdir(tmp_path)
    RUNNING.parent.mkdir()
    RUNNING.touch()
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "00000.h5"


def write(out: Path, provenance: dict = PROVENANCE) -> None:
    with write_hdf5(out, kind=KIND, provenance=provenance) as file:
        file.dims(head=3, prompt=50)
        file.put("self_repair", ("head", "prompt"), np.random.default_rng(0).normal(size=(3, 50)), chunk={"head": 1})


def attempt(out: Path, provenance: dict = PROVENANCE) -> bool:
    """A job that is ended when its result is whole, and whose result Snakemake removes; whether it found it finished."""
    try:
        with two_names(out, KIND, provenance) as finished:
            if not finished:
                write(out, provenance)
            assert out.exists()
            raise Stopped
    except Stopped:
        out.unlink()
    return finished


def test_the_next_attempt_has_the_very_same_file(out: Path) -> None:
    """Again and again, as if made at that moment; it takes no disk of its own."""
    assert not attempt(out)
    file, content = second_name(out).stat(), second_name(out).read_bytes()
    os.utime(second_name(out), (0, 0))
    for _ in range(2):
        with two_names(out, KIND, PROVENANCE) as finished:
            assert finished
        assert out.read_bytes() == content
        assert out.stat().st_ino == file.st_ino
        assert out.stat().st_mtime >= file.st_mtime
        assert out.samefile(second_name(out))
        out.unlink()


def test_a_job_that_is_ended_while_it_looks_loses_nothing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(out)

    def stop(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", stop)
        with pytest.raises(Stopped):
            two_names(out, KIND, PROVENANCE).__enter__()
    assert attempt(out)


def test_a_job_that_makes_nothing_leaves_nothing(out: Path) -> None:
    with pytest.raises(Stopped), two_names(out, KIND, PROVENANCE):
        raise Stopped
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "other", [{"identity": "decaf"}, {"config": {"prompts": (4, 8)}}, {"torch": "2.9.1"}, {"more": 1}]
)
def test_a_result_of_another_job_is_removed_unused(out: Path, other: dict, caplog: pytest.LogCaptureFixture) -> None:
    attempt(out)
    assert not attempt(out, PROVENANCE | other)
    [line] = caplog.messages
    assert line.startswith("what an earlier attempt finished is of another job, or damaged: removed")
    assert attempt(out, PROVENANCE | other)


def test_damage_is_never_taken_back(out: Path) -> None:
    """Cut at every share, and single bits."""
    attempt(out)
    content, rng = second_name(out).read_bytes(), np.random.default_rng(0)
    spoiled = [content[: int(share * len(content))] for share in np.linspace(0, 0.999, 20)]
    for at, bit in zip(rng.integers(len(content), size=FLIPS), rng.integers(8, size=FLIPS), strict=True):
        spoiled.append(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    for each in spoiled:
        second_name(out).unlink()
        second_name(out).write_bytes(each)
        assert not attempt(out)


def test_without_a_run_that_would_remove_it_there_is_none(out: Path) -> None:
    """As where another workflow has this one as a module, and does not hand its handlers on."""
    RUNNING.unlink()
    with two_names(out, KIND, PROVENANCE):
        write(out)
    assert list(out.parent.iterdir()) == [out]


def test_a_filesystem_without_hard_links_does_without(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with two_names(out, KIND, PROVENANCE):
        write(out)
    assert list(out.parent.iterdir()) == [out]
