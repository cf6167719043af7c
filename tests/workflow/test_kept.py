"""An ablation job that is ended goes on from the layers that it finished, and its result is that of one that nobody ended."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from selfrepair.engine.heads import Heads
from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.kept import KIND, kept_beside
from selfrepair.measure import ablations
from selfrepair.measure.ablations import measure_ablations
from selfrepair.measure.shard import open_shard
from selfrepair.workflow.progress import Progress
from workflow.running import Space
from workflow.test_proofs import COMPUTE

pytestmark = pytest.mark.filterwarnings("error")

# Two heads a layer and one, out of order; two prompts at a time.
HEADS: list[tuple[int, int]] = [(1, 3), (0, 1), (1, 0)]
PARTS = 4
KINDS = [("resample", "all"), ("zero", "top")]


@pytest.fixture(autouse=True)
def two_prompts_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfrepair.model.model.BATCH_TOKENS", 32)


def measure(space: Space, out: Path, *, every: float = np.inf, heads: Heads = HEADS, **options: str) -> None:
    files = {
        "model": space.work / "results" / "snapshots" / "models" / "tiny" / "manifest.json",
        "tokens": space.run / "tokens.h5",
        "activations": space.run / "activations" / "00000.h5",
        "thresholds": space.run / "thresholds.h5",
    }
    options = {"kind": "resample", "which": "all", **options}
    with open_shard(files, prompts=(0, 4), compute=COMPUTE) as shard:
        provenance = {"identity": "a test's", "config": {"prompts": (0, 4)}}
        measure_ablations(shard, heads=heads, out=out, provenance=provenance, keep_every=every, **options)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Measure until so many layers are finished, and end there, as by Ctrl-C."""

    def run(space: Space, out: Path, layers: int, **options: object) -> None:
        left = [layers]

        def advance(*_: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(Progress, "advance", advance)
            with pytest.raises(KeyboardInterrupt):
                measure(space, out, **options)
        assert not out.exists()

    return run


def contents(path: Path) -> dict[str, bytes]:
    """All that a file says, to the bit."""
    with h5py.File(path) as file:
        values = {name: variable[...].tobytes() for name, variable in file.items()}
        return values | {f"attribute {name}": np.asarray(value).tobytes() for name, value in file.attrs.items()}


@pytest.mark.parametrize(("kind", "which"), KINDS, ids=[" ".join(kind) for kind in KINDS])
@pytest.mark.parametrize("every", [0.0, np.inf], ids=["as it goes", "when it is ended"])
@pytest.mark.parametrize("layers", range(PARTS))
def test_a_job_that_was_ended_goes_on(
    finished: Space,
    ended: Callable[..., None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    which: str,
    every: float,
    layers: int,
) -> None:
    whole, out = tmp_path / "whole" / "00000.h5", tmp_path / "ended" / "00000.h5"
    measure(finished, whole, kind=kind, which=which)
    ended(finished, out, layers, every=every, kind=kind, which=which)
    swept = []
    own = Progress.advance
    with pytest.MonkeyPatch.context() as patched, caplog.at_level(logging.INFO):
        patched.setattr(Progress, "advance", lambda self, units=1: (swept.append(units), own(self, units)))
        measure(finished, out, every=every, kind=kind, which=which)
    # A layer has one head here, the other two.
    assert swept == [1, 2, 1, 2][layers:]
    batch, layer = divmod(layers, 2)
    wanted = (
        f"goes on with layer {layer} of prompts {2 * batch} to {2 * batch + 1} of the shard: {layers} layers were kept"
    )
    assert any(line.startswith(wanted) for line in caplog.messages) == bool(layers)
    assert any("heads, " in line and f"{6} of {6} heads" in line for line in caplog.messages)
    assert contents(out) == contents(whole)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("other", [{"heads": HEADS[:2]}, {"which": "top"}])
def test_another_job_of_the_same_path_starts_anew(
    finished: Space, ended: Callable[..., None], tmp_path: Path, other: dict
) -> None:
    whole, out = tmp_path / "whole" / "00000.h5", tmp_path / "ended" / "00000.h5"
    ended(finished, out, 2)
    measure(finished, out, **other)
    measure(finished, whole, **other)
    assert contents(out) == contents(whole)


def test_parts_of_another_machine_are_not_used(
    finished: Space, ended: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "00000.h5"
    ended(finished, out, 2)
    own = ablations._runs
    for name in ("torch", "device", "threads", "dtype"):
        with monkeypatch.context() as patched:
            patched.setattr(ablations, "_runs", lambda model, name=name: {**own(model), name: "another"})
            copied = tmp_path / name / out.name
            shutil.copytree(kept_beside(out), kept_beside(copied))
            ended(finished, copied, 0)
        assert list(kept_beside(copied).iterdir()) == []


def test_a_wrong_number_that_was_kept_is_caught_and_not_used_again(
    finished: Space, ended: Callable[..., None], tmp_path: Path
) -> None:
    """Under a sound seal: no more than what is repeated by plain runs can tell."""
    out = tmp_path / "00000.h5"
    ended(finished, out, PARTS - 1, every=0.0)
    for path in kept_beside(out).iterdir():
        with open_hdf5(path, KIND) as dataset:
            found, attrs = {name: variable.values for name, variable in dataset.variables.items()}, dataset.attrs
        with write_hdf5(
            path, kind=KIND, provenance={}, attrs={name: attrs[name] for name in ("provenance", "prompts")}
        ) as file:
            for name, values in found.items():
                dims = [f"{name}_{axis}" for axis in range(values.ndim)]
                file.dims(**dict(zip(dims, values.shape, strict=True)))
                file.put(name, dims, values + (np.float32(0.01) if name == "logit_change" else 0))
    with pytest.raises(ValueError, match="are not what the whole model gives with plain hooks: logit_change"):
        measure(finished, out)
    assert list(tmp_path.iterdir()) == []
    measure(finished, out)
