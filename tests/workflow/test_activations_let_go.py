"""`cache.keep: false`: no activations stay on disk, and what is measured is the same."""

import shutil
from pathlib import Path

import pytest
import torch
import xarray as xr

from selfrepair.measure.activations import open_activations
from selfrepair.model.loading import load_model
from workflow.running import Space, log_of

pytestmark = pytest.mark.filterwarnings("error")

SHARDS = ("00000", "00001")
OF_MAIN_KIND = ("frozen_layernorm", "neurons")
OF_SHARD = ("other_donor", "donor_noise", "reinforcement", "moved_residual", "layer_ablations")
MEASURED = (
    *("thresholds.h5", "mean_activations.h5", "chosen_heads.json"),
    *(f"ablations/{kind}/{shard}.h5" for kind in ("resample", "mean", "zero") for shard in SHARDS),
    *(f"{name}/resample/{shard}.h5" for name in OF_MAIN_KIND for shard in SHARDS),
    *(f"{name}/{shard}.h5" for name in OF_SHARD for shard in SHARDS),
)


@pytest.fixture(scope="module")
def let_go(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """The tiny run measured anew from its prompts on, without activations."""
    space = finished.copy(tmp_path_factory.mktemp("let_go") / "space")
    space.change("cache.keep", False)
    assert space.jobs() == {}, "what is there became stale"
    for path in MEASURED:
        (space.run / path).unlink()
    shutil.rmtree(space.run / "activations")
    shutil.rmtree(space.run / "tables")
    space.make(*(str((space.run / path).relative_to(space.work)) for path in MEASURED))
    return space


@pytest.mark.parametrize("path", [path for path in MEASURED if path.endswith(".h5")])
def test_what_is_measured_is_the_same_to_the_bit(finished: Space, let_go: Space, path: str) -> None:
    with xr.open_dataset(finished.run / path) as kept, xr.open_dataset(let_go.run / path) as found:
        xr.testing.assert_identical(found.drop_attrs(), kept.drop_attrs())
        assert {name: found.attrs[name] for name in found.attrs if name.startswith("proof")} == {
            name: kept.attrs[name] for name in kept.attrs if name.startswith("proof")
        }


@pytest.mark.parametrize("shard", SHARDS)
def test_all_but_residuals_and_z_is_kept(finished: Space, let_go: Space, shard: str) -> None:
    path = Path("activations") / f"{shard}.h5"
    with xr.open_dataset(finished.run / path) as kept, xr.open_dataset(let_go.run / path) as found:
        assert set(kept.variables) - set(found.variables) == {"resid_pre", "z"}
        xr.testing.assert_identical(found.drop_attrs(), kept.drop_vars(["resid_pre", "z"]).drop_attrs())


def test_a_change_of_mind_makes_nothing_stale(let_go: Space) -> None:
    targets = [str((let_go.run / path).relative_to(let_go.work)) for path in MEASURED]
    assert let_go.jobs(*targets) == {}
    let_go.change("cache.keep", True)
    assert let_go.jobs(*targets) == {}
    let_go.change("cache.keep", False)


def test_layers_that_nothing_starts_from_are_not_held(let_go: Space) -> None:
    model = load_model(
        let_go.work / "results" / "snapshots" / "models" / "tiny", device="cpu", dtype="float32", center_unembed=True
    )
    path = let_go.run / "activations" / "00000.h5"
    tokens = tokens_of(let_go)
    with open_activations(path, model, tokens, layers=[0]) as cached:
        clean = cached.clean_run(slice(0, 2))
        assert clean.z[0].shape[:2] == clean.resid_pre[1].shape[:2] == (2, tokens.shape[1])
        with pytest.raises(KeyError):
            clean.z[1]
    other = tokens.flip(0)
    with pytest.raises(ValueError, match=r"00000\.h5 is of another clean run"), open_activations(path, model, other):
        pass


def test_logs_say_that_the_clean_run_is_made_again(finished: Space, let_go: Space) -> None:
    for log in ("ablate_heads/zero/finished", "ablate_layers/finished"):
        assert "clean run" in log_of(let_go, log)
        assert "clean run" not in log_of(finished, log)


def tokens_of(space: Space) -> torch.Tensor:
    """Of the first shard."""
    with xr.open_dataset(space.run / "tokens.h5") as dataset:
        return torch.from_numpy(dataset["tokens"].values[:4]).long()
