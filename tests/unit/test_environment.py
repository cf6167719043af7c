"""The pins of environment.yml, requirements.lock and the ranges of pyproject.toml agree; where no environment can be made."""

import shutil
import subprocess
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import REPOSITORY


def pins(lines: list[str]) -> dict[str, str]:
    pairs = [line.strip().split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def wanted() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    return [Requirement(line) for line in (*project["project"]["dependencies"], *project["dependency-groups"]["dev"])]


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
