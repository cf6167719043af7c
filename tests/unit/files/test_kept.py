"""Finished parts of a job: given back to the bit to the same job, and to no other; damaged ones are not used."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selfrepair.files import kept as module
from selfrepair.files.kept import Kept, keep, kept_beside

pytestmark = pytest.mark.filterwarnings("error")

JOB = {"identity": "c0ffee", "config": {"prompts": (0, 4)}, "torch": "2.9.0", "heads": [(0, 0), (0, 1), (1, 1), (3, 0)]}
ROWS = {0: np.array([0, 1]), 1: np.array([2]), 3: np.array([3])}
BATCHES = (slice(0, 3), slice(3, 4))
FLIPS = 400


class Stopped(BaseException):
    """As SIGTERM is raised in a job."""


def found(batch: slice) -> dict[str, np.ndarray]:
    """What a job finds of four heads on a batch of prompts; NaN as where a token was not computed."""
    rng, prompts = np.random.default_rng(batch.start), batch.stop - batch.start
    values = rng.normal(size=(4, prompts, 5)).astype(np.float32)
    values[0, 0, 0] = np.nan
    return {"logit_change": values, "repair_by_head": rng.normal(size=(4, prompts, 4, 2)).astype(np.float32)}


def attempt(out: Path, parts: int, every: float = np.inf, job: dict = JOB) -> list[tuple[int, int]]:
    """Go through the parts of a job, and stop when so many were computed.

    Returns:
        Those that an earlier attempt had finished, by batch and layer.
    """
    taken = []
    try:
        with keep(out, job, every) as kept:
            for number, prompts in enumerate(BATCHES):
                batch, arrays, wanted = kept.batch(prompts), {}, found(prompts)
                for name, values in wanted.items():
                    arrays[name] = np.zeros_like(values)
                for layer, rows in ROWS.items():
                    before = batch.take(layer)
                    if before is None and not parts:
                        raise Stopped
                    for name, values in wanted.items():
                        arrays[name][rows] = values[rows] if before is None else before[name]
                        assert arrays[name][rows].tobytes() == values[rows].tobytes()
                    if before is None:
                        parts -= 1
                        batch.finished(layer, rows, arrays)
                    else:
                        taken.append((number, layer))
    except Stopped:
        pass
    return taken


ALL = [(batch, layer) for batch in range(len(BATCHES)) for layer in ROWS]


@pytest.mark.parametrize("every", [0.0, np.inf], ids=["as it goes", "at the end"])
@pytest.mark.parametrize("parts", range(1, len(ALL) - 1))
def test_an_attempt_goes_on_from_what_the_one_before_finished(tmp_path: Path, parts: int, every: float) -> None:
    """Also from one that was stopped a second time; nothing is left when the result is there."""
    out = tmp_path / "00000.h5"
    assert attempt(out, parts, every) == []
    assert kept_beside(out).is_dir()
    assert attempt(out, 1, every) == ALL[:parts]
    assert attempt(out, len(ALL)) == ALL[: parts + 1]
    assert list(tmp_path.iterdir()) == []


def test_a_short_job_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "_write", lambda *_: pytest.fail("something was written"))
    attempt(tmp_path / "00000.h5", len(ALL), module.EVERY)
    assert list(tmp_path.iterdir()) == []


def test_who_gives_no_identity_keeps_nothing(tmp_path: Path) -> None:
    out = tmp_path / "00000.h5"
    assert attempt(out, 2, 0.0, {**JOB, "identity": ""}) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "other",
    [
        {"identity": "decaf"},
        {"config": {"prompts": (4, 8)}},
        {"torch": "2.9.1"},
        {"heads": JOB["heads"][:3]},
        {"more": 1},
    ],
)
def test_parts_of_another_job_are_removed_unused(tmp_path: Path, other: dict, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "00000.h5"
    attempt(out, 2)
    with caplog.at_level(logging.WARNING):
        assert attempt(out, 0, job={**JOB, **other}) == []
    assert list(kept_beside(out).iterdir()) == []
    [line] = caplog.messages
    assert line.startswith("1 files that an earlier attempt kept are of another job, or damaged: removed")


def test_damage_is_never_used(tmp_path: Path) -> None:
    """Cut at every share, and single bits: what is given back is what was written (`attempt` compares), or the file goes."""
    out = tmp_path / "00000.h5"
    attempt(out, 2)
    [path] = kept_beside(out).iterdir()
    content, rng = path.read_bytes(), np.random.default_rng(0)
    spoiled = [content[: int(share * len(content))] for share in np.linspace(0, 0.999, 20)]
    for at, bit in zip(rng.integers(len(content), size=FLIPS), rng.integers(8, size=FLIPS), strict=True):
        spoiled.append(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    removed = 0
    for each in spoiled:
        path.write_bytes(each)
        taken = attempt(out, 0)
        assert taken in ([], ALL[:2])
        assert path.exists() == bool(taken)
        removed += not taken
    assert removed > len(spoiled) / 2
    path.write_bytes(content)
    assert attempt(out, 0) == ALL[:2]


def test_what_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file is where the folder should be, whoever runs this."""
    out = tmp_path / "00000.h5"
    kept_beside(out).touch()
    with caplog.at_level(logging.WARNING):
        assert attempt(out, len(ALL), 0.0) == []
    [line] = caplog.messages
    assert line.startswith("finished layers cannot be kept, the job goes on without: ")


FULL = """
import resource, signal, sys, logging
from pathlib import Path
from unit.files.test_kept import attempt
logging.basicConfig(format="%(message)s", stream=sys.stdout)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
print(attempt(Path(sys.argv[1]), 4, 0.0))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(attempt(Path(sys.argv[1]), 0))
"""


@pytest.mark.parametrize("size", [0, 1000, 3000, 5000])
def test_a_full_disk(tmp_path: Path, size: int) -> None:
    """A limit of a file's size stands for one: HDF5 meets both in the middle of a write. What is kept is whole."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "00000.h5"), str(size)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, first, second = done.stdout.splitlines()
    assert said.startswith("finished layers cannot be kept, the job goes on without: ")
    assert "File too large" in said
    assert (first, second) == ("[]", "[]")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_two_processes_at_once(tmp_path: Path) -> None:
    """As a job that was taken for dead, and its copy: each adds to what is kept; where one ends the other still does."""
    out = tmp_path / "00000.h5"
    with keep(out, JOB, 0.0) as first:
        one = found(BATCHES[0])
        first.batch(BATCHES[0]).finished(0, ROWS[0], one)
        assert attempt(out, 2, 0.0) == ALL[:1]
        first.batch(BATCHES[0]).finished(1, ROWS[1], one)  # the copy has written it too
        assert len(list(kept_beside(out).iterdir())) == 4
        assert attempt(out, 0) == ALL[:3]
        assert attempt(out, len(ALL)) == ALL[:3]
        assert not kept_beside(out).exists()
        first.batch(BATCHES[0]).finished(3, ROWS[3], one)
        assert Kept(out, JOB, np.inf).batch(BATCHES[0]).take(3) is not None
        # Where the copy has made the result, nothing more is kept.
        out.touch()
        first.batch(BATCHES[1]).finished(0, ROWS[0], found(BATCHES[1]))
        assert len(list(kept_beside(out).iterdir())) == 1
    assert list(tmp_path.iterdir()) == [out]
