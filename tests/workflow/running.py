"""A copy of the workflow beside a working folder of its own, and Snakemake run in it as a user runs it."""

import copy
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from selfrepair.figures import SHARED

REPOSITORY = Path(__file__).parents[2]
PARTS = ("Snakefile", "environment.yml", "config", "profiles", "report", "resources", "rules", "scripts", "srcpkg")
TIMEOUT = 900

NOTHING = "Nothing to be done"
DIGESTS = """
import json, os, sys
from pathlib import Path
from selfrepair.workflow.provenance import code_digest, module_digests
rules, edits = json.load(sys.stdin)
def digests():
    return {rule: code_digest(module_digests(Path(f"{script}.py"), *modules)) for rule, (script, *modules) in rules.items()}
found = {"": digests()}
for name, (path, old, new) in edits.items():
    path = Path(path)
    kept, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(kept.replace(old, new, 1) if old else kept + new, encoding="utf-8")
    found[name] = digests()
    path.write_text(kept, encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
assert digests() == found[""]
print(json.dumps(found))
"""


class Forks:
    """The process of forks.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forks.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str], package: Path, printed: Path) -> int:
        """Run Snakemake's command line as `subprocess.run` would; gives its exit code."""
        request = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment,
            "package": str(package),
            "printed": str(printed),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], TIMEOUT)
        if not ready:
            os.killpg(self._process.pid, signal.SIGKILL)
            _forks.cache_clear()
            raise TimeoutError(f"snakemake {arguments}: {printed.read_text(encoding='utf-8')}")
        return int(self._process.stdout.readline())


@cache
def _forks() -> Forks:
    """That of this process of pytest's."""
    return Forks()


@dataclass(frozen=True)
class Space:
    """A folder with ``repo``, a copy of the workflow that a test may edit, and ``work``, where it runs.

    The two lie beside each other, so that a copy of the whole keeps every relative path, and with it what Snakemake recorded.
    """

    root: Path

    @classmethod
    def new(cls, root: Path) -> "Space":
        """The workflow as it is in the repository, and an empty working folder."""
        space = cls(root)
        space.work.mkdir(parents=True)
        for part in PARTS:
            source = REPOSITORY / part
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, space.repo / part, ignore=ignored)
            else:
                space.repo.mkdir(exist_ok=True)
                shutil.copy2(source, space.repo / part)
        return space

    def copy(self, root: Path) -> "Space":
        """The same with its results and with all times kept, so that nothing becomes stale by it."""
        subprocess.run(["cp", "-a", str(self.root), str(root)], check=True)
        return Space(root)

    @property
    def repo(self) -> Path:
        return self.root / "repo"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def run(self) -> Path:
        """Results of the tiny model on its text."""
        return self.work / "results" / "tiny" / "words"

    @property
    def package(self) -> Path:
        return self.repo / "srcpkg" / "selfrepair"

    @property
    def config(self) -> dict[str, Any]:
        return yaml.safe_load((self.work / "config.yaml").read_text(encoding="utf-8"))

    def write_config(self, config: dict[str, Any]) -> None:
        (self.work / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def change(self, path: str, value: Any) -> None:
        """Set one value of the overlay config, by dotted path."""
        config = copy.deepcopy(self.config)
        at = config
        *outer, last = path.split(".")
        for key in outer:
            at = at.setdefault(key, {})
        at[last] = value
        self.write_config(config)

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [
            *(sys.executable, "-m", "snakemake"),
            *("--snakefile", str(self.repo / "Snakefile")),
            *("--directory", str(self.work)),
            *("--workflow-profile", str(self.repo / "profiles" / "default")),
            *("--cores", str(cores)),
            *("--configfile", str(self.work / "config.yaml")),
            *("--nocolor", *arguments),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """The copy's package goes before an installed one."""
        return {**os.environ, "PYTHONPATH": str(self.repo / "srcpkg")}

    def snakemake(self, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
        """Run Snakemake, whatever becomes of it; ``stdout`` holds both streams as a terminal shows them."""
        command = self.command(*arguments, cores=cores)
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as printed:
            code = _forks().run(command[3:], self.work, self.environment, self.package.parent, Path(printed.name))
            return subprocess.CompletedProcess(command, code, printed.read())

    def execute(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )

    def make(self, *arguments: str, cores: int = 2) -> str:
        """Run Snakemake, which must succeed; gives what it printed."""
        done = self.snakemake(*arguments, cores=cores)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def jobs(self, *arguments: str) -> Counter[str]:
        """Jobs that `snakemake -n` would run, by rule; targets that make nothing of their own left out."""
        printed = self.make("--dry-run", *arguments)
        if NOTHING in printed:
            return Counter()
        table = printed.split("Job stats:\n", 1)[1].split("\ntotal", 1)[0]
        found = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        return Counter({name: count for name, count in found.items() if name not in self.targets})

    def digests(self, edits: dict[str, tuple[Path, str, str]]) -> dict[str, dict[str, str]]:
        """The code digest of every rule, by the copy's own package: as it is (by the empty name), and after each edit alone.

        Args:
            edits: By name, a file, the text in it that is replaced (none: it is added to), and the new text.
        """
        scripts = sorted(path.stem for path in (self.repo / "scripts").glob("*.py"))
        rules = {script: [script] for script in scripts if script != "draw_figure"}
        for writer, figures in (("write_findings", self.figures), ("write_models_findings", self.models_figures)):
            rules[writer].extend(f"selfrepair.figures.{figure}" for figure in figures)
            rules |= {f"draw_{figure}": ["draw_figure", f"selfrepair.figures.{figure}"] for figure in figures}
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            input=json.dumps([rules, {name: (str(path), old, new) for name, (path, old, new) in edits.items()}]),
            cwd=self.repo / "scripts",
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    def recorded_params(self) -> dict[str, set[str]]:
        """Params of every job that has run, by rule, as Snakemake recorded them."""
        params: dict[str, set[str]] = {}
        for path in (self.work / ".snakemake" / "metadata").iterdir():
            record = json.loads(path.read_text(encoding="utf-8"))
            params.setdefault(record["rule"], set()).update(record["params"])
        return params

    @property
    def targets(self) -> set[str]:
        """Rules that stand for files and make none."""
        return {"all", "findings", "quick", *self.figures, *self.models_figures}

    @property
    def figures(self) -> set[str]:
        """Those of one model."""
        return {name for name in self._drawn if not name.startswith("models_")}

    @property
    def models_figures(self) -> set[str]:
        """Those of several models of one run."""
        return self._drawn - self.figures

    @property
    def _drawn(self) -> set[str]:
        return {path.stem for path in (self.package / "figures").glob("*.py")} - {"__init__", *SHARED}

    @contextmanager
    def edited(self, path: Path, old: str, new: str) -> Iterator[None]:
        """Replace text in a file of the copy while the block lasts; its time is put back, too."""
        kept, times = path.read_text(encoding="utf-8"), path.stat()
        assert old in kept, f"{path} does not hold {old!r}"
        try:
            path.write_text(kept.replace(old, new, 1), encoding="utf-8")
            yield
        finally:
            path.write_text(kept, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def log_of(space: Space, name: str) -> str:
    """A rule's log of the tiny run."""
    return (space.work / "logs" / "tiny" / "words" / f"{name}.log").read_text(encoding="utf-8")
