"""Figures of the final norm, from tables of a planted model."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.figures.style import saving
from selfrepair.figures.wording import measured
from selfrepair.quantities import ABLATION_KINDS
from selfrepair.tables.ablation_type import tabulate_ablation_type
from selfrepair.tables.frozen_layernorm import tabulate_frozen_layernorm
from selfrepair.tables.layernorm_claim import tabulate_layernorm_claim
from selfrepair.tables.layernorm_scale import tabulate_layernorm_scale
from unit.figures.shared import PUBLISHED, check_bytes, check_caption, check_page, module_of

from planted.layernorm_run import PlantedRun

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = ("layernorm_scale_ratio", "ablation_types", "layernorm_claim")


@pytest.fixture(scope="module")
def tables(planted_run: PlantedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, pd.DataFrame]]:
    """What the figures are drawn from, of the planted model."""
    made: dict[str, dict[str, pd.DataFrame]] = {name: {} for name in FIGURES}
    for kind in ABLATION_KINDS:
        folder = tmp_path_factory.mktemp(kind)
        common = {**planted_run.inputs(kind), "chosen_heads": planted_run.chosen}
        files = {
            name: folder / f"{name}.parquet" for name in ("ratio", "histogram", "tokens", "means", "frozen", "claim")
        }
        tabulate_layernorm_scale(**common, summary=files["ratio"], histogram=files["histogram"])
        tabulate_ablation_type(**common, tokens=files["tokens"], means=files["means"])
        for name in ("ratio", "histogram"):
            made["layernorm_scale_ratio"][f"{name}_{kind}"] = pd.read_parquet(files[name])
        for name in ("tokens", "means"):
            made["ablation_types"][f"{name}_{kind}"] = pd.read_parquet(files[name])
        if kind == "resample":
            tabulate_frozen_layernorm(**common, frozen=planted_run.frozen(kind), out=files["frozen"])
            tabulate_layernorm_claim(**planted_run.inputs(kind), published=PUBLISHED, out=files["claim"])
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


@pytest.mark.parametrize(
    ("alone", "says"),
    [
        ((), "all tokens of L0H0, the top 50% marked; boxes"),
        (("mean",), "all tokens of L0H0, the top 50% marked (under mean ablation these alone); boxes"),
        (ABLATION_KINDS, "the top 50% of tokens of L0H0; boxes"),
    ],
)
def test_top_tokens_alone_are_not_called_all_tokens(
    alone: tuple[str, ...], says: str, tables: dict[str, dict[str, pd.DataFrame]]
) -> None:
    of = dict(tables["ablation_types"])
    for kind in alone:
        of[f"tokens_{kind}"] = of[f"tokens_{kind}"][of[f"tokens_{kind}"]["selected"]]
    figure = module_of("ablation_types").draw(of)
    assert says in figure.get_supxlabel().replace("\n", " ")
    [norms] = [ax for ax in figure.axes if ax.get_label() == "norms"]
    assert len([patch for patch in norms.patches if patch.get_facecolor()]) == 2 * len(ABLATION_KINDS) - len(alone)


def test_a_sample_of_any_kind_is_said(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    of = dict(tables["ablation_types"])
    of["tokens_zero"] = of["tokens_zero"].copy()
    of["tokens_zero"].attrs |= {"listed": 30, "listed_of": 36}
    figure = module_of("ablation_types").draw(of)
    assert "dots: 30 of 36 tokens a head, at random" in figure.get_supxlabel().replace("\n", " ")
