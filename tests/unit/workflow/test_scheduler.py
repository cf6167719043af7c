"""What is refused before anything is submitted to a Slurm; its commands are scripts here, and real in tests/slurm."""

from pathlib import Path

import pytest

from selfrepair.workflow.scheduler import check_arrays, check_gpus, check_queue, check_storage


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands, before all others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    return tmp_path


def command(folder: Path, name: str, *lines: str, status: int = 0) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {status}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("jobs", "per_second", "named"),
    [
        (100, None, "jobs is 100, but 2000"),
        (5000, 100, "max-jobs-per-timespan is 100, but 2000"),
        (100, 100, "jobs is 100 and max-jobs-per-timespan is 100, but 2000"),
    ],
)
def test_arrays_that_would_wait_for_ever_are_refused(jobs: int, per_second: int | None, named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} jobs of a rule may be ready at once.*set jobs: 2000"):
        check_arrays("ablate_heads", 2000, jobs, per_second)


@pytest.mark.parametrize(
    ("rules", "jobs", "per_second"), [("", 1, 1), (None, 1, 1), ("all", 2000, None), ("all", 2000, 2000)]
)
def test_other_arrays_are_taken(rules: str | None, jobs: int, per_second: int | None) -> None:
    check_arrays(rules, 2000, jobs, per_second)


def test_jobs_of_an_earlier_run_are_named(answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here := tmp_path / "with a blank").mkdir()
    monkeypatch.chdir(here)
    command(answers, "squeue", f"12 {tmp_path}/elsewhere", "13 /home/another")
    check_queue()
    command(answers, "squeue", *(f"{job} {here}" for job in (29, 21, 21, 22, 23, 24, 25)))
    with pytest.raises(ValueError, match=r"6 jobs of an earlier run .*\(21 22 23 24 25 \.\.\.\).*scancel"):
        check_queue()


def test_a_cluster_without_gpus_is_said_to_be_one(answers: Path) -> None:
    command(answers, "sinfo", "(null)", "gpu:a100:4")
    check_gpus()
    command(answers, "sinfo", "(null)")
    with pytest.raises(ValueError, match="no node of this cluster names a GPU"):
        check_gpus()


def test_a_slurm_that_is_not_there_or_down_is_said_so(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(answers, "squeue", status=1)
    with pytest.raises(ValueError, match=r"squeue does not answer .*is Slurm up"):
        check_queue()
    monkeypatch.setenv("PATH", str(answers))
    (answers / "squeue").unlink()
    with pytest.raises(ValueError, match="squeue is not here"):
        check_queue()


def test_results_in_storage_are_refused() -> None:
    check_storage(None, shared=True)
    with pytest.raises(
        ValueError, match=r"in storage \(s3\), but this workflow needs one filesystem that all its jobs see"
    ):
        check_storage("s3", shared=True)
    with pytest.raises(ValueError, match="jobs would not see each other's results"):
        check_storage(None, shared=False)
