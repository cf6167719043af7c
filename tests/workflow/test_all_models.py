"""A run of two models on one text: their tables joined, and the figures that show both."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import selfrepair
from workflow.running import Space
from workflow.test_elsewhere import submitted

pytestmark = pytest.mark.filterwarnings("error")

ALL = Path("results") / "all_models" / "words"
MADE = {"tabulate_all_models": 1, "draw_models_by_layer": 1, "draw_models_and_published": 1, "write_models_findings": 1}


@pytest.fixture(scope="module")
def two(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """The tiny run beside the same model under another name, with what the figures of both need."""
    space = finished.copy(tmp_path_factory.mktemp("two") / "space")
    space.change("models.other", {"source": "path:model"})
    space.change("run.models", ["tiny", "other"])
    space.make("models_by_layer", "models_and_published", str(ALL / "findings.md"))
    return space


def test_tables_of_both_models_are_joined(two: Space) -> None:
    tables = two.work / ALL / "tables" / "resample"
    heads = pd.read_parquet(tables / "heads.parquet")
    own = pd.read_parquet(two.run / "tables" / "resample" / "heads.parquet")
    assert heads.attrs["model"] == ["tiny", "other"]
    for model in ("tiny", "other"):
        rows = heads[heads["model"] == model].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, own, check_like=True)
    distributions = pd.read_parquet(tables / "distributions.parquet")
    assert set(distributions[~distributions["published"]]["model"]) == {"tiny", "other"}
    assert distributions[distributions["published"]]["model"].nunique() == 4


def test_figures_and_findings_of_both_are_made(two: Space) -> None:
    for figure in ("models_by_layer", "models_and_published"):
        for ending in ("png", "svg"):
            assert (two.work / ALL / "figures" / f"{figure}.{ending}").stat().st_size > 0
    text = (two.work / ALL / "findings.md").read_text(encoding="utf-8")
    assert text.startswith("# Findings: all models on words\n")
    assert "\n- tiny: the rest of the model restores" in text
    assert "\n- other: the rest of the model restores" in text


def test_no_model_waits_for_another_on_a_cluster(two: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables and figures go together by model; what is of all models is a job of its own."""
    space = two.copy(tmp_path / "space")
    again = ("self_repair_by_layer", "models_by_layer", "--forcerun", "tabulate_heads")
    assert len(submitted(space, tmp_path, monkeypatch, *again)) == 3


def test_an_edit_of_what_joins_or_draws_makes_these_stale(two: Space) -> None:
    targets = ("models_by_layer", "models_and_published", str(ALL / "findings.md"))
    assert two.jobs(*targets) == {}
    for module, jobs in (
        ("tables/all_models.py", MADE),
        ("figures/models_by_layer.py", {"draw_models_by_layer": 1, "write_models_findings": 1}),
        ("figures/shared/models.py", {name: 1 for name in MADE if name != "tabulate_all_models"}),
    ):
        content = (two.package / module).read_text(encoding="utf-8")
        with two.edited(two.package / module, content, f"{content}\n_EDITED = True\n"):
            assert two.jobs(*targets) == jobs


def test_a_run_of_one_model_has_none_of_them(finished: Space) -> None:
    assert not (finished.work / "results" / "all_models").exists()
    assert finished.jobs("models_by_layer") == {}
    assert (finished.work / "results" / "tiny").is_dir()


def test_no_model_may_have_their_folders_name(copied: Space) -> None:
    copied.change("models.all_models", {"source": "path:model"})
    done = copied.snakemake("--dry-run")
    assert done.returncode != 0
    assert "models has 'all_models', which is no name: wanted letters" in done.stdout


def test_a_run_of_several_models_draws_them_into_axes(two: Space) -> None:
    run = selfrepair.open_run(two.run)
    assert "models_by_layer, models_and_published" in repr(run.plot)
    ax = run.plot.models_by_layer()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["this run: a head", "tiny", "other"]
    table = pd.read_parquet(two.work / ALL / "tables" / "resample" / "layers.parquet").query("selection == 'top'")
    for line in (line for line in ax.lines if line.get_label() in ("tiny", "other")):
        of_model = table[table["model"] == line.get_label()]
        np.testing.assert_array_equal(line.get_ydata(), of_model["self_repair"])
    axes = run.plot.models_and_published()
    assert len(axes) == len(run.plot.panels("models_and_published")) == 6
    # So long a legend would lie over what the panel shows.
    assert [ax.get_legend() for ax in axes] == [None] * 6
    (legend,) = axes[0].figure.legends
    assert {"tiny", "other"} <= {text.get_text() for text in legend.get_texts()}
    with pytest.raises(ValueError, match="models_by_layer is of resample ablation alone: leave kind out"):
        run.plot.models_by_layer(kind="zero")
    with pytest.raises(ValueError, match="the run has no 'median' ablation: wanted one of resample, mean, zero"):
        run.plot.models_by_layer(kind="median")
    plt.close("all")


def test_models_that_an_earlier_run_compared_are_not_drawn(two: Space, tmp_path: Path) -> None:
    """Their tables stay where they are when a run goes on with one model alone."""
    space = two.copy(tmp_path / "space")
    space.change("run.models", ["tiny"])
    space.change("tokens.prompts", 4)
    space.make("results/tiny/words/tables/resample/heads.parquet")
    run = selfrepair.open_run(space.run)
    with pytest.raises(ValueError, match=r"heads.parquet is not of this run \(.* is not the one that it was made of\)"):
        run.plot.models_by_layer()
    assert run.model == "tiny"
    run.model = "third"
    with pytest.raises(ValueError, match=r"heads.parquet is of tiny, other: name third in run.models too"):
        run.plot.models_by_layer()
