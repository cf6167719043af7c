"""The figures, drawn from small made-up tables, and their captions."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from docutils.core import publish_parts
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair import figures
from selfrepair.figures import repair_breakdown
from selfrepair.figures.style import guides, inputs, looks, ranges, saving
from selfrepair.files.tables import write_table
from selfrepair.quantities import HEAD_TOKEN, PARTS, QUANTITIES

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "resources" / "published" / "self_repair_by_head.csv"
CAPTIONS = sorted(path for path in (ROOT / "report").glob("*.rst") if path.stem in figures.figure_names())
FIGURES = (
    "effect_vs_logit_change",
    "layernorm_repair",
    "mlp_repair",
    "repair_breakdown",
    "self_repair_by_layer",
    "token_noise",
)
COLUMNS = (
    *HEAD_TOKEN,
    "frozen_layernorm_logit_change",
    *(part.replace("self_repair", "clipped_fraction") for part in PARTS),
    "pooled_repair_fraction",
)


def settings(n_layers: int = 4, n_heads: int = 3, **changes: object) -> dict[str, object]:
    return {
        "model": "tiny",
        "weights": "random float32",
        "corpus": "wikipedia",
        "ablation": "resample",
        "n_prompts": 40,
        "prompt_length": 33,
        "n_tokens": 1280,
        "top_fraction": 0.02,
        "first_position": 0,
        "donors": 1,
        "n_bootstrap": 200,
        "bootstrap_seed": 0,
        "confidence": 0.95,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "parallel_attention_mlp": False,
        **changes,
    }


def with_values(frame: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    for column in COLUMNS:
        if column.startswith("clipped"):
            frame[column] = rng.uniform(0.1, 0.5, len(frame))
        else:
            frame[column] = rng.normal(0.1, 0.3, len(frame))
    frame["self_repair"] = frame[list(PARTS)].sum(axis=1)
    for column in COLUMNS:
        frame[f"{column}_low"], frame[f"{column}_high"] = frame[column] - 0.05, frame[column] + 0.05
    return frame


def make_heads(n_layers: int = 4, n_heads: int = 3, **changes: object) -> pd.DataFrame:
    rows = [
        {"selection": selection, "layer": layer, "head": head, "relative_depth": layer / max(n_layers - 1, 1)}
        for selection in ("top", "all")
        for layer in range(n_layers)
        for head in range(n_heads)
    ]
    frame = with_values(pd.DataFrame(rows).assign(n_tokens=25, n_prompts=20), np.random.default_rng(0))
    frame.attrs = settings(n_layers, n_heads, **changes)
    return frame


def make_layers(heads: pd.DataFrame) -> pd.DataFrame:
    layers = heads.groupby(["selection", "layer"], as_index=False).mean(numeric_only=True).assign(n_heads=3)
    layers.attrs = dict(heads.attrs)
    return layers


def make_model(heads: pd.DataFrame) -> pd.DataFrame:
    rows = heads.groupby("selection", as_index=False)
    model = rows.mean(numeric_only=True).assign(n_heads=rows.size()["size"])
    model.attrs = dict(heads.attrs)
    return model


def make_tokens(n: int = 300, n_heads: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frames = []
    for rank in range(1, n_heads + 1):
        effect = rng.exponential(0.5, n)
        frame = pd.DataFrame({"rank": rank, "layer": rank, "head": 7, "prompt": np.arange(n) // 30})
        frame["direct_effect"], frame["logit_change"] = effect, -0.5 * effect + rng.normal(0, 0.2, n)
        frame["self_repair"] = frame["direct_effect"] + frame["logit_change"]
        frame["selected"] = frame["direct_effect"].rank(ascending=False) <= 0.02 * n
        frames.append(frame.assign(pos=np.arange(n) % 30))
    tokens = pd.concat(frames, ignore_index=True)
    tokens.attrs = settings(n_tokens=n)
    return tokens


def make_tables(n_layers: int = 4, n_heads: int = 3) -> dict[str, dict[str, pd.DataFrame]]:
    heads = make_heads(n_layers, n_heads)
    layers = make_layers(heads)
    both = {"heads": heads, "layers": layers}
    model = make_model(heads)
    return {
        "self_repair_by_layer": {**both, "model": model, "published": pd.read_csv(PUBLISHED)},
        "effect_vs_logit_change": {
            f"heads_{kind}": make_heads(n_layers, n_heads, ablation=kind) for kind in ("resample", "mean", "zero")
        },
        "repair_breakdown": {"layers": layers},
        "token_noise": {"tokens": make_tokens()},
        "layernorm_repair": {**both, "model": model},
        "mlp_repair": {**both, "model": model},
    }


def draw(name: str, tables: dict[str, pd.DataFrame] | None = None) -> Figure:
    module = importlib.import_module(f"selfrepair.figures.{name}")
    return module.draw(make_tables()[name] if tables is None else tables)


def labelled(ax: Axes, label: str) -> list:
    return [artist for artist in ax.get_children() if artist.get_label() == label]


def n_dots(ax: Axes, label: str) -> int:
    (dots,) = labelled(ax, label)
    return len(dots.get_offsets())


def words(figure: Figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def written(figure: Figure, folder: Path, stem: str) -> tuple[bytes, bytes]:
    png, svg = folder / f"{stem}.png", folder / f"{stem}.svg"
    saving.save(figure, png, svg)
    return png.read_bytes(), svg.read_bytes()


def test_every_figure_is_offered_and_has_a_caption():
    assert set(FIGURES) <= set(figures.figure_names())
    assert {path.stem for path in CAPTIONS} >= set(FIGURES)


def test_figures_do_not_import_torch():
    code = (
        "import importlib, sys\nfrom selfrepair import figures\n"
        f"for name in {FIGURES!r}: importlib.import_module('selfrepair.figures.' + name)\n"
        "sys.exit('torch' in sys.modules)"
    )
    path = {"PYTHONPATH": str(ROOT / "srcpkg")}
    subprocess.run([sys.executable, "-c", code], env=path, check=True)


@pytest.mark.parametrize("name", FIGURES)
def test_size_and_footer(name):
    figure = draw(name)
    assert figure.get_figwidth() * 25.4 == pytest.approx(84 if name == "self_repair_by_layer" else 174)
    footer = figure.get_supxlabel()
    n = 300 if name == "token_noise" else 1280
    assert f"n = {n:,} tokens, 40 prompts of length 33" in footer.replace("\n", " ")
    assert "tiny (random float32)" in footer
    assert "resample" in footer


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_drawn_outside_the_page(name):
    figure = draw(name)
    with looks.context():
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= -0.01
    assert box.y0 >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01


@pytest.mark.parametrize("name", FIGURES)
def test_two_drawings_are_the_same_bytes(name, tmp_path):
    first, second = (written(draw(name), tmp_path, str(index)) for index in range(2))
    assert first == second


def test_saving_twice_gives_the_same_bytes(tmp_path):
    figure = draw("repair_breakdown")
    assert written(figure, tmp_path, "a") == written(figure, tmp_path, "b")


def test_png_is_300_dpi_and_svg_keeps_its_text(tmp_path):
    png, svg = written(draw("self_repair_by_layer"), tmp_path, "figure")
    assert int.from_bytes(png[16:20], "big") == pytest.approx(84 / 25.4 * 300, abs=1)
    assert b">self-repair (logits)</text>" in svg
    assert b"<dc:date>" not in svg


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


def test_mark_outside_counts_each_point_once():
    ax = Figure().subplots()
    ax.set(xlim=(0, 1), ylim=(0, 2.1))
    counts = ranges.mark_outside(ax, [0.5, 3, 3, -1, 0.5, np.nan], [5, 5, 1, 1, 1, 9], "black")
    assert counts == ["2 above 2.1", "1 right of 1", "1 left of 0"]
    (above, *_) = labelled(ax, "_outside")
    assert list(above.get_xdata()) == [0.5, 1]
    assert list(above.get_ydata()) == [2.1, 2.1]
    assert ranges.mark_outside(ax, [0.5], [0.5], "black") == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.r_[np.linspace(0, 1, 200), 50.0], (-0.03, 1.03)),
        (np.linspace(-1, 1, 11), (-1.1, 1.1)),
        ([3.0, np.nan, 3.0], (2.4, 3.6)),
        ([np.nan], (-0.6, 0.6)),
    ],
)
def test_bulk_range(values, expected):
    low, high = ranges.bulk_range(values)
    assert (low, high) == pytest.approx(expected, abs=0.025)


def test_bulk_range_keeps_what_must_be_seen():
    low, high = ranges.bulk_range(np.linspace(0, 1, 100), include=[0.0, [7.0, np.nan]])
    assert low <= 0
    assert high >= 7


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


def test_missing_selection_is_named():
    heads = make_heads()
    heads = heads[heads["selection"] == "top"]
    with pytest.raises(ValueError, match="no rows of selection 'all'"):
        draw("effect_vs_logit_change", {"heads_mean": heads})


def test_settings_must_be_there_and_agree():
    tables = make_tables()["mlp_repair"]
    tables["layers"].attrs["n_prompts"] = 41
    with pytest.raises(ValueError, match="different runs \\(n_prompts 40 and 41\\)"):
        draw("mlp_repair", tables)
    del tables["layers"].attrs["n_prompts"]
    with pytest.raises(ValueError, match="table 'layers' has no n_prompts in its attributes"):
        draw("mlp_repair", tables)


def test_footer_tells_donors_and_left_out_positions():
    tables = make_tables()["repair_breakdown"]
    tables["layers"].attrs.update(donors=4, first_position=1)
    footer = draw("repair_breakdown", tables).get_supxlabel()
    assert "resample (4 donors) ablation" in footer
    assert "position 0 left out" in footer


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
    with pytest.raises(ValueError, match="no figure 'style'"):
        figures.draw_figure("style", {}, tmp_path / "a.png", tmp_path / "a.svg")
    with pytest.raises(ValueError, match=r"read from \.parquet or \.csv files"):
        figures.draw_figure("mlp_repair", {"heads": Path("heads.xlsx")}, tmp_path / "a.png", tmp_path / "a.svg")


def test_looks_can_be_told_apart():
    own = [*looks.LOOKS.values()]
    assert len({(look.colour, str(look.dash)) for look in own}) == len(own)
    published = [look for _, look in looks.PUBLISHED.values()]
    assert len({look.marker for look in published}) == len(published)


def rendered(path: Path, **changes: object) -> str:
    """A caption as the report shows it: Jinja2, then docutils, where any complaint is an error."""
    params = SimpleNamespace(settings=settings(**changes))
    snakemake = SimpleNamespace(params=params, config={}, wildcards=SimpleNamespace())
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(path.read_text(encoding="utf-8")).render(snakemake=snakemake)
    return publish_parts(text, writer="html5", settings_overrides={"halt_level": 2, "report_level": 1})["html_body"]


@pytest.mark.parametrize("path", [ROOT / "report" / f"{name}.rst" for name in FIGURES], ids=lambda path: path.stem)
@pytest.mark.parametrize("changes", [{}, {"parallel_attention_mlp": True, "first_position": 1, "ablation": "zero"}])
def test_captions(path, changes):
    text = re.sub(r"<[^>]+>", "", rendered(path, **changes))
    assert re.match(r"\s*[A-Z][^.]*\?", text), "the first sentence is a question"
    assert "tiny (random float32)" in text
    assert "Rushing &amp; Nanda 2024" in text
    assert len(text.split()) <= 165
    assert "{" not in text


def test_front_page():
    html = rendered(ROOT / "report" / "workflow.rst")
    assert "self-repair = logit change − (ablated direct effect − direct effect)" in html
