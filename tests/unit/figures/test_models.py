"""Figures of all models of a run: drawn from joined made-up tables, what they say, and their captions."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.figures import findings, models_and_published, models_by_layer
from selfrepair.figures.style import looks
from selfrepair.figures.wording import measured
from selfrepair.files.tables import read_table, write_table
from selfrepair.tables.all_models import join_models
from selfrepair.tables.published import tabulate_published
from unit.figures.shared import (
    PUBLISHED,
    check_bytes,
    check_page,
    labelled,
    make_heads,
    make_layers,
    make_model,
    module_of,
    rendered,
    words,
)

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = ("models_by_layer", "models_and_published")
NAMES = ("gpt2-small", "a-model-of-a-rather-long-name")
"""One is called as a published model is."""
SIZES = ("4 layers of 3 heads", "6 layers of 4 heads")


def joined(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, pd.DataFrame]:
    """Tables of models of other sizes, joined by the workflow's own code."""
    files: dict[str, list[Path]] = {}
    for at, name in enumerate(names):
        heads = make_heads(4 + 2 * at, 3 + at, model=name)
        own = {"heads": heads, "layers": make_layers(heads), "model": make_model(heads)}
        for kind, table in own.items():
            files.setdefault(kind, []).append(folder / f"{kind}_{at}.parquet")
            write_table(table, files[kind][-1], table.attrs)
        outs = {kind: folder / f"{kind}_{at}.parquet" for kind in ("pairs", "agreement", "distributions")}
        tabulate_published(
            heads_table=files["heads"][-1],
            published=PUBLISHED,
            model=None,
            **{f"{kind}_out": path for kind, path in outs.items()},
        )
        files.setdefault("distributions", []).append(outs["distributions"])
    for kind, paths in files.items():
        join_models(tables=paths, out=folder / f"{kind}.parquet")
    return {kind: read_table(folder / f"{kind}.parquet") for kind in files}


@pytest.mark.parametrize("name", FIGURES)
def test_page_and_bytes(name: str, tmp_path: Path) -> None:
    for count in (2, 7):
        (tmp_path / str(count)).mkdir()
        tables = joined(tmp_path / str(count), (*NAMES, *(f"model-{at}" for at in range(count - 2))))
        figure = module_of(name).draw(tables)
        check_page(figure)
        footer = figure.get_supxlabel().replace("\n", " ")
        assert "n = 1,280 tokens, 40 prompts of length 33" in footer
        assert all(f"{model} (random float32)" in footer for model in tables["heads"].attrs["model"])
    check_bytes(name, tables, tmp_path)


def test_every_model_has_its_dots_its_line_and_its_name(tmp_path: Path) -> None:
    figure = models_by_layer.draw(joined(tmp_path))
    (ax,) = figure.axes
    assert sorted(len(dots.get_offsets()) for dots in labelled(ax, "this run: a head")) == [4 * 3, 6 * 4]
    colours = set()
    for model, n_layers in zip(NAMES, (4, 6), strict=True):
        (line,) = labelled(ax, model)
        np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1, n_layers))
        (name,) = [text for text in ax.texts if text.get_text() == model]
        assert name.get_color() == line.get_color()
        colours.add(line.get_color())
    assert len(colours) == 2


def test_names_of_lines_that_end_at_one_height_stand_apart(tmp_path: Path) -> None:
    tables = joined(tmp_path, (*NAMES, "third"))
    ends = [column for column in tables["layers"] if column.startswith("self_repair")]
    tables["layers"][ends] = 0.25
    (ax,) = models_by_layer.draw(tables).axes
    places = sorted(text.xyann[1] for text in ax.texts)
    assert np.diff(places).min() >= 0.044 * np.diff(ax.get_ylim())


def test_a_model_of_the_run_stands_beside_the_published_one_of_its_name(tmp_path: Path) -> None:
    tables = joined(tmp_path)
    text = words(models_and_published.draw(tables))
    assert "gpt2-small" in text
    assert "GPT-2 small, published" in text
    lines = models_and_published.finding(tables)
    table = tables["distributions"]
    row = table.query("model == 'gpt2-small' and not published and depth == 'last' and quantity == 'self_repair'")
    told = re.search(r"layers: gpt2-small (\S+) \(", lines[0])
    assert told is not None
    assert float(told.group(1).replace("−", "-")) == pytest.approx(row["median"].iloc[0], abs=0.0051)
    assert lines[0].index(NAMES[1]) < lines[0].index("Pythia-160M, published")


def test_looks_of_a_run_are_told_apart() -> None:
    six = looks.run_looks(6)
    assert len({look.colour for look in six}) == len({(look.marker, look.hollow) for look in six}) == 6
    assert looks.run_looks(8)[6:] == six[:2]


@pytest.mark.parametrize("name", FIGURES)
def test_what_is_missing_is_named(name: str, tmp_path: Path) -> None:
    tables = joined(tmp_path)
    key, column = {"models_by_layer": ("layers", "self_repair"), "models_and_published": ("distributions", "median")}[
        name
    ]
    for run in (module_of(name).draw, module_of(name).finding):
        with pytest.raises(ValueError, match=f"table '{key}' lacks {column}: remake"):
            run({**tables, key: tables[key].drop(columns=column)})


def test_findings_of_all_models(tmp_path: Path) -> None:
    tables = joined(tmp_path)
    # As where one model has post-norms and the other none.
    tables["layers"].loc[tables["layers"]["model"] == NAMES[0], "self_repair_from_postnorms"] = float("nan")
    lines = models_by_layer.finding(tables)
    assert [line.partition(":")[0] for line in lines] == list(NAMES)
    pooled = tables["model"].query("model == 'gpt2-small' and selection == 'top'")["pooled_repair_fraction"].iloc[0]
    assert f"restores {100 * pooled:.0f}% (" in lines[0].replace("−", "-")
    layers = tables["layers"].query("model == 'gpt2-small' and selection == 'top'")
    best = layers.loc[layers["self_repair"].idxmax()]
    assert f", of which {measured(best, 'self_repair_from_heads')} from other heads, " in lines[0]
    assert ["from post-norms" in line for line in lines] == [False, True]
    checks = {"measurement": ["ablations"], "repeated": [4], "numbers": [2000], "largest_difference": [2e-5]}
    write_table(pd.DataFrame(checks), tmp_path / "checks.parquet", {})
    files = {kind: tmp_path / f"{kind}.parquet" for kind in ("heads", "layers", "model")}
    out = tmp_path / "findings.md"
    findings.write_findings(
        heads=files["heads"],
        checks=tmp_path / "checks.parquet",
        tables={"models_by_layer": files},
        figures=[tmp_path / "a.png"],
        out=out,
    )
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# Findings: all models on wikipedia\n")
    told = [f"{name} (random float32), {sizes}" for name, sizes in zip(NAMES, SIZES, strict=True)]
    assert f"| Models | {'; '.join(told)} |" in text


@pytest.mark.parametrize("name", FIGURES)
def test_captions(name: str) -> None:
    text = re.sub(r"<[^>]+>", "", rendered(name, models="a (float32), b (Q4_1)"))
    assert re.match(r"\s*[A-Z][^.]*\?", text), "the first sentence is a question"
    assert "a (float32), b (Q4_1); wikipedia" in text
    assert "Rushing &amp; Nanda 2024" in text
    assert len(text.split()) <= 190
