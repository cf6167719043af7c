"""`selfrepair doctor`: each thing that may be wrong is said with what to do, and only what stops a run is broken."""

import errno
import json
import os
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import h5py
import pytest
from typer.testing import CliRunner

from selfrepair.commands import doctor
from selfrepair.commands.app import app

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, no programs but this environment's, and a hub that is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("SNAKEMAKE_PROFILE", "SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def program(folder: Path, name: str, prints: str = "", status: int = 0) -> None:
    """A program of that name on the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{prints}'\nexit {status}\n")
    path.chmod(0o755)
    if str(folder) not in os.environ["PATH"].split(":"):
        os.environ["PATH"] += f":{folder}"


def looked_at(status: int = 0) -> dict[str, dict[str, str]]:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == status, done.output
    found = json.loads(done.stdout)
    assert found["broken"] == [each["check"] for each in found["checks"] if each["status"] == "broken"]
    assert bool(found["broken"]) == bool(status)
    assert all(each["fix"] for each in found["checks"] if each["status"] == "broken")
    return {each["check"]: each for each in found["checks"]}


def test_of_this_environment_nothing_is_broken(tmp_path: Path) -> None:
    found = looked_at()
    assert {*doctor.CHECKS, "pins"} == set(found)
    assert found["hdf5"]["found"].endswith(f"in {tmp_path}")
    assert (found["hub"]["status"], found["slurm"]["status"]) == ("note", "note")
    assert list(tmp_path.iterdir()) == []
    printed = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "80"}).stdout
    assert printed.splitlines()[-1] == "Nothing is broken."
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert not any(line.startswith("\x1b") for line in printed.splitlines())


def test_versions_are_those_that_are_installed() -> None:
    found = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["versions"]
    assert found["h5py"] == h5py.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_packages_that_are_missing_or_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "requires", lambda _: ["numpy>=99", "no-such-package>=1", "rich>=1", "nothing; extra == 'x'"]
    )
    found = list(doctor._packages())
    assert [each.status for each in found[:2]] == ["broken", "broken"]
    assert found[0].found == "missing: no-such-package"
    assert found[1].found.startswith("out of range: numpy ")
    assert "pip install -r" in found[0].fix


def test_other_versions_than_the_pins_are_a_note(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "requirements.lock").write_text("# made\nNumPy==0.1\nrich==0.2\n")
    monkeypatch.setattr(doctor, "HOME", tmp_path)
    monkeypatch.setattr(doctor, "requires", lambda _: ["numpy", "rich"])
    assert [(each.check, each.status) for each in doctor._packages()] == [("packages", "ok"), ("pins", "note")]
    assert "(pinned 0.1)" in list(doctor._packages())[1].found


def test_a_gpu_that_torch_does_not_see_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    program(tmp_path / "bin", "nvidia-smi", "GPU 0: NVIDIA H100 (UUID: GPU-1)")
    found = looked_at(1)["device"]
    assert found["found"].startswith("1 NVIDIA GPUs, but torch ")
    assert "install the torch build for your driver" in found["fix"]


def test_a_gpu_that_torch_cannot_use_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    seen = namedtuple("seen", "name total_memory")("Old GPU", 8_000_000_000)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: seen)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(torch, "ones", refuse)
    found = looked_at(1)["device"]
    assert found["found"] == (
        "cuda:0 is Old GPU, 8.0 GB, but torch cannot multiply on it: CUDA error: no kernel image is available"
    )


@pytest.mark.parametrize(("check", "key", "value"), [("memory", "memory_mb", 900), ("disk", "disk_mb", 90)])
def test_too_little_memory_or_disk_is_broken(monkeypatch: pytest.MonkeyPatch, check: str, key: str, value: int) -> None:
    monkeypatch.setattr(doctor, key, lambda *_: value)
    assert looked_at(1)[check]["found"].startswith(f"{value} MB")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("unable to lock file, errno = 37, No locks available"), "HDF5_USE_FILE_LOCKING=FALSE"),
        (OSError(errno.EROFS, "Read-only file system"), "can only be read"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk or the quota is full"),
    ],
)  # fmt: skip
def test_a_filesystem_that_hdf5_cannot_use_is_broken(
    monkeypatch: pytest.MonkeyPatch, error: OSError, said: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(h5py, "File", refuse)
    assert said in looked_at(1)["hdf5"]["fix"]


def test_results_are_where_locks_are_tried(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert looked_at()["hdf5"]["found"].endswith(f"in {tmp_path / 'results'}")
    assert list((tmp_path / "results").iterdir()) == []


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = looked_at()["hub"]
    assert found["status"] == "note"
    assert found["found"].startswith("http://127.0.0.1:9 cannot be reached (")
    assert "path:" in found["fix"]


def test_another_environment_s_snakemake_is_said(tmp_path: Path) -> None:
    os.environ["PATH"] = ""
    program(tmp_path / "bin", "snakemake")
    found = looked_at()["snakemake"]
    assert found["status"] == "note"
    assert "of another environment" in found["found"]
    os.environ["PATH"] = ""
    assert "no command `snakemake` is on the PATH" in looked_at()["snakemake"]["found"]


def test_a_damaged_profile_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "HOME", tmp_path)
    assert [each.status for each in doctor._profile()] == ["note"]
    (tmp_path / "Snakefile").touch()
    (tmp_path / "profiles" / "default").mkdir(parents=True)
    for content in ("a: [", "just words", "cores: all"):
        (tmp_path / "profiles" / "default" / "config.yaml").write_text(content)
        assert [each.status for each in doctor._profile()] == ["broken"], content


def test_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "bin", "sbatch")
    assert "squeue, sinfo, scontrol, scancel are not here" in looked_at()["slurm"]["found"]
    for name in doctor.SLURM:
        program(tmp_path / "bin", name, "main up")
    assert looked_at()["slurm"]["status"] == "ok"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert looked_at()["slurm"]["found"] == "this is Slurm job 7"
    program(tmp_path / "bin", "sinfo", "sinfo: error", 1)
    assert looked_at()["slurm"]["found"] == "profiles/slurm will not do here: Slurm does not answer (sinfo: error)"


def test_a_check_that_fails_itself_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("it is\x1b odd")
        yield

    monkeypatch.setitem(doctor.CHECKS, "device", fail)
    found = looked_at(1)
    assert found["device"]["found"] == "could not be looked at: RuntimeError: it is\x1b odd"
    assert set(found) >= set(doctor.CHECKS)
    assert "\x1b" not in CliRunner().invoke(app, ["doctor"]).stdout
