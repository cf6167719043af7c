"""The figures, drawn from small made-up tables, and their captions."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair import figures
from selfrepair.figures import repair_breakdown
from selfrepair.figures.style import guides, inputs, looks
from selfrepair.files.tables import write_table
from selfrepair.quantities import NOISE_OF, POSTNORMS, QUANTITIES
from unit.figures.shared import (
    CAPTION_CHANGES,
    COLUMNS,
    FIGURES,
    PUBLISHED,
    check_bytes,
    check_caption,
    check_page,
    draw,
    labelled,
    make_heads,
    make_layers,
    make_tables,
    make_tokens,
    n_dots,
    rendered,
    words,
    written,
)

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

CAPTIONS = sorted(path for path in (REPOSITORY / "report").glob("*.rst") if path.stem in figures.figure_names())


def test_every_figure_is_offered_and_has_a_caption():
    assert set(FIGURES) <= set(figures.figure_names())
    assert {path.stem for path in CAPTIONS} >= set(FIGURES)


def test_figures_do_not_import_torch():
    code = (
        "import importlib, sys\nfrom selfrepair import figures\n"
        f"for name in {FIGURES!r}: importlib.import_module('selfrepair.figures.' + name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    path = {"PYTHONPATH": str(REPOSITORY / "srcpkg")}
    subprocess.run([sys.executable, "-c", code], env=path, check=True)


@pytest.mark.parametrize("name", FIGURES)
def test_footer(name):
    footer = draw(name).get_supxlabel()
    n = 300 if name == "token_noise" else 1280
    assert f"n = {n:,} tokens, 40 prompts of length 33" in footer.replace("\n", " ")
    assert "tiny (random float32)" in footer
    assert "resample" in footer


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_outside_the_page(name):
    check_page(draw(name), 84 if name == "self_repair_by_layer" else 174)


@pytest.mark.parametrize("name", FIGURES)
def test_two_drawings_are_the_same_bytes(name, tmp_path):
    check_bytes(name, make_tables()[name], tmp_path)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("self_repair_by_layer", ["self_repair"]),
        ("layernorm_repair", ["self_repair_from_layernorm", "clipped_fraction_from_layernorm"]),
        ("mlp_repair", ["self_repair_from_mlps", "clipped_fraction_from_mlps"]),
    ],
)
def test_by_layer_axes_and_dots(name, labels):
    figure = draw(name)
    assert [ax.get_ylabel().replace("\n", " ") for ax in figure.axes] == [QUANTITIES[label].axis for label in labels]
    for ax in figure.axes:
        assert ax.get_xlabel() == guides.DEPTH_LABEL
        assert n_dots(ax, "this run: a head") == 4 * 3
        (line,) = labelled(ax, "this run: layer mean")
        assert len(line.get_xdata()) == 4


def test_published_models_are_beside_this_run():
    figure = draw("self_repair_by_layer")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[0] == "this run: layer mean"
    assert {f"{name}, published" for name, _ in looks.PUBLISHED.values()} < set(texts)
    (line,) = labelled(figure.axes[0], "GPT-2 medium, published")
    assert len(line.get_xdata()) == 24
    assert line.get_xdata()[-1] == 1


def test_a_published_model_without_a_look_is_drawn_all_the_same():
    tables = make_tables()["self_repair_by_layer"]
    tables["published"] = tables["published"].assign(model="opt-125m")
    assert "opt-125m, published" in words(draw("self_repair_by_layer", tables))


def test_only_the_layernorm_figure_has_the_papers_level():
    (line,) = labelled(draw("layernorm_repair").axes[1], "_reference")
    assert list(line.get_ydata()) == [0.3, 0.3]
    assert "about 30%" in words(draw("layernorm_repair"))
    assert not labelled(draw("mlp_repair").axes[1], "_reference")


@pytest.mark.parametrize("kinds", [("resample",), ("mean", "zero"), ("resample", "mean", "zero")])
def test_effect_vs_logit_change_has_a_panel_an_ablation(kinds):
    every = make_tables()["effect_vs_logit_change"]
    figure = draw("effect_vs_logit_change", {f"heads_{kind}": every[f"heads_{kind}"] for kind in kinds})
    *panels, _colour_bar = figure.axes
    assert [panel.get_title() for panel in panels] == [f"{kind} ablation" for kind in kinds]
    for panel in panels:
        assert n_dots(panel, "_heads") == 4 * 3
        assert panel.get_xlabel() == QUANTITIES["direct_effect"].axis
        assert panel.get_xlim() == panels[0].get_xlim()
        assert panel.get_ylim() == panels[0].get_ylim()
    assert panels[0].get_ylabel() == QUANTITIES["logit_change"].axis


@pytest.mark.parametrize("name", ["effect_vs_logit_change", "token_noise"])
def test_minus_x_line_is_drawn_and_labelled(name):
    panels = [ax for ax in draw(name).axes if ax.get_title()]
    assert panels
    for panel in panels:
        (line,) = labelled(panel, "_minus_x")
        assert line.get_xy1() == (0, 0)
        assert line.get_slope() == -1
        assert "y = −x" in [text.get_text() for text in panel.texts]


def test_token_noise_shows_every_token_and_names_the_heads():
    figure = draw("token_noise")
    assert [ax.get_title() for ax in figure.axes] == ["L1H7", "L2H7", "L3H7", "L4H7"]
    for ax in figure.axes:
        assert n_dots(ax, "the head's top tokens by direct effect") == 6
        assert n_dots(ax, "other tokens") == 294
        assert ax.get_xlim() == figure.axes[0].get_xlim()
        assert not any(dots.get_rasterized() for dots in ax.collections)


def test_a_sample_of_tokens_says_so():
    tokens = make_tokens(6000, 1)
    assert "at random" not in draw("token_noise", {"tokens": tokens}).get_supxlabel()
    tokens.attrs |= {"listed": 6000, "listed_of": 1_000_448}
    footer = draw("token_noise", {"tokens": tokens}).get_supxlabel().replace("\n", " ")
    assert "dots: 6,000 of 1,000,448 tokens a head, at random" in footer


def test_many_tokens_are_rasterised():
    figure = draw("token_noise", {"tokens": make_tokens(6000, 1)})
    assert all(dots.get_rasterized() for dots in labelled(figure.axes[0], "other tokens"))


def test_parts_are_seen_to_add_up():
    left, right = draw("repair_breakdown").axes
    (total,), (parts) = labelled(left, "self-repair"), labelled(left, "sum of the parts")
    np.testing.assert_allclose(parts[0].get_ydata(), total.get_ydata())
    assert {line.get_label() for line in right.lines} > {QUANTITIES[name].label for name in repair_breakdown.EFFECTS}
    assert left.get_ylim() == right.get_ylim()
    for low, high in ((ax.dataLim.y0, ax.dataLim.y1) for ax in (left, right)):
        assert left.get_ylim()[0] <= low
        assert high <= left.get_ylim()[1]


def test_a_part_that_a_model_lacks_is_not_drawn():
    layers = make_tables()["repair_breakdown"]["layers"]
    assert labelled(draw("repair_breakdown", {"layers": layers}).axes[0], QUANTITIES[POSTNORMS].label)
    layers = layers.drop(columns=[column for column in layers if "postnorm" in column])
    left = draw("repair_breakdown", {"layers": layers}).axes[0]
    assert not labelled(left, QUANTITIES[POSTNORMS].label)
    assert labelled(left, "sum of the parts")


def test_means_within_the_noise_of_bfloat16_are_crossed_out():
    heads = make_heads(4, 3)
    layers = make_layers(heads)
    heads[f"{NOISE_OF}self_repair"] = heads["self_repair"].abs() * 0.5
    heads.loc[heads.index[:2], f"{NOISE_OF}self_repair"] *= 3
    heads.attrs["matrices"] = layers.attrs["matrices"] = "bfloat16"
    tables = {**make_tables()["self_repair_by_layer"], "heads": heads, "layers": layers}
    figure = draw("self_repair_by_layer", tables)
    assert sum(len(marks.get_offsets()) for marks in labelled(figure.axes[0], "_noise")) == 2
    assert "matrices in bfloat16; crosses: within its noise of zero" in figure.get_supxlabel().replace("\n", " ")


def test_heads_outside_the_range_are_counted():
    heads = make_heads(10, 12)
    layers = make_layers(heads)
    rows = heads.index[heads["selection"] == "top"]
    heads.loc[rows[5], "self_repair"] = 40.0
    heads.loc[rows[17], "self_repair"] = -40.0
    tables = {"heads": heads, "layers": layers, "published": pd.read_csv(PUBLISHED)}
    figure = draw("self_repair_by_layer", tables)
    note = figure.axes[0].get_title(loc="right")
    assert re.fullmatch(r"1 above [\d.]+, 1 below −[\d.]+", note)
    assert n_dots(figure.axes[0], "this run: a head") == 120


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (2, 4)])
@pytest.mark.parametrize("name", [name for name in FIGURES if name != "token_noise"])
def test_tiny_models(name, shape, tmp_path):
    written(draw(name, make_tables(*shape)[name]), tmp_path, "tiny")


@pytest.mark.parametrize("name", FIGURES)
def test_some_values_missing(name, tmp_path):
    tables = make_tables()[name]
    for table in tables.values():
        for column in table.columns.intersection([*inputs.with_interval(*COLUMNS)]):
            table.loc[table.index[:3], column] = np.nan
    written(draw(name, tables), tmp_path, "gaps")


def test_fewer_than_four_heads_of_tokens(tmp_path):
    written(draw("token_noise", {"tokens": make_tokens(n_heads=2)}), tmp_path, "two")
    written(draw("token_noise", {"tokens": make_tokens(n=20, n_heads=1)}), tmp_path, "none selected")


@pytest.mark.parametrize("name", FIGURES)
def test_missing_table_and_columns_are_named(name):
    with pytest.raises(ValueError, match=r"is missing|no table"):
        draw(name, {})
    tables = make_tables()[name]
    key = "heads_mean" if name == "effect_vs_logit_change" else next(iter(tables))
    column = {"layernorm_repair": "self_repair_from_layernorm", "mlp_repair": "clipped_fraction_from_mlps"}.get(
        name, "self_repair" if key in ("heads", "layers") else "logit_change"
    )
    with pytest.raises(ValueError, match=f"table '{key}' lacks {column}: remake"):
        draw(name, {**tables, key: tables[key].drop(columns=column)})
    with pytest.raises(ValueError, match=f"table '{key}' has no value in {column}: "):
        draw(name, {**tables, key: tables[key].assign(**{column: np.nan})})


def test_draw_figure_reads_files(tmp_path):
    tables = make_tables()["self_repair_by_layer"]
    files = {"published": PUBLISHED}
    for key in ("heads", "layers"):
        files[key] = tmp_path / f"{key}.parquet"
        write_table(tables[key], files[key], tables[key].attrs)
    png, svg = tmp_path / "figure.png", tmp_path / "figure.svg"
    figures.draw_figure("self_repair_by_layer", files, png, svg)
    assert (png.read_bytes(), svg.read_bytes()) == written(draw("self_repair_by_layer", tables), tmp_path, "same")


def test_draw_figure_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"no figure 'pie': choose one of .*effect_vs_logit_change, "):
        figures.draw_figure("pie", {}, tmp_path / "a.png", tmp_path / "a.svg")
    for name in figures.SHARED:
        with pytest.raises(ValueError, match=f"no figure '{name}'"):
            figures.draw_figure(name, {}, tmp_path / "a.png", tmp_path / "a.svg")
    with pytest.raises(ValueError, match=r"read from \.parquet or \.csv files"):
        figures.draw_figure("mlp_repair", {"heads": Path("heads.xlsx")}, tmp_path / "a.png", tmp_path / "a.svg")


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("changes", CAPTION_CHANGES)
def test_captions(name, changes):
    check_caption(name, **changes)


def test_front_page():
    marks = r"*a* `b` c_ |d| \e https://a.example"
    config = {
        "run": {"models": ["one", "other"], "corpora": ["text"]},
        "models": {"one": {"weights": marks, "license": marks}, "other": {}},
        "corpora": {"text": {"license": "CC0"}},
    }
    html = rendered("workflow", config=config)
    assert "self-repair = logit change − (ablated direct effect − direct effect)" in html
    text = re.sub(r"<[^>]+>", "", html)
    for line in (
        f"Model one ({marks}). Licence: {marks}.",
        "Model other. Licence: the config names none.",
        "Text text. Licence: CC0.",
    ):
        assert line in text
