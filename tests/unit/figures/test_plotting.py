"""Every figure in axes of the user's own: what is drawn is what is published, and nothing else of the user's changes."""

from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from selfrepair.figures import figure_names
from selfrepair.figures.plotting import panel_names, plot_figure
from unit.figures.shared import make_tables, module_of
from unit.figures.test_circuits import MAKE, reinforcement_tables, set_attrs_of
from unit.figures.test_controls import control_tables, noise_tables, published_tables
from unit.figures.test_layernorm import tables as layernorm_tables  # noqa: F401
from unit.figures.test_models import joined
from unit.figures.test_neurons import by_figure
from unit.tables.test_neurons import condensed, shard

pytestmark = pytest.mark.filterwarnings("error")

Tables = dict[str, pd.DataFrame]
ONE_PANEL = {"self_repair_by_layer", "models_by_layer"}


@pytest.fixture(scope="module")
def every(layernorm_tables: dict[str, Tables], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tables]:  # noqa: F811
    """Tables of every figure."""
    folder, rng = tmp_path_factory.mktemp("every"), np.random.default_rng(0)
    models = joined(folder)
    made = {
        **make_tables(),
        **{name: make() for name, make in MAKE.items()},
        "selection_control": control_tables(),
        "donor_noise": noise_tables(),
        "published_comparison": published_tables(folder / "published", "gpt2-small"),
        **by_figure(condensed(folder, [shard(rng, 40, 12), shard(rng, 40, 12)])),
        **layernorm_tables,
        "models_by_layer": models,
        "models_and_published": models,
    }
    assert sorted(made) == figure_names()
    return made


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    with mpl.rc_context({"lines.linewidth": 3.25, "axes.spines.top": True}):
        yield
    plt.close("all")


def data_of(ax: Axes) -> list[np.ndarray]:
    """Places of the lines and dots that stand for data, in the order in which they were drawn."""
    lines = [np.column_stack([line.get_xdata(), line.get_ydata()]).astype(float) for line in ax.lines]
    return lines + [np.ma.filled(dots.get_offsets(), np.nan) for dots in ax.collections] + [
        np.ma.filled(image.get_array(), np.nan) for image in ax.images
    ]  # fmt: skip


@pytest.mark.parametrize("name", figure_names())
def test_axes_given_show_what_is_published(name: str, every: dict[str, Tables]) -> None:
    tables = every[name]
    names = panel_names(name, tables)
    n = len(names)
    assert (n == 1) == (name in ONE_PANEL)
    before, figures = dict(mpl.rcParams), plt.get_fignums()
    # Twice into one figure, in a grid of the user's own.
    figure, grid = plt.subplots(2, n, squeeze=False)
    for row in grid:
        given = row[0] if n == 1 else row
        assert plot_figure(name, tables, given) is given
    assert plt.get_fignums() == [*figures, figure.number]
    assert dict(mpl.rcParams) == before
    page = module_of(name).draw(tables)
    published = [ax for ax in page.axes if ax.get_xlabel() or ax.get_ylabel() or ax.get_title()]
    published = [ax for ax in published if data_of(ax)][:n]
    for row in grid:
        for ax, theirs in zip(row, published, strict=True):
            ours, wanted = data_of(ax), data_of(theirs)
            assert len(ours) == len(wanted) > 0
            for one, other in zip(ours, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
            assert ax.get_xlim() == theirs.get_xlim()
            # There, panels side by side share what matplotlib finds fitting for all; the user's axes may be anywhere.
            assert ax.get_ylim() == theirs.get_ylim() or name == "self_reinforcement"
            assert ax.get_xlabel() == theirs.get_xlabel()
    head = grid[0, 0].get_title().replace("\n", " ")
    assert "tokens" in head


@pytest.mark.parametrize("name", figure_names())
def test_without_axes_a_figure_is_made(name: str, every: dict[str, Tables]) -> None:
    names = panel_names(name, every[name])
    whole = plot_figure(name, every[name])
    if len(names) == 1:
        assert isinstance(whole, Axes)
    else:
        assert whole.shape == (len(names),)
    figure = (whole if len(names) == 1 else whole[0]).figure
    assert plt.get_fignums() == [figure.number]
    assert figure.get_layout_engine() is not None
    figure.canvas.draw()
    last = plot_figure(name, every[name], panel=names[-1])
    assert isinstance(last, Axes)
    for one, other in zip(data_of(last), data_of(whole if len(names) == 1 else whole[-1]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_numbers_drawn_are_the_tables() -> None:
    tables = make_tables()["self_repair_by_layer"]
    ax = plot_figure("self_repair_by_layer", tables)
    (line,) = [line for line in ax.lines if line.get_label() == "this run: layer mean"]
    layers = tables["layers"].query("selection == 'top'").sort_values("relative_depth")
    np.testing.assert_array_equal(line.get_ydata(), layers["self_repair"])
    (dots,) = [dots for dots in ax.collections if dots.get_label() == "this run: a head"]
    np.testing.assert_array_equal(dots.get_offsets()[:, 1], tables["heads"].query("selection == 'top'")["self_repair"])
    assert ax.get_legend() is not None
    head = ax.figure.get_suptitle().replace("\n", " ")
    assert "tiny · resample ablation · n = 1,280 tokens" in head
    assert "95% intervals" in head


def test_published_lines_are_left_out_where_there_are_no_published_values() -> None:
    tables = make_tables()["self_repair_by_layer"]
    del tables["published"]
    labels = plot_figure("self_repair_by_layer", tables).get_legend_handles_labels()[1]
    assert set(labels) == {"this run: a head", "this run: layer mean"}
    assert not any("published" in line for line in module_of("self_repair_by_layer").finding(tables))


def test_a_reason_stands_in_axes_too() -> None:
    note = "the attention of layer 1 makes masks of its own"
    tables = {"reinforcement": set_attrs_of(pd.DataFrame({"note": [note]}), reinforcement_tables()["reinforcement"])}
    ax = plot_figure("self_reinforcement", tables)
    assert [text.get_text().replace("\n", " ") for text in ax.texts] == [note]


WRONG: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "too few": (
        lambda: plt.subplots(1, 3)[1],
        {},
        r"token_noise has 4 panels here \(L1H7, L2H7, L3H7, L4H7\) and got 3 axes: give 4, or one and panel=",
    ),
    "one": (lambda: plt.subplots()[1], {}, "got 1 axes: give 4"),
    "too many": (lambda: plt.subplots(1, 2)[1], {"panel": "L2H7"}, r"1 panel here \(L2H7\) and got 2 axes: give 1$"),
    "no axes": (lambda: plt.figure(), {}, r"ax holds Figure, wanted matplotlib axes: make some with plt\.subplots"),
    "no panel": (lambda: None, {"panel": "L9H9"}, r"token_noise has no panel 'L9H9': choose one of L1H7, L2H7"),
}


@pytest.mark.parametrize(("ax", "options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_axes_are_told_in_a_line(ax: Callable[[], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        plot_figure("token_noise", make_tables()["token_noise"], ax(), **options)
    assert "\n" not in str(error.value)


def test_an_unknown_figure_is_told() -> None:
    with pytest.raises(ValueError, match="no figure 'pie'"):
        plot_figure("pie", {})


def test_settings_stand_in_the_first_axes_alone() -> None:
    _, axes = plt.subplots(2, 2)
    plot_figure("token_noise", make_tables()["token_noise"], axes)
    told = ["n = 300 tokens" in ax.get_title().replace("\n", " ") for ax in axes.ravel()]
    assert told == [True, False, False, False]
