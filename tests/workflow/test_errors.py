"""What a user sees when something is wrong: what was got, what is wanted, what to do, and where the log is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from workflow.running import Space, log_of

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def space(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    return finished.copy(tmp_path_factory.mktemp("errors") / "space")


def refused(space: Space, path: str, value: Any) -> str:
    """What a dry run prints with one value of the config changed: two lines that Snakemake begins with, and ours."""
    kept = space.config
    try:
        space.change(path, value)
        done = space.snakemake("--dry-run")
    finally:
        space.write_config(kept)
    assert done.returncode != 0
    assert len(done.stdout.splitlines()) <= 4, done.stdout
    return done.stdout


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tokens.promts", 8, "tokens.promts is no key; did you mean tokens.prompts?"),
        ("tokens.prompts", -8, "tokens.prompts is -8: wanted a whole number of 2 or more"),
        ("tokens.prompts", 9, "tokens.prompts is 9, no multiple of tokens.prompts_per_shard 4: use 8 or 12"),
        ("run.models", ["small"], "run.models names 'small', which is not under models (tiny, smollm2-135m-instruct)"),
        (
            "models.tiny.source",
            "tiny",
            "models.tiny.source is 'tiny': wanted package:NAME==VERSION, hub:OWNER/NAME@COMMIT",
        ),
        ("statistics.first_position", 15, "have 15 positions that predict: use at most 14"),
    ],
)
def test_a_wrong_config_is_refused_in_a_few_lines(space: Space, path: str, value: Any, message: str) -> None:
    printed = refused(space, path, value)
    assert "Error: config is wrong: " in printed
    assert message in printed
    assert "config.schema.yaml" in printed


@pytest.mark.parametrize(("section", "name"), [("models", "tiny"), ("corpora", "words")])
@pytest.mark.parametrize("taken", [False, True], ids=["fresh", "another snapshot is there"])
def test_a_missing_path_is_named(
    copied: Space, fresh: Space, tmp_path: Path, section: str, name: str, taken: bool
) -> None:
    """Also where Snakemake would take the snapshot of the former source for the new one's."""
    space = copied if taken else fresh.copy(tmp_path / "fresh")
    space.change(f"{section}.{name}.source", "path:no/such/place")
    done = space.snakemake("--dry-run")
    assert done.returncode != 0
    assert (
        f"{section}.{name}.source is path:no/such/place, but {space.work}/no/such/place does not exist" in done.stdout
    )
    assert "Traceback" not in done.stdout


def test_a_source_that_has_gone_is_not_missed_once_its_snapshot_is_there(copied: Space) -> None:
    (copied.work / "model").rename(copied.work / "moved")
    (copied.work / "text").rename(copied.work / "moved_text")
    assert copied.jobs() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test asks for in vain")
def test_a_device_that_is_not_here_is_refused_before_anything_runs(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "fresh")
    space.change("compute.device", "cuda")
    done = space.snakemake()
    assert done.returncode != 0
    assert "compute.device is cuda, but torch sees no such device here: set cpu" in done.stdout
    assert not (space.work / "results" / "snapshots").exists()


def fails(space: Space, log: str, *arguments: str) -> str:
    """What a failed run ends its log with; the log and its path are on the terminal."""
    done = space.snakemake(*arguments)
    assert done.returncode != 0
    text = log_of(space, log)
    assert f"logs/tiny/words/{log}.log" in done.stdout
    last = text.strip().splitlines()[-1]
    assert last in done.stdout
    return last


def test_more_prompts_than_the_text_holds(copied: Space) -> None:
    copied.change("tokens.prompts", 400)
    assert fails(copied, "check_prompts", "results/tiny/words/prompts.json") == (
        "Error: the config asks for 400 prompts of 16 tokens; the text holds 16 (whole shards of 4): "
        "set tokens.prompts to at most 16, or add text"
    )


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "ablations.resample.heads",
            [[0, 1], [9, 0]],
            "ablations.resample.heads names [[9, 0]], but tiny has layers 0 to 1 and heads 0 to 3",
        ),
        ("analyses.heads", [[1, 7]], "analyses.heads names [[1, 7]], but tiny has layers 0 to 1 and heads 0 to 3"),
        ("analyses.neuron_layer", 2, "analyses.neuron_layer is 2, but tiny has layers 0 to 1 and heads 0 to 3"),
        ("tokens.prompt_length", 40, "tokens.prompt_length is 40, but tiny takes 32 tokens at most: lower it"),
    ],
)
def test_what_the_model_has_not_is_refused_before_anything_runs(
    space: Space, path: str, value: Any, message: str
) -> None:
    printed = refused(space, path, value)
    assert f"Error: config is wrong: {message}" in printed


def test_a_model_folder_without_weights(copied: Space) -> None:
    (copied.work / "model" / "model.safetensors").unlink()
    done = copied.snakemake("results/snapshots/models/tiny/manifest.json")
    assert done.returncode != 0
    assert "lacks model.safetensors" in done.stdout
    assert "logs/snapshots/models/tiny.log" in done.stdout


def test_a_model_that_is_not_the_published_one(fresh: Space, tmp_path: Path) -> None:
    space = fresh.copy(tmp_path / "space")
    space.change("models.tiny.published", "gpt2-small")
    done = space.snakemake("--dry-run")
    assert done.returncode != 0
    message = "models.tiny.published is gpt2-small, but the model has model_type llama, gpt2-small has model_type gpt2"
    assert message in done.stdout
    assert "Traceback" not in done.stdout


def test_an_import_error_is_in_the_rules_log(copied: Space) -> None:
    path = copied.package / "measure/thresholds.py"
    path.write_text(f'raise ImportError("no such library")\n{path.read_text()}')
    assert fails(copied, "find_thresholds", "results/tiny/words/thresholds.h5") == "ImportError('no such library')"
    log = log_of(copied, "find_thresholds")
    assert log.startswith("Traceback (most recent call last):")
    assert "measure/thresholds.py" in log


def test_an_unknown_target_is_named(space: Space) -> None:
    done = space.snakemake("--dry-run", "no_such_figure")
    assert done.returncode != 0
    assert "no_such_figure" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_log_holds_the_last_run_alone(copied: Space, tmp_path: Path) -> None:
    log = copied.work / "logs" / "tiny" / "words" / "find_thresholds.log"
    log.write_text("from an earlier run\n")
    out = "results/tiny/words/thresholds.h5"
    copied.make(out, "--forcerun", out)
    [line] = log.read_text().splitlines()
    assert "peak memory: " in line


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_storage_without_a_shared_filesystem_is_refused(space: Space, executor: str) -> None:
    """A dry run would succeed; jobs would miss what lies beside the files that rules name."""
    done = space.snakemake("--dry-run", "--executor", executor, "--shared-fs-usage", "none")
    assert done.returncode != 0
    assert "Error: jobs would not see each other's results, but this workflow needs one filesystem" in done.stdout
