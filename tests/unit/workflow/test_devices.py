"""A GPU for each job of a machine that has several; the devices are names that CUDA_VISIBLE_DEVICES holds."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from selfrepair.workflow.devices import VISIBLE, device_of_its_own, visible_devices

HOLD = (
    "import os, sys\nfrom selfrepair.workflow.devices import device_of_its_own\n"
    "with device_of_its_own():\n    print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n    sys.stdin.read()\n"
)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@contextmanager
def another_job() -> Iterator[str]:
    """A process that has a device as long as the block lasts; gives which."""
    job = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdin is not None
    try:
        yield job.stdout.readline().strip()
    finally:
        job.stdin.close()
        job.wait()


@pytest.mark.parametrize("names", ["0,1", "GPU-1a2b,GPU-3c4d", "MIG-GPU-1/2/0,MIG-GPU-1/3/0"])
def test_each_job_sees_a_device_that_no_other_has(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, names)
    first, second = names.split(",")
    with another_job() as one, another_job() as other:
        assert (one, other) == (first, second)
        with (
            pytest.raises(ValueError, match=r"all 2 GPUs have a job each: run no more .*`--resources gpu=2`"),
            device_of_its_own(),
        ):
            pass
    with device_of_its_own():
        assert os.environ[VISIBLE] == first


def test_a_job_that_is_killed_lets_its_device_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    job = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline().strip() == "0"
    job.kill()
    job.wait()
    with another_job() as device:
        assert device == "0"


@pytest.mark.parametrize("names", ["", "3"])
def test_where_there_is_nothing_to_choose_nothing_is_done(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a job of Slurm's, to which it shows a device under a number that others have, too."""
    monkeypatch.setenv(VISIBLE, names)
    with device_of_its_own(), device_of_its_own():
        assert os.environ[VISIBLE] == names


def test_devices_are_counted_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_devices() == ["0", "1"]
    driver.unlink()
    assert visible_devices() == []
