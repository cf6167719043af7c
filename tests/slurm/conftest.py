"""A Slurm of one node while these tests run, and the tiny workflow submitted to it as a user does."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from workflow.conftest import finished, fresh  # noqa: F401
from workflow.running import TIMEOUT, Space

from slurm import one_node

from conftest import MakeOnce

SOON = Path(__file__).with_name("soon.py")
PROMPTS = "results/tiny/words/prompts.json"


class Cluster:
    """Snakemake with the Slurm profile in a space's working folder."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self._started: list[subprocess.Popen[str]] = []

    def command(self, *arguments: str) -> list[str]:
        local = self.space.command(*arguments)
        at = local.index("--workflow-profile") + 1
        cores = local.index("--cores")
        local[at] = str(self.space.repo / "profiles" / "slurm")
        python, _, _, *local = [*local[:cores], *local[cores + 2 :]]
        return [python, str(SOON), *local]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Snakemake in the background, in a process group of its own; what it prints goes to printed.txt."""
        with self.printed.open("w", encoding="utf-8") as printed:
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=self.space.work,
                env=self.space.environment,
                stdout=printed,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def run(self, *arguments: str, status: int = 0) -> str:
        """Snakemake to its end; gives what it printed."""
        process = self.start(*arguments)
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        said = self.printed.read_text(encoding="utf-8")
        assert code == status, said
        return said

    def end(self) -> None:
        """Leave nothing that runs, or waits in the queue."""
        for process in self._started:
            process.kill()
            process.wait()
        subprocess.run(["scancel", "--me"], check=True)
        until(lambda: not queue(), "jobs do not end")

    @property
    def printed(self) -> Path:
        return self.space.work / "printed.txt"


def queue(format: str = "%A %T") -> list[str]:
    """Jobs that wait or run."""
    done = subprocess.run(
        ["squeue", "--me", "--noheader", "--format", format], capture_output=True, text=True, check=True
    )
    return [line.strip() for line in done.stdout.splitlines()]


def until(holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: {queue('%A %T %k %r')}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """The node. Root of a machine without a Slurm of its own can have one."""
    assert os.geteuid() == 0, "these tests start a Slurm of their own, which takes root: run them in a container"
    one_node.install()
    one_node.up()
    yield
    one_node.down()


@pytest.fixture(scope="session")
def prompted(fresh: Space, make_once: MakeOnce) -> Space:  # noqa: F811
    """With prompts, made without Slurm. Only to be read."""

    def fill(folder: Path) -> None:
        fresh.copy(folder / "space").make(PROMPTS)

    return Space(make_once("prompted", fill) / "space")


@pytest.fixture
def cluster(slurm: None, fresh: Space, tmp_path: Path) -> Iterator[Cluster]:  # noqa: F811
    """With nothing made yet."""
    found = Cluster(fresh.copy(tmp_path / "space"))
    yield found
    found.end()


@pytest.fixture
def ready(slurm: None, prompted: Space, tmp_path: Path) -> Iterator[Cluster]:
    """With prompts made: shards are what comes next."""
    found = Cluster(prompted.copy(tmp_path / "space"))
    yield found
    found.end()


@pytest.fixture
def done(slurm: None, finished: Space, tmp_path: Path) -> Iterator[Cluster]:  # noqa: F811
    """With everything made."""
    found = Cluster(finished.copy(tmp_path / "space"))
    yield found
    found.end()
