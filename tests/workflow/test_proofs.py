"""Every job that replays repeats some of its ablations by plain runs, says so in its file, and stops where the two differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xarray as xr

from selfrepair.engine import replay
from selfrepair.engine.single_attention import Attentions
from selfrepair.measure.ablations import measure_ablations
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.measure.donor_noise import measure_donor_noise
from selfrepair.measure.frozen_layernorm import measure_frozen_layernorm
from selfrepair.measure.layer_ablations import measure_layer_ablations
from selfrepair.measure.moved_residual import measure_moved_residual
from selfrepair.measure.neurons import measure_neurons
from selfrepair.measure.reinforcement import measure_reinforcement
from selfrepair.measure.shard import open_shard
from workflow.running import Space

COMPUTE = {"device": "cpu", "dtype": "float32", "center_unembed": True}
MEASUREMENTS = {
    **{f"ablations/{kind}": 2 for kind in ("resample", "mean", "zero")},
    "frozen_layernorm/resample": 2,
    "neurons/resample": 2,
    **dict.fromkeys(("donor_noise", "layer_ablations", "reinforcement", "moved_residual"), 2),
}


def test_every_file_says_what_was_repeated(finished: Space) -> None:
    checks = pd.read_parquet(finished.run / "tables" / "resample" / "checks.parquet")
    assert len(checks) == len(MEASUREMENTS)
    repeated = 0
    for folder, count in MEASUREMENTS.items():
        files = sorted((finished.run / folder).glob("*.h5"))
        assert len(files) == count
        for path in files:
            with xr.open_dataset(path, engine="h5netcdf") as dataset:
                assert dataset.attrs["proof_numbers"] >= dataset.attrs["proof_ablations"] >= 1, path
                assert 0 <= dataset.attrs["proof_largest_difference"] < 1e-4
                repeated += int(dataset.attrs["proof_ablations"])
    assert checks["repeated"].sum() == repeated
    assert checks["largest_difference"].max() > 0
    text = (finished.run / "findings.md").read_text(encoding="utf-8")
    assert (
        f"| Checked | {repeated} ablations in {len(checks)} measurements repeated by plain runs of the whole model"
        in text
    )


# --- faults planted in a job -----------------------------------------------------------------------------------------


def a_longer_change(monkeypatch: pytest.MonkeyPatch) -> None:
    own = replay.SuffixReplay._run_changed
    monkeypatch.setattr(
        replay.SuffixReplay,
        "_run_changed",
        lambda self, start, batch, change, seen: own(self, start, batch, 1.01 * change, seen),
    )


def a_longer_z(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Attentions._run
    monkeypatch.setattr(Attentions, "_run", lambda *args, **options: 1.01 * own(*args, **options))


CHOSEN: dict[str, Any] = {"heads": "chosen"}
JOBS: dict[str, tuple[Callable[..., None], dict[str, Any], Callable[[pytest.MonkeyPatch], None]]] = {
    "ablations": (measure_ablations, {**CHOSEN, "kind": "resample", "which": "all"}, a_longer_change),
    "ablations_top": (measure_ablations, {**CHOSEN, "kind": "zero", "which": "top"}, a_longer_change),
    "frozen_layernorm": (measure_frozen_layernorm, {**CHOSEN, "kind": "resample"}, a_longer_change),
    "donor_noise": (measure_donor_noise, {**CHOSEN, "donors": 2}, a_longer_change),
    "neurons": (
        measure_neurons,
        {**CHOSEN, "kind": "resample", "neuron_layer": None, "top_neurons": 5},
        a_longer_change,
    ),
    "layer_ablations": (measure_layer_ablations, {}, a_longer_change),
    "reinforcement": (measure_reinforcement, {"scales": [1.0, 3.0], "seed": 0}, a_longer_z),
    "moved_residual": (measure_moved_residual, CHOSEN, a_longer_z),
}
"""Measurements of a shard, with their options and a fault that the proof of each must notice."""


def run(space: Space, name: str, out: Path) -> None:
    """A measurement of the finished run's first shard."""
    measure, options, _ = JOBS[name]
    files = {
        "model": space.work / "results" / "snapshots" / "models" / "tiny" / "manifest.json",
        "tokens": space.run / "tokens.h5",
        "activations": space.run / "activations" / "00000.h5",
        "thresholds": space.run / "thresholds.h5",
    }
    if "heads" in options:
        options = {**options, "heads": read_chosen_heads(space.run / "chosen_heads.json")}
    with open_shard(files, prompts=(0, 4), compute=COMPUTE) as shard:
        measure(shard, **options, out=out, provenance={"identity": "a test's"})


@pytest.mark.parametrize("name", JOBS)
def test_a_fault_stops_the_job_and_leaves_no_file(
    finished: Space, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(finished, name, tmp_path / "sound.h5")
    with xr.open_dataset(tmp_path / "sound.h5", engine="h5netcdf") as dataset:
        assert dataset.attrs["proof_ablations"] >= 1
    *_, plant = JOBS[name]
    plant(monkeypatch)
    # Where a fault breaks the sums too, the proof alone must be enough.
    for module in ("engine.sweep", "measure.layer_ablations"):
        monkeypatch.setattr(f"selfrepair.{module}.check_identity", lambda *_: None)
    monkeypatch.setattr("selfrepair.measure.neurons._check_neurons", lambda *_: None)
    with pytest.raises(ValueError, match="are not what the whole model gives with plain hooks"):
        run(finished, name, tmp_path / "spoiled.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["sound.h5"]
