"""Schedulers other than Slurm, through Snakemake's plugins for a shared filesystem."""

from pathlib import Path

import pytest
import yaml

from workflow.running import REPOSITORY, Space
from workflow.same import differences, results

pytestmark = pytest.mark.filterwarnings("error")

THRESHOLDS = "results/tiny/words/thresholds.h5"
QSUB = """\
#!/bin/sh
echo "$3" >> asked.txt
sh "$4" > /dev/null 2>&1 &
echo $!
"""
"""A scheduler that starts each job at once, and notes what it asks for: qsub -V -l WHAT SCRIPT."""


def through(space: Space, profile: str, *arguments: str) -> list[str]:
    command = space.command(*arguments)
    command[command.index("--workflow-profile") + 1] = str(space.repo / "profiles" / profile)
    cores = command.index("--cores")
    return [*command[:cores], *command[cores + 2 :]]


def submitted(space: Space, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> list[str]:
    """Make something through `QSUB`, which stands in ``folder``; gives what each job of it asked for."""
    qsub = folder / "qsub"
    qsub.write_text(QSUB, encoding="utf-8")
    qsub.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    soon = ("--seconds-between-status-checks", "1", "--jobs", "2")
    done = space.execute(through(space, "generic", *arguments, *soon))
    assert done.returncode == 0, done.stdout
    return (space.work / "asked.txt").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("profile", ["generic", "lsf"])
def test_a_dry_run_of_each_profile(finished: Space, fresh: Space, profile: str) -> None:
    """As of the whole workflow; and nothing is made again where everything has been made on one machine."""
    done = fresh.execute(through(fresh, profile, "--dry-run"))
    assert done.returncode == 0, done.stdout
    assert sum(fresh.jobs().values()) + 1 == int(done.stdout.split("\ntotal", 1)[1].split("\n", 1)[0])
    done = finished.execute(through(finished, profile, "--dry-run"))
    assert "Nothing to be done" in done.stdout


def test_jobs_go_through_a_command_that_submits_them(
    fresh: Space, finished: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with what it asks for, those of a group together; and they make what a local run makes."""
    space = fresh.copy(tmp_path / "space")
    asked = submitted(space, tmp_path, monkeypatch, THRESHOLDS)
    assert len(asked) == 4  # prompts and their check, two shards, thresholds
    assert all(words.startswith("select=1:ncpus=") for words in asked)
    made = [name for name in results(space.work / "results") if name.startswith("tiny/")]
    assert len(made) == 5
    assert set(differences(space.work / "results", finished.work / "results")).isdisjoint(made)


@pytest.mark.parametrize("profile", ["generic", "lsf"])
def test_what_is_not_of_the_scheduler_is_as_on_slurm(profile: str) -> None:
    mine, slurm = (
        yaml.safe_load((REPOSITORY / "profiles" / name / "config.yaml").read_text(encoding="utf-8"))
        for name in (profile, "slurm")
    )
    own = {key for key in mine if key.startswith(("executor", "cluster-generic"))}
    assert {key: value for key, value in mine.items() if key not in own} == {key: slurm[key] for key in {*mine} - own}
