"""Tables and figures of the final norm: known answers on a planted model, and every mean by another way."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import selfrepair
from selfrepair.figures.style import saving
from selfrepair.figures.wording import measured
from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.measure.ablations import ablate_shard
from selfrepair.measure.activations import cache_activations
from selfrepair.measure.frozen_layernorm import freeze_layernorm
from selfrepair.measure.mean_activations import average_activations
from selfrepair.measure.thresholds import select_top_tokens
from selfrepair.measure.tokens import assign_donors
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.heads import condense_ablations
from selfrepair.tables.layernorm import (
    READINGS,
    THIS_RUN,
    compare_frozen_layernorm,
    shares_repaired,
    tabulate_ablation_type,
    tabulate_layernorm_claim,
    tabulate_scale_ratios,
)
from unit.figures.shared import PUBLISHED, check_bytes, check_caption, check_page, module_of

from planted.layernorm import HEAD, LIVE, QUIET, by_hand, planted_model, save_planted_model

pytestmark = pytest.mark.filterwarnings("error")

COMPUTE = {"device": "cpu", "dtype": "float64", "center_unembed": True}
LENGTH, IN_SHARD, TOP = 7, 3, 0.5
ALL_HEADS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@dataclass(frozen=True)
class Run:
    """What the workflow's rules write for the planted model, made by the functions that they call."""

    folder: Path
    tokens: np.ndarray

    def ablations(self, kind: str) -> list[Path]:
        return [self.folder / kind / f"{first}.h5" for first in range(0, len(self.tokens), IN_SHARD)]

    def inputs(self, kind: str) -> dict:
        shards = {"shards": self.ablations(kind), "thresholds": self.folder / "thresholds.h5"}
        return {"heads_table": self.folder / kind / "heads.parquet", **shards}

    @property
    def chosen(self) -> Path:
        return self.folder / "chosen_heads.json"

    def table(self, kind: str, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.folder / kind / f"{name}.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six prompts, each a quiet token repeated, in two shards; all heads under all kinds of ablation."""
    folder = tmp_path_factory.mktemp("planted")
    tokens = np.repeat(np.array(QUIET)[:, None], LENGTH, axis=1)
    made = Run(folder, tokens)
    manifest = save_planted_model(folder / "model")
    with write_hdf5(folder / "tokens.h5", kind="tokens", provenance={}, attrs={"prompts_per_shard": IN_SHARD}) as file:
        file.dims(prompt=len(tokens), pos=LENGTH, donor=1)
        file.put("tokens", ("prompt", "pos"), tokens)
        file.put("donors", ("prompt", "donor"), assign_donors(len(tokens), IN_SHARD, 1))
    shards = [(first, first + IN_SHARD) for first in range(0, len(tokens), IN_SHARD)]
    common = {"model_manifest": manifest, "tokens": folder / "tokens.h5", "compute": COMPUTE, "provenance": {}}
    activations = [folder / "activations" / f"{first}.h5" for first, _ in shards]
    for prompts, out in zip(shards, activations, strict=True):
        cache_activations(out=out, prompts=prompts, **common)
    thresholds = folder / "thresholds.h5"
    select_top_tokens(shards=activations, out=thresholds, top_fraction=TOP, first_position=0, provenance={})
    average_activations(shards=activations, out=folder / "mean.h5", provenance={})
    write_json(made.chosen, {"heads": [HEAD, (0, 1)]})
    for kind in ABLATION_KINDS:
        (folder / kind).mkdir()
        mean = folder / "mean.h5" if kind == "mean" else None
        for cached, prompts, out in zip(activations, shards, made.ablations(kind), strict=True):
            job = {"activations": cached, "thresholds": thresholds, "mean_activations": mean, "prompts": prompts}
            ablate_shard(out=out, kind=kind, heads=None, which="all", **job, **common)
            frozen = folder / kind / f"frozen_{out.name}"
            freeze_layernorm(out=frozen, kind=kind, heads=[HEAD, (0, 1)], **job, **common)
        condense_ablations(
            model_manifest=manifest,
            shards=made.ablations(kind),
            thresholds=thresholds,
            tables={name: folder / kind / f"{name}.parquet" for name in ("heads", "layers", "model")},
            labels={"model": "planted", "corpus": "repeats", "ablation": kind, "top_fraction": TOP, "donors": 1},
            first_position=0,
            n_bootstrap=40,
            bootstrap_seed=0,
        )
    return made


def token_values(run: Run, kind: str, *names: str) -> list[np.ndarray]:
    """Values of all shards [head, prompt, pos], read by themselves."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in run.ablations(kind):
        with open_hdf5(path, "ablations", remake="") as dataset:
            for name in names:
                found[name].append(dataset[name].values)
    return [np.concatenate(parts, axis=0 if name == "clean_scale" else 1) for name, parts in found.items()]


def top_mask(run: Run) -> np.ndarray:
    """Top tokens [head, prompt, pos] by what the file lists."""
    mask = np.zeros((len(ALL_HEADS), len(run.tokens) * (LENGTH - 1)), bool)
    with open_hdf5(run.folder / "thresholds.h5", "thresholds", remake="") as dataset:
        for row, listed in enumerate(dataset["top_tokens"].values.reshape(len(ALL_HEADS), -1)):
            mask[row, listed] = True
    return mask.reshape(len(ALL_HEADS), len(run.tokens), LENGTH - 1)


# --- the planted model -----------------------------------------------------------------------------------------------


def test_quiet_prompts_are_repaired_by_the_norm_alone_as_reckoned_by_hand() -> None:
    model = selfrepair.load_model(planted_model(), dtype="float64")
    tokens = np.repeat(np.array(QUIET)[:, None], LENGTH, axis=1)
    dataset = selfrepair.ablate_heads(model, tokens, kind="zero", heads=[HEAD])
    assert not dataset["self_repair_from_heads"].any()
    assert not dataset["self_repair_from_mlps"].any()
    for prompt, token in enumerate(QUIET):
        wanted = by_hand(token)
        for name, value in wanted.items():
            got = dataset[name].isel(prompt=prompt).values
            np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=f"{name} of token {token}")
        np.testing.assert_allclose(dataset["self_repair_from_layernorm"][0, prompt], wanted["self_repair"], rtol=1e-6)
        assert wanted["self_repair"] > 0.1 * wanted["direct_effect"]


def test_later_components_of_the_planted_model_can_repair() -> None:
    """They are no dead weights: with live tokens they react to the same head, and to the one that feeds them."""
    model = selfrepair.load_model(planted_model(), dtype="float64")
    tokens = np.repeat(np.array(LIVE)[:, None], LENGTH, axis=1)
    dataset = selfrepair.ablate_heads(model, tokens, kind="zero", heads=[HEAD, (0, 1)])
    assert float(np.abs(dataset["self_repair_from_heads"]).min()) > 1e-4
    assert float(np.abs(dataset["self_repair_from_mlps"]).min()) > 1e-4


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_the_tables_find_what_was_planted(run: Run, kind: str) -> None:
    heads = run.table(kind, "heads")
    row = heads[(heads["layer"] == 0) & (heads["head"] == 0) & (heads["selection"] == "top")].iloc[0]
    assert row["self_repair_from_heads"] == row["self_repair_from_mlps"] == 0
    assert row["self_repair_from_layernorm"] == pytest.approx(row["self_repair"], rel=1e-9)
    assert row["self_repair_low"] > 0.1
    tabulate_scale_ratios(
        **run.inputs(kind),
        chosen_heads=run.chosen,
        summary=run.folder / kind / "ratio.parquet",
        histogram=run.folder / kind / "histogram.parquet",
    )
    ratio = run.table(kind, "ratio")
    planted = ratio[ratio["rank"] == 1]
    assert (planted["share_above_1_low"] == 1).all()
    # A head that writes nothing changes no scale.
    silent = ratio[ratio["rank"] == 2]
    assert (silent["share_above_1"] == 0).all()
    assert (silent["share_unchanged"] == 1).all()
    tabulate_ablation_type(
        **run.inputs(kind),
        chosen_heads=run.chosen,
        tokens=run.folder / kind / "tokens.parquet",
        means=run.folder / kind / "means.parquet",
    )
    means = run.table(kind, "means")
    assert (means["residual_norm_ratio_high"] < 1).all()
    np.testing.assert_allclose(means["self_repair_from_layernorm"], means["self_repair"], rtol=1e-9)


def test_every_reading_of_the_claim_is_the_share_that_was_planted(run: Run) -> None:
    """All of the repair of one head in two, so that readings differ as they should."""
    out = run.folder / "zero" / "claim.parquet"
    tabulate_layernorm_claim(**run.inputs("zero"), published=PUBLISHED, out=out)
    claim = pd.read_parquet(out)
    found = claim[(claim["source"] == THIS_RUN) & (claim["layers"] == "second-to-last")].set_index("reading")
    top = [token for token in QUIET if top_mask(run)[0, token].any()]
    shares = {token: by_hand(token)["self_repair"] / by_hand(token)["direct_effect"] for token in QUIET}
    counts = top_mask(run)[0].sum(-1)
    clipped = sum(counts[token] * min(shares[token], 1) for token in top) / counts.sum()
    pooled = sum(counts[t] * by_hand(t)["self_repair"] for t in top) / sum(
        counts[t] * by_hand(t)["direct_effect"] for t in top
    )
    # Head 1 of the layer writes nothing: its clipped share counts as 0, and it has no ratio.
    assert found["fraction"]["clipped per token"] == pytest.approx(clipped / 2, rel=1e-5)
    for reading in READINGS[1:]:
        assert found["fraction"][reading] == pytest.approx(pooled, rel=1e-5)
        assert found["fraction_low"][reading] <= pooled + 1e-9 <= found["fraction_high"][reading] + 2e-9
    assert set(claim[claim["source"] == THIS_RUN]["n_heads"]) == {2, 4}


# --- the tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_freezing_agrees_with_the_closed_form(run: Run, kind: str) -> None:
    frozen = [path.with_name(f"frozen_{path.name}") for path in run.ablations(kind)]
    out = run.folder / kind / "frozen.parquet"
    compare_frozen_layernorm(**run.inputs(kind), chosen_heads=run.chosen, frozen=frozen, out=out)
    table = pd.read_parquet(out)
    assert [*zip(table["layer"], table["head"], strict=True)] == [HEAD, (0, 1)]
    assert (table["largest_difference"] < 1e-9).all()
    assert (table["layernorm_part_left"] < 1e-9).all()
    first = table.iloc[0]
    assert first["really_frozen_logit_change"] == pytest.approx(first["frozen_layernorm_logit_change"], abs=1e-9)
    # With the scale frozen nothing is repaired: the logit falls by what ablation takes from the head.
    heads = run.table(kind, "heads").iloc[0]
    removed = heads["ablated_direct_effect"] - heads["direct_effect"]
    assert first["really_frozen_logit_change"] == pytest.approx(removed, rel=1e-6)
    assert first["logit_change"] > first["really_frozen_logit_change"] + 0.1


def test_frozen_runs_that_do_not_agree_are_an_error(run: Run, tmp_path: Path) -> None:
    frozen = []
    for number, path in enumerate(run.ablations("zero")):
        with open_hdf5(path.with_name(f"frozen_{path.name}"), "frozen_layernorm", remake="") as dataset:
            changed = dataset.load()
        if number == 0:
            change = changed["frozen_layernorm_logit_change"].values
            row, prompt, pos = np.argwhere(np.isfinite(change))[0]
            change[row, prompt, pos] += 0.0625
        frozen.append(tmp_path / path.name)
        attrs = {"coordinates": "layer head_index"}
        with write_hdf5(frozen[-1], kind="frozen_layernorm", provenance={}, attrs=attrs) as file:
            file.put_dataset(changed)
    inputs = {**run.inputs("zero"), "chosen_heads": run.chosen, "out": tmp_path / "out.parquet"}
    with pytest.raises(ValueError, match=r"\(layer 0, head 0\) is 0\.0625 logits from what .* rounding explains"):
        compare_frozen_layernorm(frozen=frozen, **inputs)
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(ValueError, match="other tokens than the heads' top tokens"):
        compare_frozen_layernorm(frozen=frozen[::-1], **inputs)


@pytest.mark.parametrize("kind", ABLATION_KINDS)
def test_scale_ratios_are_shares_of_tokens(run: Run, kind: str, tmp_path: Path) -> None:
    ratios, histogram = tmp_path / "ratio.parquet", tmp_path / "histogram.parquet"
    tabulate_scale_ratios(**run.inputs(kind), chosen_heads=run.chosen, summary=ratios, histogram=histogram)
    table, bins = pd.read_parquet(ratios), pd.read_parquet(histogram)
    clean, ablated = token_values(run, kind, "clean_scale", "ablated_scale")
    ratio = clean[None] / ablated
    masks = {"top": top_mask(run), "all": np.ones_like(ratio, bool)}
    for _, row in table.iterrows():
        rows = slice(None) if row["rank"] == 0 else slice(row["rank"] - 1, row["rank"])
        values = ratio[rows][masks[row["selection"]][rows]]
        assert row["n_tokens"] == values.size
        assert row["share_above_1"] == pytest.approx(np.mean(values > 1 + 1e-12))
        assert row["mean_ratio"] == pytest.approx(values.mean())
        assert row["mean_ratio_low"] <= row["mean_ratio"] <= row["mean_ratio_high"]
        its = bins[(bins["rank"] == row["rank"]) & (bins["selection"] == row["selection"])]
        assert its["n_tokens"].sum() == values.size
        assert its["share"].sum() == pytest.approx(1)
        for low, high, count in its[["ratio_low", "ratio_high", "n_tokens"]].itertuples(index=False):
            assert count == np.sum((values >= low) & (values < high))
    assert set(table["rank"]) == {0, 1, 2}
    # The planted head counts for so much that ratios lie outside the bins where nothing takes its place.
    assert (
        kind == "resample"
        or bins[(bins["ratio_low"] == 1.5) & (bins["selection"] == "all") & (bins["rank"] == 1)]["n_tokens"].item() > 0
    )


def test_ratio_of_scales_is_the_ratio_of_residual_norms(run: Run) -> None:
    """Up to eps: the scale is the root mean square of the final residual."""
    model = selfrepair.load_model(planted_model(), dtype="float64")
    seen = []
    handle = model.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    try:
        dataset = selfrepair.ablate_heads(model, run.tokens, kind="zero", heads=[HEAD])
    finally:
        handle.remove()
    # The ablated run leaves out the last position, which predicts nothing; other runs are of single prompts.
    n_prompts, length = run.tokens.shape
    clean, ablated = (
        next(torch.as_tensor(out) for out in seen if out.shape[:2] == (n_prompts, size))[:, : length - 1]
        .norm(dim=-1)
        .numpy()
        for size in (length, length - 1)
    )
    ratio = dataset["ablated_scale"][0].values / dataset["clean_scale"].values
    np.testing.assert_allclose(ratio, ablated / clean, rtol=1e-4)


def test_heads_that_were_not_ablated_are_named(run: Run, tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.json"
    write_json(chosen, {"heads": [[0, 0], [1, 7]]})
    with pytest.raises(
        ValueError, match=r"lacks heads \[\(1, 7\)\], which .*chosen\.json names: name them under ablations"
    ):
        tabulate_scale_ratios(
            **run.inputs("zero"), chosen_heads=chosen, summary=tmp_path / "a", histogram=tmp_path / "b"
        )


def test_readings_of_the_share() -> None:
    """Three heads of which one has no token, by hand."""
    layernorm, effect = np.array([1.0, 3.0, 0.0]), np.array([2.0, 30.0, 0.0])
    found = shares_repaired(layernorm, effect, np.array([2.0, 0.5, 0.0]), np.array([4.0, 5.0, 0.0]))
    wanted = {
        "clipped per token": (0.5 + 0.1) / 2,
        "ratio per head, mean": (0.5 + 0.1) / 2,
        "ratio per head, median": 0.3,
        "pooled": 4 / 32,
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(wanted)
    assert np.isnan(float(shares_repaired(*(np.zeros(2) for _ in range(4)))["pooled"]))


def test_published_readings_are_those_of_the_papers_files(run: Run, tmp_path: Path) -> None:
    """The values that resources/published/README.md names."""
    out = tmp_path / "claim.parquet"
    tabulate_layernorm_claim(**run.inputs("resample"), published=PUBLISHED, out=out)
    claim = pd.read_parquet(out).set_index(["source", "layers", "reading"])["fraction"]
    names = ("pythia-160m", "gpt2-small", "pythia-410m", "gpt2-medium")
    clipped = [round(claim[name, "all", "clipped per token"], 2) for name in names]
    ratios = [round(claim[name, "second-to-last", "ratio per head, mean"], 2) for name in names]
    assert clipped == [0.34, 0.32, 0.25, 0.30]
    assert ratios == [0.17, 0.25, 0.23, 0.19]


# --- the figures -------------------------------------------------------------------------------------------------------

FIGURES = ("layernorm_scale_ratio", "ablation_types", "layernorm_claim")


@pytest.fixture(scope="module")
def tables(run: Run) -> dict[str, dict[str, pd.DataFrame]]:
    """What the figures are drawn from, of the planted model."""
    made: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in FIGURES}
    for kind in ABLATION_KINDS:
        folder = run.folder / kind / "figures"
        folder.mkdir()
        common = {**run.inputs(kind), "chosen_heads": run.chosen}
        files = {
            name: folder / f"{name}.parquet" for name in ("ratio", "histogram", "tokens", "means", "frozen", "claim")
        }
        tabulate_scale_ratios(**common, summary=files["ratio"], histogram=files["histogram"])
        tabulate_ablation_type(**common, tokens=files["tokens"], means=files["means"])
        for name in ("ratio", "histogram"):
            made["layernorm_scale_ratio"][f"{name}_{kind}"] = pd.read_parquet(files[name])
        for name in ("tokens", "means"):
            made["ablation_types"][f"{name}_{kind}"] = pd.read_parquet(files[name])
        if kind == "resample":
            frozen = [path.with_name(f"frozen_{path.name}") for path in run.ablations(kind)]
            compare_frozen_layernorm(**common, frozen=frozen, out=files["frozen"])
            tabulate_layernorm_claim(**run.inputs(kind), published=PUBLISHED, out=files["claim"])
            made["layernorm_claim"] = {name: pd.read_parquet(files[name]) for name in ("claim", "frozen")}
    return made


@pytest.mark.parametrize("name", FIGURES)
def test_figures_stay_on_the_page_and_are_the_same_twice(
    name: str, tables: dict[str, dict[str, pd.DataFrame]], tmp_path: Path
) -> None:
    figure = module_of(name).draw(tables[name])
    check_page(figure)
    assert "planted (set by hand)" in figure.get_supxlabel()
    assert "n = 36 tokens, 6 prompts of length 7" in figure.get_supxlabel().replace("\n", " ")
    check_bytes(name, tables[name], tmp_path)


@pytest.mark.parametrize("name", ["layernorm_scale_ratio", "ablation_types"])
def test_one_kind_of_ablation_is_enough(name: str, tables: dict[str, dict[str, pd.DataFrame]], tmp_path: Path) -> None:
    alone = {key: table for key, table in tables[name].items() if key.endswith("mean")}
    saving.save(module_of(name).draw(alone), tmp_path / "a.png", tmp_path / "a.svg")
    (line,) = module_of(name).finding(alone)
    assert "mean ablation" in line
    with pytest.raises(ValueError, match=r"no table of an ablation .*: give at least one of"):
        module_of(name).draw({})


@pytest.mark.parametrize("name", FIGURES)
def test_top_tokens_alone_can_be_drawn(name: str, tables: dict[str, dict[str, pd.DataFrame]], tmp_path: Path) -> None:
    """As after ablations of top tokens alone, where no row is of all tokens."""
    top = {}
    for key, table in tables[name].items():
        rows = table["selection"] == "top" if "selection" in table else table.get("selected", np.ones(len(table), bool))
        top[key] = table[rows]
        top[key].attrs = dict(table.attrs)
    saving.save(module_of(name).draw(top), tmp_path / "a.png", tmp_path / "a.svg")
    assert "all tokens" not in " ".join(module_of(name).finding(top)).split("Rushing")[0]


def test_what_is_outside_the_histogram_is_counted(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    """Tokens drawn and tokens counted are all tokens."""
    figure = module_of("layernorm_scale_ratio").draw(tables["layernorm_scale_ratio"])
    table = tables["layernorm_scale_ratio"]["histogram_resample"]
    low, high = figure.axes[0].get_xlim()
    rows = table[(table["rank"] == 1) & (table["selection"] == "all")]
    seen = rows[(rows["ratio_high"] > low) & (rows["ratio_low"] < high)]["n_tokens"].sum()
    notes = " ".join(text.get_text() for text in figure.axes[0].texts)
    outside = sum(map(int, re.findall(r"(\d+) (?:below|above)", notes)))
    assert seen + outside == 36
    assert low < 1 < high


def test_findings_say_what_was_planted(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    claim = module_of("layernorm_claim").finding(tables["layernorm_claim"])
    assert len(claim) == 3
    assert all("Rushing & Nanda 2024" in line for line in claim)
    assert "all layers, 4 heads" in claim[0]
    assert "no interval holds 30%" in claim[0] or "30% lies in the interval of" in claim[0]
    assert "clipped per token: 34, 32, 25, 30%" in claim[0]
    assert "second-to-last layer, 2 heads" in claim[1]
    assert "ratio per head, mean: 17, 25, 23, 19%" in claim[1]
    assert "L0H0" in claim[2]
    ratio = module_of("layernorm_scale_ratio").finding(tables["layernorm_scale_ratio"])
    assert len(ratio) == 3
    assert re.search(r"L0H0 on 100\.0% \(100\.0 to 100\.0%\) of top tokens \(n = 18\)", ratio[0])
    assert "L0H1 on 0.0%" in ratio[0]
    types = module_of("ablation_types").finding(tables["ablation_types"])
    mean = tables["ablation_types"]["means_zero"].iloc[0]
    assert f"self-repair {measured(mean, 'self_repair')}, ratio of final residual norms" in types[2]


def test_claim_inside_an_interval_is_named(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    claim = tables["layernorm_claim"]["claim"].copy()
    row = claim.index[(claim["layers"] == "all") & (claim["reading"] == "pooled")][0]
    claim.loc[row, ["fraction", "fraction_low", "fraction_high"]] = [0.28, 0.25, 0.31]
    (first, *_) = module_of("layernorm_claim").finding({**tables["layernorm_claim"], "claim": claim})
    assert re.search(r"pooled: 28% \(25 to 31%\); 30% lies in the interval of: [^.]*pooled", first)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("changes", [{}, {"first_position": 1, "ablation": "zero"}])
def test_captions(name: str, changes: dict) -> None:
    check_caption(name, longest=175, **changes)
