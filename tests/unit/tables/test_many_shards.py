"""Jobs that read all shards hold one at a time: what memory they take does not grow with the number of shards."""

import sys
import tracemalloc
from pathlib import Path

import pytest

from selfrepair.files import hdf5
from selfrepair.workflow.resources import SHARDS_READ

from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from made_shards import Sizes, make_shards
from many_shards import jobs

pytestmark = pytest.mark.filterwarnings("error")

SIZES = Sizes(layers=3, heads=4, prompts=8, positions=15, neurons=60, best=10)
FEW, MANY = 4, 24
N_BOOTSTRAP = 20
RULES = (
    *("find_thresholds", "average_activations", "choose_heads", "tabulate_heads", "tabulate_checks"),
    *("tabulate_token_noise", "tabulate_layernorm_scale", "tabulate_ablation_type", "tabulate_layernorm_claim"),
    *("tabulate_frozen_layernorm", "tabulate_neurons", "tabulate_reinforcement", "tabulate_repair"),
    *("tabulate_moved_residual", "tabulate_layer_ablations", "tabulate_selection_control", "tabulate_donor_noise"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A shard of every kind, and thresholds of few and of many such."""
    folder = tmp_path_factory.mktemp("shards")
    found = make_shards(folder, SIZES)
    for n_shards in (FEW, MANY):
        jobs(found, SIZES, n_shards, N_BOOTSTRAP, folder / f"of_{n_shards}")["find_thresholds"]()
    return found


def peak(files: dict[str, Path], rule: str, n_shards: int) -> int:
    """Most bytes that a job holds beyond those before it."""
    out = files["ablations"].parent / f"of_{n_shards}"
    job = jobs(files, SIZES, n_shards, N_BOOTSTRAP, out)[rule]
    tracemalloc.start()
    try:
        job()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_grow_with_shards(rule: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # No more than few shards hold.
    monkeypatch.setattr("selfrepair.tables.sample.LISTED", 8)
    monkeypatch.setattr("selfrepair.tables.statistics.DRAWN", FEW * SIZES.prompts)
    peak(files, rule, FEW)  # whatever is imported or kept for good
    few, many = (peak(files, rule, n_shards) for n_shards in (FEW, MANY))
    assert many <= 1.1 * few + 20_000, f"{few:,} bytes of {FEW} shards, {many:,} of {MANY}"


@pytest.mark.parametrize("rule", RULES)
def test_shards_are_opened_as_often_as_is_said(
    rule: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file once, but where a pass over all has to come before the next one."""
    opened: list[Path] = []
    own = hdf5.require_seal
    monkeypatch.setattr(hdf5, "require_seal", lambda path, advice: (opened.append(path), own(path, advice)))
    count = []
    for n_shards in (FEW, MANY):
        opened.clear()
        jobs(files, SIZES, n_shards, N_BOOTSTRAP, files["ablations"].parent / f"of_{n_shards}")[rule]()
        count.append(len(opened))
    # Of the ten measurements that are checked these files stand for one.
    wanted = 1 if rule == "tabulate_checks" else SHARDS_READ[rule][0]
    assert count[1] - count[0] == wanted * (MANY - FEW)


def test_no_job_is_left_out(files: dict[str, Path], tmp_path: Path) -> None:
    """Every rule that reads all shards of a kind, by the rules files."""
    assert set(RULES) == set(jobs(files, SIZES, 1, 10, tmp_path))
    text = "".join((REPOSITORY / "rules" / name).read_text() for name in ("measure.smk", "tables.smk"))
    reading = {
        block.split(":", 1)[0].split(" with", 1)[0].rsplit(" ", 1)[-1]
        for block in text.split("\nrule ")[1:] + text.split("\nuse rule ")[1:]
        if "each_shard(" in block.split("\nuse rule ", 1)[0].split("\nrule ", 1)[0]
        or block.startswith("tabulate_checks:")
    }
    assert set(RULES) == reading
