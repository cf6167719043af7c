"""A finished run opened in Python: every view is what lies on the disk, and nothing of another run is in it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer

import selfrepair
from selfrepair.files.hdf5 import MADE_BY
from selfrepair.measure.neurons import write_no_neurons
from selfrepair.run import opened
from selfrepair.run.cache import cached_run
from selfrepair.run.opened import BY_KIND, Run, find_runs
from selfrepair.run.shards import join_shards
from workflow.running import Space

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ("resample", "mean", "zero")
SHARDS = ("00000", "00001")
N_LAYERS, N_HEADS, N_PROMPTS, LENGTH = 2, 4, 8, 16


@pytest.fixture(scope="module")
def run(finished: Space) -> Run:
    return selfrepair.open_run(finished.run)


def on_disk(run: Run, name: str, variable: str, axis: int, kind: str = "") -> np.ndarray:
    """A variable of both shards, by HDF5 alone."""
    parts = []
    for shard in SHARDS:
        with h5py.File(run.folder / name / kind / f"{shard}.h5") as file:
            parts.append(file[variable][...])
    return np.concatenate(parts, axis)


def test_a_run_is_found_from_its_folder_from_results_and_from_where_results_lie(run: Run, finished: Space) -> None:
    for path in (finished.run, finished.work / "results", finished.work, str(finished.work)):
        found = selfrepair.open_run(path)
        assert (found.model, found.corpus, found.folder.resolve()) == ("tiny", "words", finished.run.resolve())
    assert find_runs(finished.work / "results") == [finished.work / "results" / "tiny" / "words"]
    assert "tiny on words, resample, mean, zero: 120 tokens" in repr(run)


def test_every_table_of_every_kind_is_there(run: Run) -> None:
    assert run.kinds == KINDS
    assert run.main_kind == "resample"
    for kind in KINDS:
        files = {path.stem: path for path in (run.folder / "tables" / kind).glob("*.parquet")}
        assert set(run.tables(kind)) == set(files)
        for name, path in files.items():
            pd.testing.assert_frame_equal(run.table(name, kind), pd.read_parquet(path))
    assert len(run.heads()) == N_LAYERS * N_HEADS
    assert set(run.heads(selection="all")["selection"]) == {"all"}
    assert run.head(1, 2)["self_repair"] == run.heads().query("layer == 1 and head == 2")["self_repair"].item()
    assert run.model_mean("mean")["n_heads"] == N_LAYERS * N_HEADS
    assert list(run.layers()["layer"]) == [0, 1]


@pytest.mark.parametrize("name", [name for name in MADE_BY if name not in ("tokens", "thresholds", "mean_activations")])
def test_shards_are_one_data_set(run: Run, name: str) -> None:
    found = run.measured(name)
    kind = "resample" if name in BY_KIND else ""
    with h5py.File(run.folder / name / kind / f"{SHARDS[0]}.h5") as file:
        held = {
            key for key, of in file.items() if not (of.is_scale and of.attrs["NAME"].startswith(b"This is a netCDF"))
        }
    joined = [key for key, of in found.variables.items() if {"prompt", "token"} & set(of.dims)]
    assert joined
    for key in joined:
        dims = found[key].dims
        axis = dims.index("token" if "token" in dims else "prompt")
        wanted = on_disk(run, name, str(key), axis, kind)
        if (name, key) == ("neurons", "prompt"):  # there a shard counts from its own first prompt
            with h5py.File(run.folder / name / kind / f"{SHARDS[0]}.h5") as file:
                wanted = wanted + np.where(np.arange(len(wanted)) < len(file["prompt"]), 0, 4)
        np.testing.assert_array_equal(found[key].values, wanted)
    # What is of one shard alone is left out, and nothing else.
    assert held - set(found.variables) == ({"z_sum"} if name == "activations" else set())


WHERE: dict[str, dict[str, Any]] = {
    "a head": {"head": 3},
    "heads and prompts out of order": {"head": [5, 2], "prompt": [7, 0, 3, 4]},
    "backwards over both shards": {"prompt": slice(6, 1, -2), "pos": 3},
    "one prompt": {"prompt": -1},
    "nothing": {"prompt": slice(5, 5)},
    "no prompts of a head": {"prompt": [], "head": 2},
    "no heads": {"head": slice(0, 0)},
    "one number": {"head": 1, "prompt": 6, "pos": 0},
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
def test_any_part_of_the_shards_can_be_read(run: Run, where: dict[str, Any]) -> None:
    dims = ("head", "prompt", "pos")
    whole = xr.DataArray(on_disk(run, "ablations", "self_repair", 1, "resample"), dims=dims)
    found = run.ablations()["self_repair"].isel(where)
    wanted = whole.isel(where)
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found.values, wanted.values)


def test_a_shard_is_read_where_it_is_used(copied: Space) -> None:
    ablations = selfrepair.open_run(copied.run).ablations()
    path = copied.run / "ablations" / "resample" / "00001.h5"
    path.unlink()
    assert np.isfinite(ablations["self_repair"].isel(prompt=3).values).all()
    with pytest.raises(ValueError, match=r"00001.h5 does not exist: remake it"):
        ablations["self_repair"].isel(prompt=4).load()


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_a_head(run: Run, kind: str) -> None:
    found = run.tokens(1, 2, kind)
    assert len(found) == N_PROMPTS * (LENGTH - 1)
    for name in ("direct_effect", "logit_change", "self_repair", "ablated_scale"):
        np.testing.assert_array_equal(found[name], on_disk(run, "ablations", name, 1, kind)[6].ravel())
    top, mean = found[found["selected"]], run.head(1, 2, kind)
    assert len(top) == mean["n_tokens"] == 12
    assert top["self_repair"].mean() == pytest.approx(mean["self_repair"], abs=1e-6)
    assert top["direct_effect"].min() >= found[~found["selected"]]["direct_effect"].max()
    with h5py.File(run.folder / "tokens.h5") as file:
        ids = file["tokens"][:N_PROMPTS]
    words = AutoTokenizer.from_pretrained(run.folder.parents[1] / "snapshots" / "models" / "tiny")
    row = found[(found["prompt"] == 5) & (found["pos"] == 7)].iloc[0]
    assert (row["token"].strip(), row["correct_token"].strip()) == tuple(
        words.convert_ids_to_tokens(ids[5, 7:9].tolist())
    )
    assert found.attrs["ablation"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_repairs_add_up_to_self_repair(run: Run, kind: str) -> None:
    for layer, head in ((0, 1), (1, 3)):
        found, row = run.repairs(layer, head, kind), run.head(layer, head, kind)
        assert found["repair"].sum() == pytest.approx(row["self_repair"], abs=1e-5)
        of = found.groupby("by")["repair"].sum()
        assert of["mlp"] == pytest.approx(row["self_repair_from_mlps"], abs=1e-5)
        assert of["layernorm"] == row["self_repair_from_layernorm"]
        assert (found["repair_low"] <= found["repair"]).all()
        assert (found["by"] == "head").sum() == N_HEADS * (N_LAYERS - 1 - layer)


def test_repairs_of_a_chosen_head_are_those_of_its_table(run: Run) -> None:
    rows = run.table("repair_rows")
    layer, head = run.chosen_heads[0]
    wanted = rows[(rows["layer"] == layer) & (rows["head"] == head) & (rows["by"] != "all")].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.repairs(layer, head), wanted[run.repairs(layer, head).columns], rtol=1e-6)


def test_texts_join_to_the_prompt(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.folder.parents[1] / "snapshots" / "models" / "tiny")
    for prompt in (0, 7):
        assert "".join(run.text(prompt)) == tokenizer.decode(run.prompts[prompt])
        assert len(run.text(prompt)) == LENGTH
    assert run.text(0)[0] == "<s>"


def test_findings_are_read_only_as_they_were_made(copied: Space) -> None:
    run = selfrepair.open_run(copied.run)
    assert run.findings.startswith("# Findings: tiny on words")
    path = copied.run / "findings.md"
    path.write_text(path.read_text(encoding="utf-8") + "and more", encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"findings.md is not as it was made \(findings.md was edited\): run `snakemake"
    ):
        run.findings  # noqa: B018
    path.unlink()
    with pytest.raises(ValueError, match="has not been made"):
        run.findings  # noqa: B018


def test_results_may_be_moved(finished: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished.work / "results", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    run = selfrepair.open_run("elsewhere")
    assert run.ablations().sizes["prompt"] == N_PROMPTS
    assert len(run.tables()) == len(selfrepair.open_run(finished.run).tables())


def test_what_an_earlier_config_left_is_never_mixed_in(copied: Space) -> None:
    copied.change("tokens.prompts", 4)
    heads = [f"results/tiny/words/tables/{kind}/heads.parquet" for kind in ("resample", "zero")]
    copied.make(*heads)
    run = selfrepair.open_run(copied.run)
    assert (copied.run / "ablations" / "resample" / "00001.h5").exists()
    assert run.ablations().sizes["prompt"] == run.prompts.shape[0] == 4
    assert set(run.tokens(0, 0)["prompt"]) == {0, 1, 2, 3}
    assert run.kinds == ("resample", "zero")
    assert "donor_noise" not in run.tables()
    assert {"heads", "layers", "model"} <= set(run.tables())
    with pytest.raises(
        ValueError, match=r"donor_noise.parquet is not of this run .*8 in it and 4 in .*: run `snakemake`"
    ):
        run.table("donor_noise")
    with pytest.raises(ValueError, match=r"00000.h5 is not of this run .*thresholds.h5 is not the one"):
        run.measured("neurons")
    with pytest.raises(ValueError, match="is not of this run"):
        run.heads("mean")


def _exchange(space: Space) -> None:
    for kind in ("mean", "zero"):
        shutil.copy2(space.run / "ablations" / kind / "00001.h5", space.run / f"{kind}.h5")
    shutil.move(space.run / "mean.h5", space.run / "ablations" / "zero" / "00001.h5")
    shutil.move(space.run / "zero.h5", space.run / "ablations" / "mean" / "00001.h5")


def _flip(name: str) -> Callable[[Space], None]:
    def flip(space: Space) -> None:
        path = space.run / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return flip


def _thresholds(space: Space) -> None:
    space.change("statistics.top_fraction", 0.2)
    space.make("results/tiny/words/thresholds.h5")


DAMAGE: dict[str, tuple[Callable[[Space], None], Callable[[Run], object], str]] = {
    "shards exchanged": (_exchange, lambda run: run.ablations("zero"), "not those that .*heads.parquet was made of"),
    "a bit of a table": (
        _flip("tables/resample/heads.parquet"),
        lambda run: run.heads(),
        "heads.parquet is damaged .*remake it",
    ),
    "a bit of a shard": (
        _flip("ablations/resample/00001.h5"),
        lambda run: run.ablations().load(),
        "00001.h5 is damaged .*remake it",
    ),
    "other top tokens": (_thresholds, lambda run: run.tokens(0, 0), "thresholds.h5 is not the one that it was made of"),
    "activations removed": (
        lambda space: shutil.rmtree(space.run / "activations"),
        lambda run: run.cache(),
        "activations/00000.h5 is not there: the run let its activations go",
    ),
    "a table without record": (
        lambda space: shutil.rmtree(space.work / "results" / "provenance"),
        lambda run: run.heads(),
        "no record says how it was made",
    ),
}


@pytest.mark.parametrize(("damage", "read", "said"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(
    copied: Space, damage: Callable[[Space], None], read: Callable[[Run], object], said: str
) -> None:
    damage(copied)
    with pytest.raises(ValueError, match=f"(?s){said}") as refused:
        read(selfrepair.open_run(copied.run))
    assert str(refused.value).count("\n") < 2


WRONG: dict[str, tuple[Callable[[Run], object], str]] = {
    "a head": (lambda run: run.head(5, 0), r"no head 5.0 in this run: the model has layers 0 to 1 of heads 0 to 3"),
    "a head's tokens": (lambda run: run.tokens(0, 9), "no head 0.9 in this run"),
    "a head's repairs": (lambda run: run.repairs(-1, 0), "no head -1.0 in this run"),
    "a kind": (lambda run: run.heads("zeros"), "no 'zeros' ablation: wanted one of resample, mean, zero"),
    "a selection": (lambda run: run.heads(selection="best"), "no rows of selection 'best': wanted one of top, all"),
    "a table": (
        lambda run: run.table("head"),
        "there is no table 'head' of resample ablation .*: wanted one of ablation_type",
    ),
    "something measured": (
        lambda run: run.measured("ablation"),
        "nothing measured is called 'ablation': wanted one of",
    ),
    "a prompt": (lambda run: run.text(8), "no prompt 8: the run has prompts 0 to 7"),
    "a prompt of the cache": (lambda run: run.cache([8]), r"no prompts \[8\]: the run has prompts 0 to 7"),
}


@pytest.mark.parametrize(("ask", "said"), WRONG.values(), ids=WRONG)
def test_wrong_questions_are_told_what_is_right(run: Run, ask: Callable[[Run], object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        ask(run)
    assert "\n" not in str(refused.value)


def test_what_is_no_run_is_refused(finished: Space, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere is no folder: name that of a run"):
        selfrepair.open_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run with a table of heads"):
        selfrepair.open_run(tmp_path)
    for corpus in ("one", "two"):
        shutil.copytree(finished.run / "tables", tmp_path / "results" / "tiny" / corpus / "tables")
    with pytest.raises(ValueError, match=r"holds 2 runs: name one of .*tiny/one, .*tiny/two"):
        selfrepair.open_run(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_cached_activations_are_those_of_transformerlens(run: Run) -> None:
    folder = run.folder.parents[1] / "snapshots" / "models" / "tiny"
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    name = (
        "HuggingFaceTB/SmolLM2-135M-Instruct"  # for the adapter's sake; weights and sizes are those of the model given
    )
    bridge = TransformerBridge.boot_transformers(name, hf_model=hf, tokenizer=tokenizer, dtype=torch.float32)
    prompts = [6, 1]
    with torch.no_grad():
        _, wanted = bridge.run_with_cache(torch.from_numpy(run.prompts[prompts]).long())
    cache = run.cache(prompts)
    assert len(cache) == len(list(cache)) == 3 * N_LAYERS - 1
    for hook, values in cache.items():
        torch.testing.assert_close(values, wanted[hook], atol=2e-5, rtol=1e-4)
    assert torch.equal(cache["z", 1], cache["blocks.1.attn.hook_z"])
    assert torch.equal(cache["resid_pre", -1], cache["blocks.0.hook_resid_post"])
    assert torch.equal(cache.to_transformer_lens(bridge)["z", 0], cache["z", 0])
    with pytest.raises(
        KeyError, match=r"blocks.1.hook_mlp_out' is not cached: the run keeps blocks.LAYER.hook_resid_pre"
    ):
        cache["mlp_out", 1]


def test_a_cache_without_residuals_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    without = run.measured("activations").drop_vars(["z", "resid_pre"])
    monkeypatch.setattr(run, "measured", lambda name: without)
    with pytest.raises(ValueError, match=r"without residuals and z .*cache.keep: false.*set it to true"):
        cached_run(run, 0)


def test_the_recipe_of_the_docs_leaves_out_shards_of_an_earlier_larger_run(
    copied: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (REPOSITORY / "docs" / "files.md").read_text(encoding="utf-8")
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "open_run" in block]
    copied.change("tokens.prompts", 4)
    copied.make("results/tiny/words/tables/resample/heads.parquet")
    monkeypatch.chdir(copied.work)
    found: dict[str, Any] = {}
    exec(block.replace("smollm2-135m-instruct/wikipedia", "tiny/words"), found)
    with h5py.File(copied.run / "ablations" / "resample" / "00000.h5") as file:
        wanted = file["repair_by_head"][...].sum(1) / file["n_selected"][...].sum(1)[:, None, None]
    np.testing.assert_allclose(found["repair_by_head"].values, wanted, rtol=1e-6)


def test_kinds_that_compute_other_tokens_are_of_the_same_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind says for itself whether it computes all tokens; what else differs is of another run."""
    own = opened.read_settings
    for differs, kinds in (({"tokens": "top"}, KINDS), ({"n_bootstrap": 11}, ("resample", "zero"))):

        def of_mean(path: Path, differs: dict[str, Any] = differs) -> dict[Any, Any]:
            return own(path) | (differs if path.parent.name == "mean" else {})

        monkeypatch.setattr(opened, "read_settings", of_mean)
        found = selfrepair.open_run(run.folder)
        assert found.kinds == kinds
    assert len(found.table("heads", "zero")) == len(run.table("heads", "zero"))
    with pytest.raises(ValueError, match="n_bootstrap is 11 in it"):
        found.table("heads", "mean")


def test_figures_are_of_the_kinds_that_have_their_tables(finished: Space, tmp_path: Path) -> None:
    """A kind that ablates listed heads has none of the chosen heads'; without one that is resampled, layers still are."""
    space = finished.copy(tmp_path / "space")
    for path in (space.run / "tables" / "mean").glob("layernorm_scale_*"):
        path.unlink()
    found = selfrepair.open_run(space.run)
    assert list(found.plot.panels("layernorm_scale_ratio")) == ["resample", "zero", "shares"]
    assert list(found.plot.panels("ablation_types")) == [*KINDS, "norms"]
    found.__dict__["kinds"] = ("mean", "zero")
    assert len(found.table("layer_ablation", "resample")) == 2 * N_LAYERS
    assert found.plot.panels("layer_ablation")
    with pytest.raises(ValueError, match="no 'resample' ablation"):
        found.table("nothing", "resample")


def test_neurons_that_were_not_measured_give_their_reason(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.h5" for number in range(2)]
    for path in paths:
        write_no_neurons(path, [(0, 1)], attrs={"note": "of several experts", "n_prompts": 4}, provenance={})
    with pytest.raises(ValueError, match=r"0\.h5 holds no measurement: of several experts"):
        join_shards(paths, "neurons", 8)
