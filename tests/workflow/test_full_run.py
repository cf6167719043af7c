"""Results of full runs read as results: the identity, shapes, and every mean recomputed with plain NumPy from what it is of."""

import itertools
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import h5py
import matplotlib.image
import nbformat
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml
from nbclient import NotebookClient

import selfrepair
from selfrepair.figures.opening import REACH
from selfrepair.figures.wording import percentage
from selfrepair.files.sealed import read_json
from selfrepair.files.tables import read_table
from workflow.running import NOTHING, Space

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

REAL = "smollm2-135m-instruct"
KINDS = ("resample", "mean", "zero")
SHARDS = ("00000", "00001")
FIGURES = (
    *("self_repair_by_layer", "effect_vs_logit_change", "repair_breakdown", "token_noise"),
    *("layernorm_repair", "mlp_repair", "selection_control", "donor_noise", "published_comparison"),
    *("layernorm_scale_ratio", "ablation_types", "layernorm_claim"),
    *("neuron_share", "neuron_concentration", "erasure_neurons", "neuron_consistency"),
    *("layernorm_repair", "mlp_repair"),
    *("self_reinforcement", "next_layer_correlation", "who_repairs_whom", "layer_ablation"),
)
PARTS = ("self_repair_from_heads", "self_repair_from_mlps", "self_repair_from_layernorm")
PER_TOKEN = ("direct_effect", "ablated_direct_effect", "logit_change", "self_repair", *PARTS)
TABLES = ("heads", "layers", "model")
N_LAYERS, N_HEADS, N_PROMPTS, LENGTH, IN_SHARD = 2, 4, 8, 16, 4
N_TOKENS = N_PROMPTS * (LENGTH - 1)
N_TOP = 12


def read(path: Path) -> dict[str, np.ndarray]:
    """Every variable, by HDF5 alone."""
    with h5py.File(path) as file:
        return {name: variable[...] for name, variable in file.items()}


def ablations(space: Space, kind: str) -> dict[str, np.ndarray]:
    """Per-token values of all shards [head, prompt, pos]."""
    shards = [read(space.run / "ablations" / kind / f"{shard}.h5") for shard in SHARDS]
    return {name: np.concatenate([shard[name] for shard in shards], axis=1) for name in (*PER_TOKEN, "ablated_scale")}


def repair(space: Space, kind: str) -> dict[str, np.ndarray]:
    """Who repairs whom, by prompt of all shards."""
    shards = [read(space.run / "ablations" / kind / f"{shard}.h5") for shard in SHARDS]
    names = ("repair_by_head", "repair_by_mlp", "n_selected")
    return {name: np.concatenate([shard[name] for shard in shards], axis=1) for name in names}


def direct_effects(space: Space) -> np.ndarray:
    """Clean direct effects [layer * head, prompt * pos]."""
    shards = [read(space.run / "activations" / f"{shard}.h5")["head_direct_effect"] for shard in SHARDS]
    return np.concatenate(shards, axis=2).reshape(N_LAYERS * N_HEADS, N_TOKENS)


def top_mask(space: Space) -> np.ndarray:
    """The top tokens of every head [head, prompt, pos], by sorting all of them."""
    effects = direct_effects(space)
    mask = np.zeros_like(effects, dtype=bool)
    for row, effect in enumerate(effects):
        mask[row, sorted(range(N_TOKENS), key=lambda token: -effect[token])[:N_TOP]] = True
    return mask.reshape(-1, N_PROMPTS, LENGTH - 1)


def off_identity(values: dict[str, np.ndarray]) -> tuple[float, float]:
    """How far self_repair is from the sum of its parts, and the largest value, which rounding is relative to."""
    off = np.abs(values["self_repair"].astype(float) - sum(values[part].astype(float) for part in PARTS))
    return float(off.max()), max(float(np.abs(values[name]).max()) for name in PER_TOKEN)


def test_every_figure_is_there_and_shows_something(finished: Space) -> None:
    assert set(FIGURES) == finished.figures
    for name in FIGURES:
        picture = matplotlib.image.imread(finished.run / "figures" / f"{name}.png")
        assert min(picture.shape[:2]) >= 300, name
        # Not white, nor black axes on white alone: enough of it is coloured.
        colours = picture[..., :3]
        assert (np.ptp(colours, axis=-1) > 0.1).mean() > 0.001, name
        svg = ElementTree.parse(finished.run / "figures" / f"{name}.svg").getroot()
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        assert sum(1 for _ in svg.iter("{http://www.w3.org/2000/svg}path")) > 10, name


def test_findings_have_a_section_a_figure_and_links_that_hold(finished: Space) -> None:
    text = (finished.run / "findings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.*)$", text, re.MULTILINE)) == {*FIGURES, REACH}
    links = re.findall(r"\]\(([^#].*?)\)", text)
    assert len(links) > 2 * len(FIGURES)
    for link in links:
        assert (finished.run / link).is_file(), link
    heads = pd.read_parquet(finished.run / "tables" / "resample" / "heads.parquet")
    assert f"{heads.attrs['n_tokens']} tokens" in text
    model = pd.read_parquet(finished.run / "tables" / "resample" / "model.parquet").set_index("selection").loc["top"]
    assert f"restores {percentage(model, 'pooled_repair_fraction')} of what ablation removes" in text


@pytest.mark.parametrize("kind", KINDS)
def test_self_repair_is_the_sum_of_its_parts_on_every_token(finished: Space, kind: str) -> None:
    values = ablations(finished, kind)
    off, size = off_identity(values)
    assert off < 64 * np.finfo(np.float32).eps * size
    # Against a test that zeros would pass.
    for part in PARTS:
        assert np.abs(values[part]).max() > 0.05, part
    repair = values["logit_change"] - (values["ablated_direct_effect"] - values["direct_effect"])
    np.testing.assert_allclose(values["self_repair"], repair, atol=1e-5)
    # Heads of the last layer have no head after them.
    assert not values["self_repair_from_heads"][-N_HEADS:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_ablations_open_with_names_units_and_provenance(finished: Space, kind: str) -> None:
    path = finished.run / "ablations" / kind / "00001.h5"
    with xr.open_dataset(path) as dataset:
        for name in (*PER_TOKEN, "ablated_scale"):
            assert dict(dataset[name].sizes) == {"head": 8, "prompt": IN_SHARD, "pos": LENGTH - 1}
            assert dataset[name].dtype == np.float32
            assert dataset[name].attrs["long_name"]
            assert dataset[name].attrs["units"] == ("" if name == "ablated_scale" else "logits")
        by_prompt = {"head": 8, "prompt": IN_SHARD}
        assert dict(dataset["repair_by_head"].sizes) == {**by_prompt, "by_layer": N_LAYERS, "by_head": N_HEADS}
        assert dict(dataset["repair_by_mlp"].sizes) == {**by_prompt, "by_layer": N_LAYERS}
        pairs = list(zip(dataset["layer"].values.tolist(), dataset["head_index"].values.tolist(), strict=True))
        assert pairs == list(itertools.product(range(N_LAYERS), range(N_HEADS)))
        assert {"layer", "head_index"} <= set(dataset.coords)
        assert dataset.attrs["ablation"] == kind
        provenance = json.loads(dataset.attrs["provenance"])
    assert set(provenance) >= {"identity", "package_version", "code", "config", "upstream", "torch", "transformers"}
    assert provenance["config"]["compute"] == {"device": "cpu", "dtype": "float32", "center_unembed": True}
    assert provenance["config"]["prompts"] == [4, 8]
    upstream = ["activations/00001.h5", "thresholds.h5", "tokens.h5"]
    upstream += ["mean_activations.h5"] if kind == "mean" else []
    for name in upstream:
        with h5py.File(finished.run / name) as file:
            identity = json.loads(file.attrs["provenance"])["identity"]
        recorded = (finished.run / name).relative_to(finished.work).as_posix()
        assert provenance["upstream"][recorded] == identity
    assert "results/snapshots/models/tiny/manifest.json" in provenance["upstream"]


def test_activations_open_with_names(finished: Space) -> None:
    sizes = {"layer": N_LAYERS, "prompt": IN_SHARD, "pos": LENGTH, "head": N_HEADS, "d_head": 4, "d_model": 16}
    with xr.open_dataset(finished.run / "activations" / "00000.h5") as dataset:
        assert dict(dataset.sizes) == {**sizes, "predicting_pos": LENGTH - 1}
        assert dataset["z"].dims == ("layer", "prompt", "pos", "head", "d_head")
        assert dataset["resid_pre"].dims == ("layer", "prompt", "pos", "d_model")
        assert dataset["head_direct_effect"].dims == ("layer", "head", "prompt", "predicting_pos")


def test_donors_are_others_of_the_same_shard(finished: Space) -> None:
    donors = read(finished.run / "tokens.h5")["donors"]
    own = np.arange(len(donors))[:, None]
    assert (donors != own).all()
    assert (donors // IN_SHARD == own // IN_SHARD).all()


def test_top_tokens_are_the_largest_of_all_shards(finished: Space) -> None:
    thresholds = read(finished.run / "thresholds.h5")
    assert thresholds["top_tokens"].shape == (N_LAYERS, N_HEADS, N_PROMPTS, LENGTH - 1)
    assert (thresholds["top_tokens"].sum((2, 3)) == int(0.1 * N_TOKENS)).all()
    effects = direct_effects(finished)
    mask = top_mask(finished).reshape(len(effects), -1)
    for row, tokens in enumerate(thresholds["top_tokens"].reshape(len(effects), -1).astype(bool)):
        assert np.array_equal(tokens, mask[row])
        assert thresholds["threshold"].ravel()[row] == effects[row][tokens].min()
    # Both shards hold some, so that a selection by shard would show.
    assert mask.reshape(len(effects), 2, -1).any(-1).all(0).all()


def test_mean_activations_are_means_over_all_prompts_and_positions(finished: Space) -> None:
    z = np.concatenate([read(finished.run / "activations" / f"{shard}.h5")["z"] for shard in SHARDS], axis=1)
    found = read(finished.run / "mean_activations.h5")["mean_z"]
    np.testing.assert_allclose(found, z.astype(float).mean((1, 2)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_library_gives_what_the_workflow_wrote(finished: Space, kind: str) -> None:
    model = selfrepair.load_model(finished.work / "results" / "snapshots" / "models" / "tiny")
    file = read(finished.run / "tokens.h5")
    tokens, donors = file["tokens"][:N_PROMPTS], file["tokens"][file["donors"][:N_PROMPTS, 0]]
    if kind == "mean":
        # The mean is over the whole data set, so that all of it is given.
        whole = selfrepair.ablate_heads(model, tokens, kind=kind)
    else:
        parts = [slice(0, IN_SHARD), slice(IN_SHARD, N_PROMPTS)]
        given = [donors[part] if kind == "resample" else None for part in parts]
        found = [
            selfrepair.ablate_heads(model, tokens[part], donor, kind=kind)
            for part, donor in zip(parts, given, strict=True)
        ]
        whole = xr.concat(found, "prompt", data_vars="minimal", coords="minimal", compat="override")
    values = ablations(finished, kind)
    for name in (*PER_TOKEN, "ablated_scale"):
        np.testing.assert_allclose(whole[name].values, values[name], atol=2e-5, err_msg=name)
    assert np.abs(values["self_repair"]).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_who_repairs_whom_adds_up_to_the_repair_of_the_top_tokens(finished: Space, kind: str) -> None:
    selected = top_mask(finished)
    values = ablations(finished, kind)
    by = repair(finished, kind)
    np.testing.assert_array_equal(by["n_selected"], selected.sum(-1))
    for part, total in (("heads", by["repair_by_head"].sum((2, 3))), ("mlps", by["repair_by_mlp"].sum(2))):
        wanted = np.where(selected, values[f"self_repair_from_{part}"], 0).sum(-1)
        np.testing.assert_allclose(total, wanted, atol=1e-4)


def clip_fraction(part: np.ndarray, effect: np.ndarray) -> float:
    return float(np.mean([min(max(p / e, 0.0), 1.0) for p, e in zip(part.tolist(), effect.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_table_holds_means_over_tokens(finished: Space, kind: str) -> None:
    table = pd.read_parquet(finished.run / "tables" / kind / "heads.parquet")
    values = ablations(finished, kind)
    masks = {"top": top_mask(finished), "all": np.ones((8, N_PROMPTS, LENGTH - 1), bool)}
    assert len(table) == 2 * 8
    for selection, mask in masks.items():
        rows = table[table["selection"] == selection]
        assert [*zip(rows["layer"], rows["head"], strict=True)] == [*itertools.product(range(N_LAYERS), range(N_HEADS))]
        for row, (_, got) in enumerate(rows.iterrows()):
            chosen = {name: value[row][mask[row]].astype(float) for name, value in values.items()}
            wanted = {name: chosen[name].mean() for name in PER_TOKEN}
            for part in PARTS:
                name = f"clipped_fraction_{part.removeprefix('self_repair_')}"
                wanted[name] = clip_fraction(chosen[part], chosen["direct_effect"])
            frozen = chosen["logit_change"] - chosen["self_repair_from_layernorm"]
            wanted["frozen_layernorm_logit_change"] = frozen.mean()
            removed = chosen["direct_effect"].sum() - chosen["ablated_direct_effect"].sum()
            wanted["pooled_repair_fraction"] = chosen["self_repair"].sum() / removed
            for name, value in wanted.items():
                assert got[name] == pytest.approx(value, rel=2e-5, abs=2e-6), (selection, row, name)
            assert got["n_tokens"] == (N_TOP if selection == "top" else N_TOKENS)
            assert got["n_prompts"] == mask[row].any(-1).sum()
            assert got["relative_depth"] == got["layer"]
    assert table.attrs["n_tokens"] == N_TOKENS
    assert (table.attrs["model"], table.attrs["corpus"], table.attrs["ablation"]) == ("tiny", "words", kind)
    pd.testing.assert_frame_equal(pd.read_csv(finished.run / "tables" / kind / "heads.csv"), table, check_dtype=False)


def test_top_tokens_alone_give_the_same_condensed_tables(copied: Space) -> None:
    everything = {name: pd.read_parquet(copied.run / "tables" / "resample" / f"{name}.parquet") for name in TABLES}
    copied.change("ablations.resample.tokens", "top")
    planned = copied.jobs()
    assert planned["ablate_heads"] == len(SHARDS)
    # What shows all tokens is not asked for any more.
    assert {f"draw_{name}" for name in FIGURES} - planned.keys() == {"draw_token_noise", "draw_selection_control"}
    copied.make(*(f"results/tiny/words/tables/resample/{name}.parquet" for name in TABLES))
    for name, before in everything.items():
        after = pd.read_parquet(copied.run / "tables" / "resample" / f"{name}.parquet")
        assert (before.attrs["tokens"], after.attrs["tokens"]) == ("all", "top")
        assert set(before.pop("computed_tokens")) == {"all"}
        assert set(after.pop("computed_tokens")) == {"top"}
        top = before[before["selection"] == "top"]
        pd.testing.assert_frame_equal(after, top, rtol=1e-4, atol=1e-5)
    values = ablations(copied, "resample")
    assert np.array_equal(~np.isnan(values["logit_change"]), top_mask(copied))
    # And it refuses what it cannot show.
    done = copied.snakemake("results/tiny/words/tables/resample/token_noise.parquet")
    assert done.returncode != 0
    assert "these ablations hold top tokens alone: set ablations.*.tokens to all" in done.stdout


def test_intervals_are_percentiles_over_resampled_prompts(finished: Space) -> None:
    """One column of one head, resampled prompt by prompt with the seed of the config."""
    table = pd.read_parquet(finished.run / "tables" / "resample" / "heads.parquet")
    draws = np.random.default_rng(0).integers(N_PROMPTS, size=(50, N_PROMPTS))
    values = ablations(finished, "resample")["self_repair"].astype(float)
    row = 5
    for selection, mask in (("all", np.ones_like(top_mask(finished))), ("top", top_mask(finished))):
        resampled = []
        for drawn in draws:
            tokens = np.concatenate([values[row, prompt][mask[row, prompt]] for prompt in drawn])
            if len(tokens):
                resampled.append(tokens.mean())
        got = table[table["selection"] == selection].iloc[row]
        low, high = np.quantile(resampled, [0.025, 0.975])
        assert got["self_repair_low"] == pytest.approx(low, rel=1e-5)
        assert got["self_repair_high"] == pytest.approx(high, rel=1e-5)
        assert low < got["self_repair"] < high


@pytest.mark.parametrize(("kind", "name"), [*itertools.product(KINDS, ("heads", "layers", "model"))])
def test_intervals_are_in_order(finished: Space, kind: str, name: str) -> None:
    table = pd.read_parquet(finished.run / "tables" / kind / f"{name}.parquet")
    estimates = [column for column in table if f"{column}_low" in table]
    assert set(PER_TOKEN) < set(estimates)
    for column in estimates:
        assert (table[f"{column}_low"] <= table[f"{column}_high"]).all(), column
        assert np.isfinite(table[column]).all(), column
    # A mean over all tokens lies amid its resamples.
    whole = table[table["selection"] == "all"]
    for column in PER_TOKEN:
        assert (whole[f"{column}_low"] <= whole[column]).all(), column
        assert (whole[column] <= whole[f"{column}_high"]).all(), column


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_model_are_means_over_heads(finished: Space, kind: str) -> None:
    folder = finished.run / "tables" / kind
    heads, layers, model = (pd.read_parquet(folder / f"{name}.parquet") for name in ("heads", "layers", "model"))
    estimates = [column for column in layers if f"{column}_low" in layers]
    for table, keys in ((layers, ["selection", "layer"]), (model, ["selection"])):
        wanted = heads.groupby(keys)[estimates].mean()
        # A ratio of sums, not a mean of ratios.
        removed = wanted["direct_effect"] - wanted["ablated_direct_effect"]
        wanted["pooled_repair_fraction"] = wanted["self_repair"] / removed
        pd.testing.assert_frame_equal(table.set_index(keys)[estimates].sort_index(), wanted.sort_index())
    assert (layers["n_heads"] == N_HEADS).all()
    assert (model["n_heads"] == N_LAYERS * N_HEADS).all()


def test_the_strongest_heads_are_chosen(finished: Space) -> None:
    """By the estimates that the table has, which are computed otherwise."""
    table = read_table(finished.run / "tables" / "resample" / "heads.parquet")
    top = table[table["selection"] == "top"].sort_values("self_repair", ascending=False)
    strongest = top[["layer", "head"]].head(4).to_numpy().tolist()
    assert read_json(finished.run / "chosen_heads.json") == {"heads": strongest, "strongest": True}


def test_tokens_of_the_strongest_heads(finished: Space) -> None:
    tokens = pd.read_parquet(finished.run / "tables" / "resample" / "token_noise.parquet")
    heads = pd.read_parquet(finished.run / "tables" / "resample" / "heads.parquet")
    top = heads[heads["selection"] == "top"].nlargest(4, "self_repair")
    strongest = [*zip(top["layer"], top["head"], strict=True)]
    values, selected = ablations(finished, "resample"), top_mask(finished)
    assert len(tokens) == 4 * N_TOKENS
    for rank, (layer, head) in enumerate(strongest, start=1):
        rows = tokens[tokens["rank"] == rank]
        assert (rows["layer"] == layer).all()
        assert (rows["head"] == head).all()
        at = layer * N_HEADS + head
        for name in ("direct_effect", "logit_change", "self_repair"):
            np.testing.assert_array_equal(rows[name], values[name][at].ravel())
        np.testing.assert_array_equal(rows["selected"], selected[at].ravel())
        np.testing.assert_array_equal(rows["prompt"], np.repeat(np.arange(N_PROMPTS), LENGTH - 1))


@pytest.mark.parametrize("kind", KINDS)
def test_scale_ratios_of_the_chosen_heads_and_of_all(finished: Space, kind: str) -> None:
    folder = finished.run / "tables" / kind
    table, bins = (pd.read_parquet(folder / f"layernorm_scale_{name}.parquet") for name in ("ratio", "histogram"))
    chosen = read_json(finished.run / "chosen_heads.json")["heads"]
    shards = [read(finished.run / "ablations" / kind / f"{shard}.h5") for shard in SHARDS]
    ratio = np.concatenate([shard["clean_scale"][None] / shard["ablated_scale"] for shard in shards], axis=1)
    masks = {"top": top_mask(finished), "all": np.ones(ratio.shape, bool)}
    assert len(table) == 2 * (len(chosen) + 1)
    for _, row in table.iterrows():
        rows = [row["layer"] * N_HEADS + row["head"]] if row["rank"] else [*range(8)]
        assert not row["rank"] or [row["layer"], row["head"]] == chosen[row["rank"] - 1]
        values = ratio[rows][masks[row["selection"]][rows]].astype(float)
        assert row["n_tokens"] == len(values)
        assert row["share_above_1"] == pytest.approx(np.mean(values > 1 + 1e-6), abs=1e-9)
        assert row["mean_ratio"] == pytest.approx(values.mean(), rel=1e-6)
        assert row["share_above_1_low"] <= row["share_above_1"] <= row["share_above_1_high"]
        of_row = bins[(bins["rank"] == row["rank"]) & (bins["selection"] == row["selection"])]
        assert of_row["n_tokens"].sum() == len(values)
    # With a shared first token, resampling changes nothing at position 0.
    unchanged = table.set_index(["rank", "selection"])["share_unchanged"]
    assert unchanged[0, "all"] >= (1 / (LENGTH - 1) if kind == "resample" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_ablation_type_is_of_the_strongest_head(finished: Space, kind: str) -> None:
    folder = finished.run / "tables" / kind
    means, tokens = (pd.read_parquet(folder / f"{name}.parquet") for name in ("ablation_type", "ablation_type_tokens"))
    heads = pd.read_parquet(folder / "heads.parquet")
    (layer, head), *_ = read_json(finished.run / "chosen_heads.json")["heads"]
    assert set(zip(tokens["layer"], tokens["head"], strict=True)) == {(layer, head)}
    assert (len(tokens), tokens["selected"].sum()) == (N_TOKENS, N_TOP)
    of_head = heads[(heads["layer"] == layer) & (heads["head"] == head)].set_index("selection")
    for _, row in means.iterrows():
        for name in PER_TOKEN:
            for end in ("", "_low", "_high"):
                assert row[name + end] == pytest.approx(of_head.loc[row["selection"], name + end], rel=1e-5, abs=1e-6)
        some = tokens[tokens["selected"]] if row["selection"] == "top" else tokens
        assert row["residual_norm_ratio"] == pytest.approx(some["residual_norm_ratio"].mean(), rel=1e-6)


def test_freezing_agrees_with_the_closed_form(finished: Space) -> None:
    table = pd.read_parquet(finished.run / "tables" / "resample" / "frozen_layernorm.parquet")
    heads = pd.read_parquet(finished.run / "tables" / "resample" / "heads.parquet")
    of_head = heads[heads["selection"] == "top"].set_index(["layer", "head"])
    chosen = read_json(finished.run / "chosen_heads.json")["heads"]
    assert [[*pair] for pair in zip(table["layer"], table["head"], strict=True)] == chosen
    for _, row in table.iterrows():
        wanted = of_head.loc[(row["layer"], row["head"]), "frozen_layernorm_logit_change"]
        assert row["really_frozen_logit_change"] == pytest.approx(wanted, abs=1e-5)
        assert row["largest_difference"] < 1e-5 < row["allowed_difference"]
        assert row["layernorm_part_left"] < 1e-5
    # Against a comparison of a thing with itself: the scale does move.
    assert (table["logit_change"] - table["really_frozen_logit_change"]).abs().max() > 0.01
    assert table["largest_difference"].max() > 0


def test_readings_of_the_claim(finished: Space) -> None:
    folder = finished.run / "tables" / "resample"
    claim = pd.read_parquet(folder / "layernorm_claim.parquet").set_index(["source", "layers", "reading"])
    heads = pd.read_parquet(folder / "heads.parquet")
    top = heads[heads["selection"] == "top"]
    for layers, rows in (("all", top), ("second-to-last", top[top["layer"] == N_LAYERS - 2])):
        part, effect = rows["self_repair_from_layernorm"], rows["direct_effect"]
        wanted = {
            "clipped per token": rows["clipped_fraction_from_layernorm"].mean(),
            "ratio per head, mean": (part / effect).mean(),
            "ratio per head, median": (part / effect).median(),
            "pooled": part.sum() / effect.sum(),
        }
        for reading, value in wanted.items():
            row = claim.loc["this run", layers, reading]
            assert row["fraction"] == pytest.approx(value, rel=1e-5)
            assert row["fraction_low"] < row["fraction_high"]
    assert set(claim.index.get_level_values("source")) == {
        *("this run", "pythia-160m", "pythia-410m", "gpt2-small", "gpt2-medium")
    }


def test_the_other_donor_is_the_one_after_the_runs_own(finished: Space) -> None:
    model = selfrepair.load_model(finished.work / "results" / "snapshots" / "models" / "tiny")
    tokens = read(finished.run / "tokens.h5")["tokens"][:IN_SHARD]
    found = read(finished.run / "other_donor" / "00000.h5")["ablated_direct_effect"]
    wanted = selfrepair.ablate_heads(model, tokens, tokens[[2, 3, 0, 1]])["ablated_direct_effect"].values
    np.testing.assert_allclose(found.reshape(wanted.shape), wanted, atol=2e-5)


def test_self_repair_on_tokens_chosen_in_several_ways(finished: Space) -> None:
    folder = finished.run / "tables" / "resample"
    found = pd.read_parquet(folder / "selection_control_model.parquet").set_index("choice")
    model = pd.read_parquet(folder / "model.parquet").set_index("selection").loc["top"]
    for name in ("direct_effect", "self_repair", "pooled_repair_fraction"):
        for end in ("", "_low", "_high"):
            assert found.loc["top", name + end] == pytest.approx(model[name + end], rel=1e-5), name
    values = {name: value.reshape(8, -1).astype(float) for name, value in ablations(finished, "resample").items()}
    other = [read(finished.run / "other_donor" / f"{shard}.h5")["ablated_direct_effect"] for shard in SHARDS]
    effect = values["direct_effect"]
    criteria = {
        "absolute": abs(effect),
        "removed": effect - values["ablated_direct_effect"],
        "other_donor": effect - np.concatenate(other, axis=2).reshape(8, -1),
    }
    for choice, criterion in criteria.items():
        chosen = np.argsort(-criterion, axis=1)[:, :N_TOP]
        repair, removed = (np.take_along_axis(of, chosen, 1) for of in (values["self_repair"], criteria["removed"]))
        assert found.loc[choice, "self_repair"] == pytest.approx(repair.mean(), rel=1e-4, abs=1e-5)
        assert found.loc[choice, "pooled_repair_fraction"] == pytest.approx(repair.sum() / removed.sum(), rel=1e-4)
        slope = (repair * removed).sum() / (removed**2).sum()
        assert found.loc[choice, "repair_slope"] == pytest.approx(slope, rel=1e-4)
    layers = pd.read_parquet(folder / "selection_control_layers.parquet")
    means = layers.groupby("choice")["self_repair"].mean()
    np.testing.assert_allclose(means.loc[found.index], found["self_repair"])


def test_the_first_of_several_donors_is_the_runs_own(finished: Space) -> None:
    folder = finished.run / "tables" / "resample"
    tokens = pd.read_parquet(folder / "donor_noise_tokens.parquet")
    heads = pd.read_parquet(folder / "donor_noise.parquet")
    chosen = read_json(finished.run / "chosen_heads.json")["heads"]
    assert heads[["layer", "head"]].to_numpy().tolist() == chosen
    assert set(tokens["donor"]) == {1, 2, 3}, "a shard of four has three others"
    values, mask = ablations(finished, "resample")["self_repair"], top_mask(finished)
    for rank, (layer, head) in enumerate(chosen, start=1):
        row = layer * N_HEADS + head
        of_head = tokens[tokens["rank"] == rank]
        first = of_head[of_head["donor"] == 1]
        np.testing.assert_allclose(first["self_repair"], values[row][mask[row]], atol=2e-5)
        wide = of_head.pivot_table(index=["prompt", "pos"], columns="donor", values="self_repair").to_numpy(float)
        assert wide.shape == (N_TOP, 3)
        within, between = wide.var(1, ddof=1).mean(), wide.mean(1).var(ddof=1)
        got = heads.iloc[rank - 1]
        assert got["donor_variance"] == pytest.approx(within, rel=1e-4)
        assert got["token_variance"] == pytest.approx(between - within / 3, rel=1e-4, abs=1e-6)
        assert got["mean"] == pytest.approx(wide.mean(), rel=1e-4, abs=1e-6)


def test_a_model_that_was_not_published_is_set_beside_those_that_were(finished: Space) -> None:
    folder = finished.run / "tables" / "resample"
    assert pd.read_parquet(folder / "published_pairs.parquet").empty
    assert pd.read_parquet(folder / "published_agreement.parquet").empty
    found = pd.read_parquet(folder / "published_distributions.parquet")
    ours = found[(found["model"] == "this run") & (found["quantity"] == "self_repair")].set_index("depth")
    heads = pd.read_parquet(folder / "heads.parquet")
    last = heads[(heads["selection"] == "top") & (heads["layer"] == 1)]["self_repair"]
    assert ours["n_heads"].to_dict() == {"first": 4, "middle": 0, "last": 4}
    assert ours.loc["last", "median"] == pytest.approx(last.median())


def test_a_wrong_name_of_a_published_model_is_refused(copied: Space) -> None:
    copied.change("models.tiny.published", "gpt2-small")
    done = copied.snakemake("published_comparison")
    assert done.returncode != 0
    assert "models.tiny.published is gpt2-small, but the model has model_type llama" in done.stdout


def test_neurons_add_up_to_what_the_last_mlp_repairs(finished: Space) -> None:
    """On the top tokens of the chosen heads and no others; the ablations' files hold the same sums, made otherwise."""
    chosen = read_json(finished.run / "chosen_heads.json")["heads"]
    parts = [read(finished.run / "neurons" / "resample" / f"{shard}.h5") for shard in SHARDS]
    by_mlp = repair(finished, "resample")["repair_by_mlp"].sum(1)
    selected = top_mask(finished)
    leaders = pd.read_parquet(finished.run / "tables" / "resample" / "erasure_neurons.parquet")
    for row, (layer, head) in enumerate(chosen):
        at = layer * N_HEADS + head
        tokens = [
            (int(prompt) + number * IN_SHARD, int(pos))
            for number, part in enumerate(parts)
            for prompt, pos in zip(part["prompt"][part["head"] == row], part["pos"][part["head"] == row], strict=True)
        ]
        assert sorted(tokens) == [*zip(*(index.tolist() for index in np.nonzero(selected[at])), strict=True)]
        change = sum(
            (part["mlp_ablated_direct_effect"] - part["mlp_direct_effect"])[part["head"] == row].sum() for part in parts
        )
        assert change == pytest.approx(by_mlp[at, -1], abs=1e-4)
        rows = leaders[leaders["rank"] == row + 1]
        assert [*zip(rows["prompt"], rows["pos"], strict=True)] == sorted(tokens)
        change = rows["ablated_direct_effect"] - rows["direct_effect"]
        assert ((change > 0) == (rows["quadrant"] != "no_repair")).all()
        assert (change > 0).sum() > N_TOP / 2
    assert abs(by_mlp).max() > 0.05
    for part in parts:
        change = part["ablated_direct_effect"] - part["direct_effect"]
        assert change.shape[1] == 32, "as many neurons as there are, where fewer are there than asked for"
        assert (np.diff(change, axis=1) <= 1e-6).all()
        np.testing.assert_allclose(np.abs(change).sum(1), part["total_absolute_change"], atol=1e-4)
        # A donor may have the same tokens so far.
        nothing = part["total_absolute_change"] == 0
        assert np.isnan(part["share_of_change"][nothing]).all()
        np.testing.assert_allclose(part["share_of_change"][~nothing, -1], 1, atol=1e-5)


def test_neurons_of_another_kind_are_made_on_demand(copied: Space) -> None:
    copied.make("results/tiny/words/tables/mean/erasure_quadrants.parquet")
    quadrants = pd.read_parquet(copied.run / "tables" / "mean" / "erasure_quadrants.parquet")
    assert quadrants.attrs["ablation"] == "mean"
    assert quadrants.groupby("rank")["token_share"].sum().to_numpy() == pytest.approx(1)


def table(space: Space, name: str) -> pd.DataFrame:
    return pd.read_parquet(space.run / "tables" / "resample" / f"{name}.parquet")


def test_strongest_pairs_are_those_of_the_ablations_and_rows_add_up(finished: Space) -> None:
    sums = repair(finished, "resample")
    by_head, by_mlp = (sums[name].sum(1) / N_TOP for name in ("repair_by_head", "repair_by_mlp"))
    pairs = table(finished, "repair_pairs")
    for by, values in (("head", by_head), ("mlp", by_mlp)):
        rows = pairs[pairs["by"] == by].sort_values("rank")
        size = np.sort(np.abs(values[values != 0]))[::-1][: len(rows)]
        assert len(rows) == min(6, np.count_nonzero(values))
        np.testing.assert_allclose(rows["repair"].abs(), size, atol=2e-5)
    heads = table(finished, "heads").query("selection == 'top'").set_index(["layer", "head"])
    for pair, rows in table(finished, "repair_rows").groupby(["layer", "head"]):
        total = rows.groupby("by")["repair"].sum()
        assert total["all"] == pytest.approx(heads.loc[pair, "self_repair"], abs=2e-5)
        of_parts = heads.loc[pair, "self_repair"] - heads.loc[pair, "self_repair_from_layernorm"]
        assert total.get("head", 0) + total.get("mlp", 0) == pytest.approx(of_parts, abs=2e-5)
        whole = rows[rows["by"] == "all"].iloc[0]
        for end in ("low", "high"):
            assert whole[f"repair_{end}"] == pytest.approx(heads.loc[pair, f"self_repair_{end}"], abs=2e-5)
    table_by_layer = table(finished, "repair_by_layer").set_index(["layer", "by", "by_layer"])
    assert (table_by_layer["repair_low"] < table_by_layer["repair_high"]).all()
    by_layer = table_by_layer["repair"]
    assert by_layer[0, "heads", 1] == pytest.approx(by_head[:N_HEADS, 1].sum() / N_HEADS, abs=1e-6)
    assert by_layer[1, "mlp", 1] == pytest.approx(by_mlp[N_HEADS:, 1].mean(), abs=1e-6)


def test_ablated_layers_keep_the_identity_and_their_regression(finished: Space) -> None:
    shards = [read(finished.run / "layer_ablations" / f"{shard}.h5") for shard in SHARDS]
    values = {name: np.concatenate([shard[name] for shard in shards], axis=2).astype(float) for name in PER_TOKEN}
    off, size = off_identity(values)
    assert off < 64 * np.finfo(np.float32).eps * size
    activations = [read(finished.run / "activations" / f"{shard}.h5") for shard in SHARDS]
    attention = np.concatenate([shard["head_direct_effect"].sum(1) for shard in activations], axis=1)
    np.testing.assert_allclose(values["direct_effect"][0], attention, atol=1e-5)
    found = table(finished, "layer_ablation").set_index(["component", "layer"])
    for row, component in enumerate(("attention", "mlp")):
        for layer in range(N_LAYERS):
            got = found.loc[component, layer]
            x = (values["direct_effect"] - values["ablated_direct_effect"])[row, layer].ravel()
            y = (values["self_repair_from_heads"] + values["self_repair_from_mlps"])[row, layer].ravel()
            assert got["removed"] == pytest.approx(x.mean(), abs=1e-5)
            if (component, layer) == ("mlp", N_LAYERS - 1):
                assert np.isnan(got["slope_compensation"])
                continue
            assert got["slope_compensation"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-4)
            assert got["r_squared_compensation"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, rel=1e-3)
            assert got["slope_compensation_low"] < got["slope_compensation"] < got["slope_compensation_high"]


def test_reinforcement_starts_from_the_condensed_direct_effect(finished: Space) -> None:
    found = table(finished, "self_reinforcement")
    heads = table(finished, "heads").query("selection == 'top'").set_index(["layer", "head"])["direct_effect"]
    assert len(found) == N_LAYERS * N_HEADS * 3
    for _, row in found.iterrows():
        assert row["direct_effect"] == pytest.approx(heads[row["layer"], row["head"]], abs=1e-5)
        assert row["direct_effect_with_own"] == pytest.approx(row["direct_effect"] + row["change"], abs=1e-9)
        assert row["change"] != 0
    assert set(found["scale"]) == {1, 3, 5}
    assert set(found["label"]) <= {"reinforcing", "repressing", "neither"}


def test_next_layer_of_the_chosen_heads(finished: Space) -> None:
    chosen = [tuple(pair) for pair in read_json(finished.run / "chosen_heads.json")["heads"]]
    correlations, points = table(finished, "next_layer_correlation"), table(finished, "next_layer_heads")
    assert [*zip(correlations["layer"], correlations["head"], strict=True)] == chosen
    for _, row in correlations.iterrows():
        rows = points[(points["layer"] == row["layer"]) & (points["head"] == row["head"])]
        if row["layer"] == N_LAYERS - 1:
            assert row["note"] == "in the last layer: no layer follows"
            assert np.isnan(row["correlation"])
            assert rows.empty
        else:
            wanted = np.corrcoef(rows["change_when_ablated"], rows["change_when_moved"])[0, 1]
            assert row["correlation"] == pytest.approx(wanted)
            assert row["note"] == ""


def test_zero_ablation_leaves_no_direct_effect(finished: Space) -> None:
    """A Llama has no value bias, so a head of z = 0 writes nothing."""
    assert not ablations(finished, "zero")["ablated_direct_effect"].any()
    assert ablations(finished, "mean")["ablated_direct_effect"].any()


def test_a_named_target_makes_only_what_it_needs(fresh: Space) -> None:
    assert fresh.jobs("token_noise") == {
        "snapshot_model": 1,
        "check_model": 1,
        "snapshot_corpus": 1,
        "tokenize_corpus": 1,
        "check_prompts": 1,
        "cache_activations": 2,
        "find_thresholds": 1,
        "ablate_heads": 2,
        "tabulate_heads": 1,
        "choose_heads": 1,
        "tabulate_token_noise": 1,
        "draw_token_noise": 1,
    }


def test_a_second_run_has_nothing_to_do(copied: Space) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.run.rglob("*") if path.is_file()}
    assert NOTHING in copied.make()
    assert {path: path.stat().st_mtime_ns for path in copied.run.rglob("*") if path.is_file()} == before


def test_the_profile_is_found_without_being_named(copied: Space) -> None:
    """Else an edited comment of a script would run the sweep again."""
    command = copied.command("--dry-run")
    at = command.index("--workflow-profile")
    assert NOTHING in copied.execute([*command[:at], *command[at + 2 :]]).stdout
    path = copied.repo / "scripts" / "ablate_heads.py"
    path.write_text(path.read_text() + "# A comment.\n")
    done = copied.execute([*command[:at], *command[at + 2 :]])
    assert "profiles/default" in done.stdout
    assert NOTHING in done.stdout, done.stdout


def test_the_report_is_one_file_with_every_figure_and_caption(copied: Space) -> None:
    copied.make("--report", "report.html")
    html = (copied.work / "report.html").read_text(encoding="utf-8")
    for name in FIGURES:
        assert name.replace("_", " ") in html
    for words in (
        "Does ablating a head cost as much as its direct effect?",
        "Which components repair, and how much of what was removed?",
        "How much does self-repair vary from token to token?",
        "120 tokens (8 prompts",
        "Self-repair of ablated attention heads",
        "Model <em>tiny</em>. Licence: none.",
        "Text <em>words</em>. Licence: none.",
    ):
        assert words in " ".join(html.replace("\\n", " ").split()), words


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Space:
    """SmolLM2 of the default config on four short prompts, all of its heads: some two minutes on two cores."""
    space = Space.new(tmp_path_factory.mktemp("real") / "space")
    overlay = {
        "run": {"models": [REAL], "corpora": ["lee"]},
        "tokens": {"prompts": 4, "prompts_per_shard": 2, "prompt_length": 32},
        "statistics": {"top_fraction": 0.1, "n_bootstrap": 50},
    }
    (space.work / "config.yaml").write_text(yaml.safe_dump(overlay))
    space.make("self_repair_by_layer", "repair_breakdown", "layernorm_repair", "mlp_repair", "token_noise")
    return space


def test_the_real_model_on_real_text(real: Space) -> None:
    run = real.work / "results" / REAL / "lee"
    for shard in SHARDS:
        values = read(run / "ablations" / "resample" / f"{shard}.h5")
        assert values["self_repair"].shape == (30 * 9, 2, 31)
        off, size = off_identity(values)
        assert off < 64 * np.finfo(np.float32).eps * size
    heads = pd.read_parquet(run / "tables" / "resample" / "heads.parquet")
    top = heads[heads["selection"] == "top"]
    assert len(top) == 270
    assert (top["n_tokens"] == int(0.1 * 4 * 31)).all()
    assert (top["direct_effect"] > 0).all()
    assert len(list((run / "figures").glob("*.png"))) == 5


def test_the_notebook_ends_in_a_finding_that_a_plain_run_bears_out(real: Space) -> None:
    """The example, cell by cell; its own last cells measure one number again by transformers alone, and assert it."""
    notebook = nbformat.read(REPOSITORY / "examples" / "self_repair.ipynb", as_version=4)
    folder = real.work / "examples"
    folder.mkdir()
    for cell in notebook.cells:
        cell.source = cell.source.replace("smollm2-135m-instruct/wikipedia", f"{REAL}/lee")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for outputs in shown for output in outputs) == 2
    last = shown[-1][-1].text
    heads = selfrepair.open_run(real.work / "results" / REAL / "lee").heads()
    best = heads.nlargest(1, "self_repair").iloc[0]
    assert f"Ablating L{best['layer']}H{best['head']} takes" in last
    assert f"{best['pooled_repair_fraction']:.0%}" in last


def test_the_notebook_shows_what_it_gave() -> None:
    notebook = nbformat.read(REPOSITORY / "examples" / "self_repair.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [
        output
        for cell in code
        for output in cell.outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]
    assert "the rest of the model restores" in code[-1].outputs[-1].text
