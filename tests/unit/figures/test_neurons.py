"""The figures of neurons, drawn from tables that the package condenses from made-up shards; their findings and captions."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from unit.figures.shared import (
    CAPTION_CHANGES,
    check_bytes,
    check_caption,
    check_page,
    labelled,
    module_of,
    n_dots,
    settings,
    words,
)
from unit.tables.test_neurons import condensed, noted, shard

pytestmark = pytest.mark.filterwarnings("error")

FIGURES = ("neuron_share", "neuron_concentration", "erasure_neurons", "neuron_consistency")
HEADS = ["L1H3", "L0H2"]


@pytest.fixture
def tables(tmp_path: Path, rng: np.random.Generator) -> dict[str, dict[str, pd.DataFrame]]:
    return by_figure(condensed(tmp_path, [shard(rng, 40, 12), shard(rng, 40, 12)]))


def by_figure(found: dict[str, pd.DataFrame]) -> dict[str, dict[str, pd.DataFrame]]:
    for table in found.values():
        table.attrs.update(settings())
    return {
        **{name: {name: found[name]} for name in FIGURES if name != "erasure_neurons"},
        "erasure_neurons": {"neurons": found["erasure_neurons"], "quadrants": found["erasure_quadrants"]},
    }


def draw(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> Figure:
    return module_of(name).draw(tables[name])


def finding(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> list[str]:
    return module_of(name).finding(tables[name])


@pytest.mark.parametrize("name", FIGURES)
def test_a_panel_a_head_within_the_page(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    figure = draw(name, tables)
    assert [ax.get_title() for ax in figure.axes[:2]] == HEADS
    footer = figure.get_supxlabel().replace("\n", " ")
    assert "n = 1,280 tokens, 40 prompts of length 33" in footer
    assert "layer 2" in footer
    check_page(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_one_head_alone(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    one = {key: table[table["rank"] == 1] for key, table in tables[name].items()}
    figure = draw(name, {name: one})
    assert figure.axes[0].get_title() == HEADS[0]
    assert len(finding(name, {name: one})) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_no_neurons_are_told_in_words(name: str, tmp_path: Path) -> None:
    dense = ", ".join(map(str, range(27)))
    note = f"layer 27 is a mixture of experts: its neurons differ from token to token; dense layers ({dense})"
    tables = by_figure(noted(tmp_path, note))
    figure = draw(name, tables)
    assert [ax.get_title() for ax in figure.axes] == HEADS
    assert note in words(figure).replace("\n", " ")
    assert "n = 1,280 tokens" in figure.get_supxlabel()
    check_page(figure)
    assert finding(name, tables) == [f"No neurons are compared: {note}."]


@pytest.mark.parametrize("name", FIGURES)
def test_two_drawings_are_the_same_bytes(name: str, tables: dict[str, dict[str, pd.DataFrame]], tmp_path: Path) -> None:
    check_bytes(name, tables[name], tmp_path)


@pytest.mark.parametrize("name", FIGURES)
def test_missing_columns_are_named(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    key = next(iter(tables[name]))
    column = "direct_effect" if name == "erasure_neurons" else tables[name][key].columns[-1]
    tables[name][key] = tables[name][key].drop(columns=column)
    with pytest.raises(ValueError, match=f"table '{key}' lacks {column}: remake"):
        draw(name, tables)


def test_lines_are_the_tables(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    ax = draw("neuron_share", tables).axes[1]
    table = tables["neuron_share"]["neuron_share"]
    rows = table[(table["rank"] == 2) & (table["share_of_effect"] == 0.025)]
    (line,) = labelled(ax, "2.5%")
    np.testing.assert_array_equal(line.get_ydata(), rows["token_share"])
    ax = draw("neuron_concentration", tables).axes[0]
    table = tables["neuron_concentration"]["neuron_concentration"]
    (line,) = labelled(ax, "absolute change when the head is ablated")
    np.testing.assert_array_equal(line.get_ydata(), table[table["rank"] == 1]["share_of_change"])
    ax = draw("neuron_consistency", tables).axes[0]
    table = tables["neuron_consistency"]["neuron_consistency"]
    (line,) = labelled(ax, "among the first 5")
    np.testing.assert_array_equal(line.get_ydata(), table[(table["rank"] == 1) & (table["top"] == 5)]["token_share"])


def test_every_token_is_drawn_and_the_shares_told(tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    figure = draw("erasure_neurons", tables)
    tokens, quadrants = tables["erasure_neurons"]["neurons"], tables["erasure_neurons"]["quadrants"]
    for rank, ax in enumerate(figure.axes[:2], start=1):
        assert n_dots(ax, "_tokens") == (tokens["rank"] == rank).sum()
        share = quadrants[(quadrants["rank"] == rank) & (quadrants["quadrant"] == "anti_erasure")]["token_share"].item()
        assert f"Anti-Erasure {100 * share:.0f}%" in words(figure)
        assert ax.get_xlim() == ax.get_ylim() == figure.axes[0].get_xlim()
    (dots,) = labelled(figure.axes[0], "_tokens")
    low, high = dots.get_clim()
    assert low == -high, "zero is in the middle of the colours"


@pytest.mark.parametrize("name", FIGURES)
def test_findings_state_the_tables_numbers(name: str, tables: dict[str, dict[str, pd.DataFrame]]) -> None:
    lines = finding(name, tables)
    assert [line.split(",")[0].split(":")[0] for line in lines] == HEADS
    assert "Rushing & Nanda 2024" in lines[-1]
    key = "quadrants" if name == "erasure_neurons" else name
    column = {"neuron_concentration": "share_of_change"}.get(name, "token_share")
    table = tables[name][key]
    first = {
        "neuron_share": {"nth": 1, "share_of_effect": 0.1},
        "neuron_concentration": {"neurons": 1},
        "erasure_neurons": {"quadrant": "anti_erasure"},
        "neuron_consistency": {"top": 1, "neuron_rank": 1},
    }[name]
    for rank, line in enumerate(lines, start=1):
        row = table[(table[["rank", *first]] == pd.Series({"rank": rank, **first})).all(axis=1)].iloc[0]
        value, low, high = (100 * row[column + end] for end in ("", "_low", "_high"))
        assert re.search(rf"{value:.0f}% \({low:.0f} to {high:.0f}%\)", line), (value, low, high, line)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("changes", CAPTION_CHANGES)
def test_captions(name: str, changes: dict[str, object]) -> None:
    check_caption(name, **changes)
