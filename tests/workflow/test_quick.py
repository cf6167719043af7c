"""A first figure in minutes, and the whole run that goes on from it; in that, too, what the figure is made from goes first."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from selfrepair.files.tables import read_table
from selfrepair.workflow.graph import _workflow
from workflow.running import Space

pytestmark = pytest.mark.filterwarnings("error")

QUICK = {"find_quick_thresholds", "tabulate_quick_heads", "draw_quick"}
CHECKS = {"check_model", "check_published", "check_prompts"}


def started(printed: str) -> list[str]:
    """Messages of jobs, in the order in which these were started."""
    return re.findall(r"^Job \d+: (.*)$", printed, re.MULTILINE)


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def looked(fresh: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """After a first look. Only to be read."""
    space = fresh.copy(tmp_path_factory.mktemp("quick") / "space")
    (space.work / "printed.txt").write_text(space.make("quick"), encoding="utf-8")
    return space


def test_the_first_look_is_at_the_tokens_of_one_shard(looked: Space) -> None:
    heads = read_table(looked.run / "quick" / "tables" / "resample" / "heads.parquet")
    assert (heads.attrs["n_prompts"], heads.attrs["prompts_of_run"], heads.attrs["n_tokens"]) == (4, 8, 60)
    with xr.open_dataset(looked.run / "ablations" / "resample" / "00000.h5") as shard:
        for row in range(shard.sizes["head"]):
            top = np.argsort(-shard.direct_effect[row].values.ravel(), kind="stable")[: int(0.1 * 60)]
            wanted = shard.self_repair[row].values.ravel()[top].mean()
            head = heads.query(
                f"selection == 'top' and layer == {shard.layer[row]:d} and head == {shard.head_index[row]:d}"
            )
            found = head.self_repair.item()
            assert found == pytest.approx(wanted, rel=1e-5)


def test_its_figure_says_that_it_is_a_part(looked: Space) -> None:
    svg = (looked.run / "quick" / "figures" / "self_repair_by_layer.svg").read_text(encoding="utf-8")
    assert "n = 60 tokens, 4 prompts of length 16" in svg
    assert "a first look: 8 prompts in the whole run" in svg


def test_the_whole_run_makes_nothing_again_that_the_first_look_has_made(
    looked: Space, fresh: Space, finished: Space, tmp_path: Path
) -> None:
    run = [line for line in (looked.work / "printed.txt").read_text().splitlines() if " (Rule: " in line]
    made = Counter(re.findall(r"\(Rule: (\w+)\)", "\n".join(run)))
    assert made.keys() >= QUICK
    kept = Counter({rule: count for rule, count in made.items() if rule not in {*QUICK, "quick"}})
    assert kept == Counter(
        **dict.fromkeys(("snapshot_model", "snapshot_corpus", "check_model", "tokenize_corpus", "check_prompts"), 1),
        cache_activations=2,
        find_thresholds=1,
        ablate_heads=1,
    )
    assert looked.jobs() == fresh.jobs() - kept
    # In earnest, on one core: to the figure, and to what it does not need.
    space = looked.copy(tmp_path / "space")
    before = times(space.run)
    printed = space.make("self_repair_by_layer", "results/tiny/words/layer_ablations/00000.h5", cores=1)
    assert {path: before[path] for path in before} == {
        path: time for path, time in times(space.run).items() if path in before
    }
    order = started(printed)
    assert order[-1].startswith("Ablate layers"), order
    assert len(order) == 4
    for path in ("tables/resample/heads.parquet", "figures/self_repair_by_layer.png", "ablations/resample/00000.h5"):
        assert (space.run / path).read_bytes() == (finished.run / path).read_bytes(), path
    assert space.jobs("quick") == Counter()


def test_the_first_look_is_stale_by_what_it_uses(looked: Space, tmp_path: Path) -> None:
    space = looked.copy(tmp_path / "space")
    space.change("statistics.n_bootstrap", 60)
    assert space.jobs("quick") == Counter(tabulate_quick_heads=1, draw_quick=1)
    space.change("statistics.n_bootstrap", 50)
    space.change("analyses.top_neurons", 20)
    assert space.jobs("quick") == Counter()


def test_of_top_tokens_alone_the_first_figure_is_that_of_the_whole_run(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    space.change("ablations.resample.tokens", "top")
    jobs = space.jobs("quick")
    assert jobs["draw_self_repair_by_layer"] == 1
    assert not QUICK & jobs.keys()


def test_of_a_shard_without_top_tokens_the_first_figure_is_that_of_the_whole_run(fresh: Space, tmp_path: Path) -> None:
    """Of 60 tokens the fraction takes none, of all 120 it takes one."""
    space = fresh.copy(tmp_path / "space")
    space.change("statistics.top_fraction", 0.012)
    jobs = space.jobs("quick")
    assert jobs["draw_self_repair_by_layer"] == 1
    assert not QUICK & jobs.keys()


def test_what_the_figure_is_made_from_goes_before_all_else_but_checks(
    fresh: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = fresh.copy(tmp_path / "space")
    monkeypatch.chdir(space.work)
    with _workflow(space.repo / "Snakefile", [Path("config.yaml")]) as workflow:
        dag = workflow.dag
        dag.update_priority()
        jobs = {job: dag.priority(job) for job in dag.needrun_jobs()}
        [figure] = [job for job in jobs if job.rule.name == "draw_self_repair_by_layer"]
        needed = {figure, *dag.bfs(dag.dependencies, figure)}
        first = {
            priority for job, priority in jobs.items() if job in needed and not job.rule.name.startswith("snapshot")
        }
        others = {priority for job, priority in jobs.items() if job not in needed and job.rule.name not in CHECKS}
        checks = {priority for job, priority in jobs.items() if job.rule.name in CHECKS}
    assert max(others) < min(first) <= max(first) <= min(checks)
