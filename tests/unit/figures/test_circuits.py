"""The figures and findings of self-reinforcement, the next layer, who repairs whom and ablated layers, from made-up tables."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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
    written,
)

pytestmark = pytest.mark.filterwarnings("error")

Tables = dict[str, pd.DataFrame]


def with_interval(frame: pd.DataFrame, names: tuple[str, ...], spread: float = 0.2) -> pd.DataFrame:
    rng = np.random.default_rng(len(frame))
    for name in names:
        if name not in frame:
            frame[name] = rng.normal(0.1, 0.3, len(frame))
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - spread, frame[name] + spread
    return frame


def set_attrs(tables: Tables, n_layers: int, n_heads: int, **changes: object) -> Tables:
    for table in tables.values():
        table.attrs = settings(n_layers, n_heads, **changes)
    return tables


def reinforcement_tables(n_layers: int = 4, n_heads: int = 3) -> Tables:
    rows = [
        {"layer": layer, "head": head, "scale": scale, "relative_depth": layer / max(n_layers - 1, 1), "n_tokens": 25}
        for layer in range(n_layers)
        for head in range(n_heads)
        for scale in (1.0, 3.0)
    ]
    names = ("direct_effect", "change", "change_with_random", "change_with_other", "change_beyond_random")
    table = with_interval(pd.DataFrame(rows), (*names, "change_beyond_other"))
    table["label"] = np.select(
        [table["change_low"] > 0, table["change_high"] < 0], ["reinforcing", "repressing"], "neither"
    )
    return set_attrs({"reinforcement": table}, n_layers, n_heads, ablation="")


def layer_tables(n_layers: int = 4, n_heads: int = 3) -> Tables:
    rows = [
        {"component": component, "layer": layer, "relative_depth": layer / max(n_layers - 1, 1), "n_tokens": 1280}
        for component in ("attention", "mlp")
        for layer in range(n_layers)
    ]
    names = ("removed", "compensation", "self_repair_from_layernorm", "slope_layernorm")
    table = with_interval(pd.DataFrame(rows), (*names, "slope_compensation", "r_squared_compensation"))
    last = (table["component"] == "mlp") & (table["layer"] == n_layers - 1)
    table.loc[last, table.columns[table.columns.str.contains("_compensation")]] = np.nan
    return set_attrs({"layers": table}, n_layers, n_heads)


def next_layer_tables(n_layers: int = 4, n_heads: int = 3) -> Tables:
    chosen = [(layer, head) for layer in range(n_layers - 1, -1, -1) for head in range(n_heads)][n_heads - 1 :][:3]
    correlations = pd.DataFrame(chosen, columns=["layer", "head"]).assign(n_tokens=25)
    follows = correlations["layer"] + 1 < n_layers
    correlations["next_layer"] = (correlations["layer"] + 1).where(follows).astype("Int64")
    correlations["n_heads"] = np.where(follows, n_heads, 0)
    correlations["note"] = np.where(follows, "", "in the last layer: no layer follows")
    with_interval(correlations, ("correlation",))
    correlations.loc[~follows, ["correlation", "correlation_low", "correlation_high"]] = np.nan
    rows = [
        {"layer": layer, "head": head, "next_layer": layer + 1, "next_head": other}
        for layer, head in chosen
        if layer + 1 < n_layers
        for other in range(n_heads)
    ]
    points = pd.DataFrame(rows, columns=["layer", "head", "next_layer", "next_head"])
    with_interval(points, ("change_when_ablated", "change_when_moved"))
    return set_attrs({"correlations": correlations, "heads": points}, n_layers, n_heads)


def repair_tables(n_layers: int = 4, n_heads: int = 3) -> Tables:
    later = [(layer, at) for layer in range(n_layers) for at in range(layer, n_layers)]
    layers = pd.DataFrame(
        [{"layer": layer, "by": "heads", "by_layer": at} for layer, at in later if at > layer]
        + [{"layer": layer, "by": "mlp", "by_layer": at} for layer, at in later]
    ).assign(n_heads=n_heads)
    layers["repair"] = np.random.default_rng(0).normal(0, 0.1, len(layers))
    with_interval(layers, ("repair",), spread=0.05)
    components = [
        {"layer": layer, "head": 0, "by": "head", "by_layer": at, "by_head": head}
        for layer in range(min(n_layers, 2))
        for at in range(layer + 1, n_layers)
        for head in range(n_heads)
    ]
    components += [{"layer": layer, "head": 0, "by": "mlp", "by_layer": at} for layer, at in later if layer < 2]
    whole = [{"layer": layer, "head": 0, "by": by} for layer in range(min(n_layers, 2)) for by in ("layernorm", "all")]
    kinds = {"by_layer": "Int64", "by_head": "Int64"}
    frame = pd.DataFrame(components + whole, columns=["layer", "head", "by", "by_layer", "by_head"])
    rows = with_interval(frame.astype(kinds).assign(n_tokens=25), ("repair",))
    pairs = rows[rows["by"].isin(["head", "mlp"])].sort_values("repair").groupby("by").head(4).reset_index(drop=True)
    pairs.insert(0, "rank", pairs.groupby("by").cumcount() + 1)
    return set_attrs({"layers": layers, "rows": rows, "pairs": pairs}, n_layers, n_heads)


MAKE: dict[str, Callable[..., Tables]] = {
    "self_reinforcement": reinforcement_tables,
    "layer_ablation": layer_tables,
    "next_layer_correlation": next_layer_tables,
    "who_repairs_whom": repair_tables,
}


@pytest.mark.parametrize("name", MAKE)
def test_footer(name: str) -> None:
    footer = module_of(name).draw(MAKE[name]()).get_supxlabel().replace("\n", " ")
    assert "n = 1,280 tokens, 40 prompts of length 33" in footer
    assert ("ablation" in footer) == (name != "self_reinforcement")


@pytest.mark.parametrize("name", MAKE)
def test_nothing_is_drawn_outside_the_page(name: str) -> None:
    check_page(module_of(name).draw(MAKE[name]()))


@pytest.mark.parametrize("name", MAKE)
def test_two_drawings_are_the_same_bytes(name: str, tmp_path: Path) -> None:
    check_bytes(name, MAKE[name](), tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (2, 4)])
@pytest.mark.parametrize("name", MAKE)
def test_tiny_models(name: str, shape: tuple[int, int], tmp_path: Path) -> None:
    tables = MAKE[name](*shape)
    written(module_of(name).draw(tables), tmp_path, "tiny")
    assert all(module_of(name).finding(tables))


@pytest.mark.parametrize("name", MAKE)
def test_missing_table_and_columns_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="is missing"):
        module_of(name).draw({})
    tables = MAKE[name]()
    key, column = {
        "self_reinforcement": ("reinforcement", "change_low"),
        "layer_ablation": ("layers", "removed_high"),
        "next_layer_correlation": ("heads", "change_when_moved"),
        "who_repairs_whom": ("pairs", "repair"),
    }[name]
    for act in (module_of(name).draw, module_of(name).finding):
        with pytest.raises(ValueError, match=f"table '{key}' lacks {column}: remake"):
            act({**tables, key: tables[key].drop(columns=column)})


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("changes", CAPTION_CHANGES)
def test_captions(name: str, changes: dict[str, object]) -> None:
    check_caption(name, **changes)


def test_every_head_is_marked_by_its_label() -> None:
    tables = reinforcement_tables()
    top, *panels = module_of("self_reinforcement").draw(tables).axes
    first = tables["reinforcement"].query("scale == 1")
    for label, count in first["label"].value_counts().items():
        assert n_dots(top, f"{label}: {count}") == count
    assert [panel.get_title() for panel in panels[:1]] == [
        "L{layer}H{head}".format(**first.loc[first["change"].idxmax()].to_dict())
    ]
    for panel in panels:
        (own,) = labelled(panel, "its own output")
        assert list(own.get_xdata()) == [0, 1, 3]
        assert own.get_ydata()[0] == 0


def test_a_model_of_one_head_a_layer_has_one_control() -> None:
    tables = reinforcement_tables(3, 1)
    table = tables["reinforcement"]
    table[[name for name in table if "other" in name]] = np.nan
    figure = module_of("self_reinforcement").draw(tables)
    assert not any(labelled(ax, "another head's output") for ax in figure.axes)
    assert module_of("self_reinforcement").finding(tables)


def test_heat_maps_hold_every_repair_and_are_centred_on_zero() -> None:
    tables = repair_tables()
    figure = module_of("who_repairs_whom").draw(tables)
    maps = [ax.images[0] for ax in figure.axes if ax.images and not ax.get_label().startswith("<colorbar")]
    assert len(maps) == 2 + 2
    for image in maps:
        low, high = image.get_clim()
        assert low == -high < 0
    for image, by in zip(maps, ("heads", "mlp"), strict=False):
        rows = tables["layers"][tables["layers"]["by"] == by]
        matrix = image.get_array()
        for _, row in rows.iterrows():
            assert matrix[row["layer"], row["by_layer"]] == row["repair"]
        assert matrix.count() == len(rows)
    in_full = maps[2].get_array()
    rows = tables["rows"].query("layer == 0 and by in ('head', 'mlp')")
    assert in_full.count() == len(rows)
    for _, row in rows.iterrows():
        assert in_full[3 if row["by"] == "mlp" else row["by_head"], row["by_layer"]] == row["repair"]


def test_cells_that_may_be_zero_are_crossed_and_the_others_counted() -> None:
    tables = repair_tables(8, 3)
    panels = [
        ax for ax in module_of("who_repairs_whom").draw(tables).axes if ax.get_title().startswith("repair by later")
    ]
    line = module_of("who_repairs_whom").finding(tables)[0]
    for ax, by, name in zip(panels, ("heads", "mlp"), ("heads", "MLPs"), strict=True):
        rows = tables["layers"][tables["layers"]["by"] == by]
        unsure = rows.query("repair_low <= 0 <= repair_high")
        assert 0 < len(unsure) < len(rows)
        (crosses,) = [dots for dots in ax.collections if dots.get_label() == "_unsure"]
        np.testing.assert_array_equal(crosses.get_offsets(), unsure[["by_layer", "layer"]])
        above, below = (rows["repair_low"] > 0).sum(), (rows["repair_high"] < 0).sum()
        assert f"by {name} above zero in {above} of {len(rows)} pairs of layers, below in {below}" in line


def test_cells_beyond_the_range_are_counted() -> None:
    tables = repair_tables(12, 3)
    tables["layers"].loc[3, "repair"] = -9.0
    text = words(module_of("who_repairs_whom").draw(tables))
    assert re.search(r"dots: \d+ beyond ±[\d.]+,\nup to ±9", text)


def test_heads_of_the_last_layer_are_told_and_drawn() -> None:
    tables = next_layer_tables()
    assert (tables["correlations"]["layer"] == 3).any()
    figure = module_of("next_layer_correlation").draw(tables)
    assert "no layer follows" in words(figure)
    lines = module_of("next_layer_correlation").finding(tables)
    assert len(lines) == 3
    assert "in the last layer" in lines[0]
    assert "correlates" in lines[1]


def numbers(text: str) -> list[str]:
    return re.findall(r"−?\d[\d,.]*\d|\d", text)


@pytest.mark.parametrize("name", MAKE)
def test_findings_read_their_numbers_from_the_tables(name: str) -> None:
    tables = MAKE[name]()
    before = numbers(" ".join(module_of(name).finding(tables)))
    for table in tables.values():
        for column in table.select_dtypes("float").columns.difference(["scale", "relative_depth"]):
            table[column] *= 1.7
    after = numbers(" ".join(module_of(name).finding(tables)))
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= 5


def test_findings_quote_the_strongest_pair_and_the_best_layer() -> None:
    tables = repair_tables()
    pair = tables["pairs"].query("by == 'mlp' and rank == 1").iloc[0]
    lines = module_of("who_repairs_whom").finding(tables)
    quoted = f"L{pair['layer']}H{pair['head']} → MLP {pair['by_layer']}: {style_number(pair['repair'])} logits"
    assert quoted in lines[2]
    table = layer_tables()["layers"]
    best = table[table["component"] == "attention"].nlargest(1, "r_squared_compensation").iloc[0]
    assert (
        f"most closely in layer {best['layer']}, with R² " in module_of("layer_ablation").finding({"layers": table})[0]
    )


def style_number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def test_self_reinforcement_that_is_not_measured_is_told_in_words() -> None:
    note = "the attention of layer 1 makes masks of its own"
    table = reinforcement_tables()["reinforcement"]
    tables = {"reinforcement": set_attrs_of(pd.DataFrame({"note": [note]}), table)}
    figure = module_of("self_reinforcement").draw(tables)
    assert next(text.get_text() for text in figure.texts) == note
    assert "n = 1,280 tokens" in figure.get_supxlabel()
    assert module_of("self_reinforcement").finding(tables) == [f"Self-reinforcement is not measured: {note}."]


def set_attrs_of(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    table.attrs = dict(other.attrs)
    return table


def parallel_of_one_layer(tables: Tables) -> Tables:
    """What a run gives where nothing reads what the ablated heads write."""
    for table in tables.values():
        table.attrs = settings(1, 3, parallel_attention_mlp=True)
    return tables


def test_heads_that_nothing_reads_are_told_of_in_every_panel(tmp_path: Path) -> None:
    tables = repair_tables(1, 3)
    empty = {"layers": tables["layers"].iloc[:0].astype(object), "pairs": tables["pairs"].iloc[:0]}
    rows = tables["rows"][~tables["rows"]["by"].isin(["head", "mlp"])].reset_index(drop=True)
    tables = parallel_of_one_layer({**empty, "rows": rows})
    who_repairs_whom = module_of("who_repairs_whom")
    figure = who_repairs_whom.draw(tables)
    check_page(figure)
    written(figure, tmp_path, "nothing")
    told = " ".join(words(figure).split())
    why = "No head or MLP repairs or breaks any ablated head: all are of the last layer, whose MLP runs beside its attention."
    assert told.count(why) == 4
    assert told.count("Nothing that follows can repair it but the final norm.") == 1
    lines = who_repairs_whom.finding(tables)
    assert lines[0] == why
    assert "Nothing that follows L0H0 can repair it but the final norm." in lines[3]
    assert who_repairs_whom.in_short(tables) == [f"**{why.replace(':', '**:', 1)}"]


def test_pairs_that_do_not_repair_leave_the_layers_drawn() -> None:
    tables = repair_tables()
    tables["pairs"] = set_attrs_of(tables["pairs"].iloc[:0], tables["pairs"])
    who_repairs_whom = module_of("who_repairs_whom")
    told = " ".join(words(who_repairs_whom.draw(tables)).split())
    assert told.count("No head or MLP repairs or breaks any ablated head.") == 2
    assert who_repairs_whom.in_short(tables) == ["**No head or MLP repairs or breaks any ablated head**."]


def test_layers_that_nothing_follows_have_no_slope() -> None:
    tables = layer_tables(1, 3)
    table = tables["layers"]
    table[[name for name in table if "_compensation" in name]] = np.nan
    compensation = ["compensation", "compensation_low", "compensation_high"]
    table[compensation] = 0.0
    layer_ablation = module_of("layer_ablation")
    figure = layer_ablation.draw(parallel_of_one_layer(tables))
    check_page(figure)
    why = "No later component changes when a whole"
    assert words(figure).count(f"{why}\nattention or MLP is ablated") == 2
    lines = layer_ablation.finding(tables)
    for line, name, removed in zip(lines, ("attention", "MLP"), table["removed"], strict=True):
        assert line.startswith(
            f"{why} {name} is ablated. Nothing reads what it writes but the final norm, so that there is"
        )
        assert f"over all 1,280 tokens: {style_number(removed)} logits" in line
    # Where later components do change, slopes that are missing are a fault.
    table[compensation] = 0.1
    for act in (layer_ablation.draw, layer_ablation.finding):
        with pytest.raises(ValueError, match="has no value in slope_compensation, "):
            act(tables)


def test_one_head_in_the_next_layer_is_drawn_without_a_correlation() -> None:
    tables = next_layer_tables(3, 1)
    correlations = tables["correlations"]
    follows = correlations["note"] == ""
    correlations.loc[follows, "note"] = "one head in the next layer: nothing to correlate"
    correlations[["correlation", "correlation_low", "correlation_high"]] = np.nan
    figure = module_of("next_layer_correlation").draw(tables)
    check_page(figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[1] == "L1H0: one next head,\nnothing to correlate"
    assert len([text for text in figure.axes[1].texts if text.get_text() == "L2H0"]) == 1
    lines = module_of("next_layer_correlation").finding(tables)
    row = tables["heads"].query("layer == 1").iloc[0]
    change = style_number(row["change_when_ablated"])
    assert "L2H0 is in the last layer" in lines[0]
    assert lines[1].startswith(
        "L1H0 has one head in the next layer: nothing to correlate. The direct effect of L2H0 changes by "
        f"{change} logits ("
    )
