"""The pins of environment.yml, requirements.lock and the ranges of pyproject.toml agree; where no environment can be made."""

import ast
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import REPOSITORY


def pins(lines: list[str]) -> dict[str, str]:
    pairs = [line.strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def asked_for() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for: for a run, for work on the project, to build the package."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    lines = {
        "run": project["project"]["dependencies"],
        "dev": project["dependency-groups"]["dev"],
        "build": project["build-system"]["requires"],
    }
    return {use: [Requirement(line) for line in of] for use, of in lines.items()}


def wanted() -> list[Requirement]:
    return [*asked_for()["run"], *asked_for()["dev"]]


def lock() -> dict[str, str]:
    return pins(Path(REPOSITORY / "requirements.lock").read_text().splitlines())


def test_lock_pins_every_dependency_within_its_range() -> None:
    locked = lock()
    for requirement in wanted():
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_environment_yml_carries_the_same_pins() -> None:
    environment = yaml.safe_load((REPOSITORY / "environment.yml").read_text())
    [packages] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    carried = pins(packages)
    assert set(carried) == {canonicalize_name(requirement.name) for requirement in wanted()}
    assert carried == {name: lock()[name] for name in carried}


def imported(*folders: str) -> Iterator[tuple[Path, str]]:
    """Every module that files of these folders import, wherever in them: the first part of its name."""
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield path, node.module.partition(".")[0]


def undeclared(*folders: str, uses: tuple[str, ...]) -> list[str]:
    """Imports of what no requirement of these uses names, and neither Python nor the repository has."""
    distributions = packages_distributions()
    declared = {canonicalize_name(each.name) for use in uses for each in asked_for()[use]} | {"selfrepair"}
    # Of the repository, by the folders that tests and pages put on Python's path.
    folders_on_path = ("tests", "tests/slurm", "docs", "docs/extensions", "benchmarks")
    own = {path.stem for folder in folders_on_path for path in (REPOSITORY / folder).iterdir()}
    return [
        f"{path.relative_to(REPOSITORY)} imports {name}"
        for path, name in imported(*folders)
        if name not in sys.stdlib_module_names | own
        and not declared & {canonicalize_name(of) for of in distributions.get(name, [])}
    ]


def test_what_a_run_imports_is_declared() -> None:
    assert undeclared("srcpkg", "scripts", uses=("run",)) == []


def test_what_work_on_the_project_imports_is_declared() -> None:
    assert undeclared("tests", "docs", "benchmarks", uses=("run", "dev", "build")) == []


def test_an_import_that_is_not_declared_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "srcpkg").mkdir()
    (tmp_path / "srcpkg" / "module.py").write_text(
        "import os\ndef late():\n    from pytest.x import y\nimport numpy.linalg\n"
    )
    for folder in ("tests/slurm", "docs/extensions", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    assert undeclared("srcpkg", uses=("run",)) == ["srcpkg/module.py imports pytest"]
    assert undeclared("srcpkg", uses=("run", "dev")) == []


def test_lock_is_not_bound_to_one_machine() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert "file:" not in text
    assert "+cpu" not in text


def test_a_checkout_whose_path_has_a_blank_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "with a blank"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    done = subprocess.run(["make", "setup"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"Snakemake runs no Python whose path has a blank: move {folder}" in done.stderr
    assert not (folder / ".venv").exists()
