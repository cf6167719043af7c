"""A run's figures in axes, from the tables that the workflow draws them from."""

import inspect
from pathlib import PurePosixPath

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

import selfrepair
from selfrepair.figures import catalogue
from selfrepair.run.opened import Run
from selfrepair.run.plot import Plots
from selfrepair.workflow.records import read_record
from workflow.running import Space

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def run(finished: Space) -> Run:
    return selfrepair.open_run(finished.run)


def test_every_figure_is_a_method_with_its_panels_told() -> None:
    methods = {name for name, _ in inspect.getmembers(Plots, inspect.isfunction) if not name.startswith("_")}
    assert methods - {"panels"} == {*catalogue.CATALOGUE, *catalogue.OF_MODELS}
    for name in methods - {"panels"}:
        assert "anel" in (inspect.getdoc(getattr(Plots, name)) or "")


def test_the_workflow_draws_each_figure_from_the_tables_that_the_run_takes(run: Run, finished: Space) -> None:
    """What rules take as inputs, and what a notebook draws, is one entry of the catalogue."""
    assert set(catalogue.CATALOGUE) == finished.figures
    drawn = catalogue.figures_of(run.plot._asked())
    assert set(drawn) == finished.figures
    for figure, tables in drawn.items():
        recorded = read_record(run.folder / "figures" / f"{figure}.png")["upstream"]
        inputs = {tuple(PurePosixPath(path).parts[-2:]) for path in recorded}
        wanted = {(kind, f"{name}.parquet") for name, kind in tables.values() if name != catalogue.PUBLISHED}
        assert {place for place in inputs if place[1].endswith(".parquet")} == wanted, figure
        assert ("published", "self_repair_by_head.csv") in inputs or figure != "self_repair_by_layer"


@pytest.mark.parametrize("figure", catalogue.CATALOGUE)
def test_a_figure_of_the_run_is_drawn(run: Run, figure: str) -> None:
    method, names = getattr(run.plot, figure), run.plot.panels(figure)
    axes = method()
    assert (isinstance(axes, Axes)) == (len(names) == 1)
    _, ax = plt.subplots()
    assert method(ax, panel=names[0]) is ax
    plt.close("all")


def test_another_kind_is_drawn_from_its_own_tables(run: Run) -> None:
    for kind in run.kinds:
        ax = run.plot.self_repair_by_layer(kind=kind)
        (line,) = [line for line in ax.lines if line.get_label() == "this run: layer mean"]
        np.testing.assert_array_equal(line.get_ydata(), run.layers(kind)["self_repair"])
        assert run.plot.panels("effect_vs_logit_change", kind=kind) == [kind]
    assert run.plot.panels("effect_vs_logit_change") == list(run.kinds)
    plt.close("all")


WRONG = {
    "a kind that the run has not": (
        lambda run: run.plot.mlp_repair(kind="median"),
        "the run has no 'median' ablation: wanted one of resample, mean, zero",
    ),
    "a table of the main kind alone": (
        lambda run: run.plot.who_repairs_whom(kind="zero"),
        "there is no table 'repair_by_layer' of zero ablation in ",
    ),
    "a figure of resampling": (
        lambda run: run.plot.layer_ablation(kind="zero"),
        "layer_ablation is of resample ablation alone: leave kind out",
    ),
    "several models": (lambda run: run.plot.models_by_layer(), "a run of several models makes it"),
    "no figure": (lambda run: run.plot.panels("pie"), "no figure 'pie': choose one of self_repair_by_layer"),
}


@pytest.mark.parametrize(("ask", "told"), WRONG.values(), ids=WRONG)
def test_what_a_run_does_not_have_is_told_in_a_line(run: Run, ask, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        ask(run)
    assert "\n" not in str(error.value)
