"""What other tools read of the repository: citation, version, catalog of workflows, forms for issues, types."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
CONSUMER = """import selfrepair
run = selfrepair.open_run("results")
reveal_type(run.kinds)
selfrepair.open_run(3)
"""
MYPY = """[mypy]
follow_imports = silent
[mypy-torch.*,transformers.*,xarray.*,pandas.*,numpy.*,matplotlib.*,tokenizers.*,scipy.*,h5py.*,yaml.*,rich.*,typer.*]
follow_imports = skip
ignore_missing_imports = True
"""
"""Types of other packages are not asked for: reading them takes minutes."""


def check(schema: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Hold files to a schema that check-jsonschema carries."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def released() -> list[tuple[str, str]]:
    """Versions of the changelog with their dates, newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)


def untold(tags: Iterable[str]) -> list[str]:
    """Tags of versions of which the changelog does not tell."""
    told = {f"v{number}" for number, _ in released()}
    return [tag for tag in tags if re.fullmatch(r"v\d.*", tag) and tag not in told]


def test_the_citation_is_valid() -> None:
    done = check("citation-file-format", REPOSITORY / "CITATION.cff")
    assert done.returncode == 0, done.stdout


def test_a_citation_without_authors_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "CITATION.cff"
    path.write_text(
        yaml.safe_dump({key: value for key, value in CITATION.items() if key != "authors"}), encoding="utf-8"
    )
    done = check("citation-file-format", path)
    assert done.returncode == 1
    assert "authors" in done.stdout


def test_one_version_everywhere() -> None:
    number, date = released()[0]
    assert PROJECT["version"] == number == CITATION["version"] == version("selfrepair")
    assert date == str(CITATION["date-released"])
    assert CITATION["license"] == PROJECT["license"]


def test_the_changelog_is_in_order() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings == ["[Unreleased]", *(f"[{number}] - {date}" for number, date in released())]
    numbers = [tuple(map(int, number.split("."))) for number, _ in released()]
    assert numbers == sorted(numbers, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_every_tag_is_told_of() -> None:
    assert untold(["v0.1.0", "v99.0.0", "other"]) == ["v99.0.0"]
    done = subprocess.run(["git", "tag"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert untold(done.stdout.split()) == []


def test_the_catalog_of_workflows_reads_what_it_knows() -> None:
    """https://github.com/snakemake/snakemake-workflow-catalog reads these keys, and wants the files beside them."""
    usage = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert isinstance(usage["mandatory-flags"]["flags"], list)
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda"}
    assert all(isinstance(value, bool) for value in usage["software-stack-deployment"].values())
    assert usage["report"] is True
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").lower()
    assert "snakemake" in readme
    assert "workflow" in readme
    assert (REPOSITORY / "Snakefile").exists()
    assert list((REPOSITORY / "rules").glob("*.smk"))


def test_the_configs_of_config_readme_are_there_and_all_sections() -> None:
    text = (REPOSITORY / "config" / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert (REPOSITORY / "config" / link).exists(), link
    default = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text(encoding="utf-8"))
    rows = [
        row
        for line in text.splitlines()
        if line.startswith("| `")
        for row in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(rows) == sorted(default)
    assert {path.name for path in (REPOSITORY / "config").glob("*.yaml")} == set(
        re.findall(r"\]\((\w[\w.]*\.yaml)\)", text)
    )


def test_forms_for_issues_are_what_github_reads() -> None:
    config = [path for path in FORMS if path.name == "config.yml"]
    done = check("github-issue-forms", *(path for path in FORMS if path not in config))
    assert done.returncode == 0, done.stdout
    done = check("github-issue-config", *config)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["bug.yml", "model.yml"])
def test_who_reports_an_error_is_asked_for_the_doctor(name: str) -> None:
    form = yaml.safe_load((REPOSITORY / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8"))
    [doctor] = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "`selfrepair doctor`" in doctor["attributes"]["label"]
    assert doctor["validations"] == {"required": True}


def test_a_consumer_is_checked_against_the_types_of_the_package(tmp_path: Path) -> None:
    assert files("selfrepair").joinpath("py.typed").is_file()
    (tmp_path / "consumer.py").write_text(CONSUMER, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(MYPY, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "consumer.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 'consumer.py:3: note: Revealed type is "tuple[str, ...]"' in done.stdout.replace("builtins.", ""), (
        done.stdout
    )
    assert 'consumer.py:4: error: Argument 1 to "open_run" has incompatible type "int"' in done.stdout, done.stdout


def test_a_wheel_holds_the_package_and_its_types(tmp_path: Path) -> None:
    import zipfile

    from setuptools.build_meta import build_wheel

    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    for path in (REPOSITORY / "srcpkg").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
            into = source / path.relative_to(REPOSITORY)
            into.parent.mkdir(parents=True, exist_ok=True)
            into.write_bytes(path.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source)
        wheel = tmp_path / build_wheel(str(tmp_path))
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info" not in name}
    there = {
        path.relative_to(REPOSITORY / "srcpkg").as_posix()
        for path in (REPOSITORY / "srcpkg").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert held == there
