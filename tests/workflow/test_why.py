"""`selfrepair why` and `verify`: a line a rule, and results held to their own provenance."""

import shutil
import subprocess
import sys
from typing import Any

import pytest

from workflow.running import Space

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def space(copied: Space) -> Space:
    return copied


def said(space: Space, command: str, *targets: str, status: int = 0) -> list[str]:
    config = ("--configfile", "config.yaml", "--workflow", str(space.repo))
    program = [sys.executable, "-m", "selfrepair"]
    done = space.execute([*program, command, *targets, *config])
    assert done.returncode == status, done.stdout
    return done.stdout.splitlines()


def test_nothing_is_said_of_results_that_are_current(space: Space) -> None:
    jobs = len(said(space, "verify")) and said(space, "why")
    assert jobs == ["Nothing: all 74 jobs are done."]
    assert said(space, "verify") == ["74 of 74 results are what their provenance says."]


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("statistics.n_bootstrap", 60, "tabulate_heads (3 jobs): statistics.n_bootstrap 50 -> 60"),
        ("analyses.neuron_layer", 1, "measure_neurons (2 jobs): neuron_layer null -> 1"),
        ("compute.dtype", "float64", "cache_activations (2 jobs): compute.dtype 'float32' -> 'float64'"),
        ("tokens.seed", 1, "tokenize_corpus: tokens.seed 0 -> 1"),
        ("models.tiny.weights", "other", "snapshot_model: snapshot.weights null -> 'other'"),
    ],
)
def test_why_names_the_value_from_what_to_what(space: Space, path: str, value: Any, line: str) -> None:
    space.change(path, value)
    lines = said(space, "why")
    assert line in lines
    assert lines[-1] == f"{sum(space.jobs().values())} of 74 jobs would run."


def test_why_names_the_module_and_what_follows(space: Space) -> None:
    with space.edited(space.package / "tables" / "statistics.py", "", ""):
        path = space.package / "tables" / "statistics.py"
        path.write_text(path.read_text(encoding="utf-8") + "\n_EDITED = True\n", encoding="utf-8")
        lines = said(space, "why", "self_repair_by_layer")
    assert lines == [
        "tabulate_heads: code: selfrepair/tables/statistics.py edited",
        "draw_self_repair_by_layer: follows tabulate_heads",
        "2 of 12 jobs would run.",
    ]


def test_why_names_files(space: Space) -> None:
    (space.run / "figures" / "token_noise.svg").unlink()
    (space.run / "tables" / "resample" / "heads.csv").write_text("mine")
    (space.work / "text" / "1.txt").write_text("the cat sat .")
    lines = said(space, "why")
    assert "draw_token_noise: token_noise.svg is missing; follows tabulate_token_noise" in lines
    assert (
        "tabulate_heads: heads.csv was edited; follows ablate_heads, find_thresholds, snapshot_model" in lines
        or any(line.startswith("tabulate_heads") and "heads.csv was edited" in line for line in lines)
    )
    assert any(line.startswith("snapshot_corpus: ") and "text/1.txt" in line for line in lines)


def test_verify_needs_no_notes_of_snakemakes(space: Space) -> None:
    """Without them Snakemake takes old results for current ones."""
    shutil.rmtree(space.work / ".snakemake")
    path = space.package / "engine" / "replay.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n_EDITED = True\n", encoding="utf-8")
    space.change("statistics.n_bootstrap", 60)
    lines = said(space, "verify", status=1)
    assert "ablate_heads (6 jobs): code: selfrepair/engine/replay.py edited" in lines
    assert "tabulate_heads (3 jobs): statistics.n_bootstrap 50 -> 60" in lines
    assert lines[-1].startswith("Remake the others: snakemake --forcerun ablate_heads ablate_layers ")


def test_why_says_that_notes_are_missing(space: Space) -> None:
    """As without them it takes old results for current ones; looking at these helps."""
    [done] = said(space, "why")
    shutil.rmtree(space.work / ".snakemake" / "metadata")
    assert said(space, "why") == [
        done,
        "Snakemake has no notes of some of these results: `selfrepair take-notes` looks at them.",
    ]
    said(space, "take-notes")
    assert said(space, "why") == [done]


LACKED = "Snakemake lacked notes of {} results: {} are what they say, {} will be made again."


def test_notes_that_were_lost_are_taken_from_the_results(space: Space) -> None:
    """By the first that looks at them: what was edited or set anew meanwhile is seen, and nothing else is made again."""
    notes = space.work / ".snakemake"
    shutil.rmtree(notes)
    assert LACKED.format(74, 74, 0) in space.make("--dry-run")
    space.change("statistics.n_bootstrap", 60)
    wanted = space.jobs()
    assert wanted
    shutil.rmtree(notes)
    assert "Snakemake lacked notes of 74 results: " in space.make("--dry-run")
    assert space.jobs() == wanted
    space.change("statistics.n_bootstrap", 50)
    assert space.jobs() == wanted, "what was made is not known by then"


def test_notes_of_an_earlier_file_are_no_notes_of_another(space: Space) -> None:
    """As where Snakemake died while a job went on, and the config is what it was before."""
    shard = space.run / "activations" / "00001.h5"
    kept = space.copy(space.root.parent / "kept")
    space.change("compute.dtype", "float64")
    process = subprocess.Popen(
        space.command(str(shard.relative_to(space.work)), "--forcerun", "cache_activations"),
        cwd=space.work,
        env=space.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.wait()
    space.change("compute.dtype", "float32")
    shutil.rmtree(space.work / ".snakemake" / "metadata")
    shutil.copytree(kept.work / ".snakemake" / "metadata", space.work / ".snakemake" / "metadata")
    assert space.jobs(str(shard.relative_to(space.work))) == {}, "else there is nothing to see"
    (space.work / ".snakemake" / "selfrepair.running").touch()
    assert LACKED.format(1, 0, 1) in space.make("--dry-run")
    assert space.jobs(str(shard.relative_to(space.work))) == {"cache_activations": 1}


def test_verify_reads_everything(space: Space) -> None:
    """Results that were exchanged: each is whole, and one is of another run."""
    tables = space.run / "tables"
    for name in ("heads.parquet", "heads.csv"):
        shutil.copy2(tables / "zero" / name, tables / "mean" / name)
    lines = said(space, "verify", status=1)
    assert "tabulate_heads: heads.parquet was edited" in lines
    assert "tabulate_heads: heads.csv was edited" in lines
    assert any("tables/mean/heads.parquet is not the one that it was made of" in line for line in lines)


def test_a_wrong_config_or_target_is_said_in_a_line(space: Space) -> None:
    [line] = said(space, "why", "no_such_figure", status=2)
    assert line.startswith("Error: ")
    assert "no_such_figure" in line
    space.change("tokens.promts", 8)
    lines = said(space, "why", status=1)
    assert len(lines) <= 3
    assert "did you mean tokens.prompts?" in lines[0]
