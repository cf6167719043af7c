"""How commands end: a user's mistake in a line, an error of the program with its traceback; help, version, start."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import selfrepair
from selfrepair.commands import plan
from selfrepair.commands.app import PANELS, app
from selfrepair.commands.options import examples_of

from conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("error")

COMMANDS = {command.__name__.replace("_", "-"): command for commands in PANELS.values() for command in commands}
START = """
import sys
from typer.testing import CliRunner
from selfrepair.commands.app import app
done = CliRunner().invoke(app, sys.argv[1:])
assert done.exit_code == 0, done.output
print(*sorted({"torch", "transformers", "pandas", "xarray", "snakemake", "matplotlib"} & set(sys.modules)))
"""


def run(*arguments: str, **settings: Any) -> Any:
    return CliRunner().invoke(app, [*arguments], **settings)


def test_the_command_is_what_the_package_installs() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(name, value)] = project["scripts"].items()
    assert name == "selfrepair"
    assert EntryPoint(name, value, "console_scripts").load() is app


def test_version() -> None:
    assert run("--version").stdout == f"selfrepair {selfrepair.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_and_ends_in_examples(name: str) -> None:
    done = run(name, "--help", env={"COLUMNS": "80"})
    assert done.exit_code == 0
    told, _, examples = done.stdout.partition("Examples:")
    assert [line.strip() for line in examples.strip().splitlines()] == examples_of(COMMANDS[name]).splitlines()[1:]
    assert "--json" in told
    assert all(example.strip().startswith(f"selfrepair {name}") for example in examples.strip().splitlines())


def test_the_page_of_commands_shows_what_a_test_runs() -> None:
    """tests/workflow/test_commands.py runs every example."""
    page = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(?:\$ )?(selfrepair .+)$", page, re.MULTILINE)
    runs = {example for command in COMMANDS.values() for example in examples_of(command).splitlines()[1:]}
    assert {line.split()[1] for line in shown} == set(COMMANDS)
    assert set(shown) <= runs


def test_help_names_every_command() -> None:
    told = run("--help").stdout
    assert all(re.search(rf"│ {name} ", told) for name in COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["heads", "--help"], ["ablate", "--help"]])
def test_nothing_heavy_is_imported_for_help(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", START, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_refusal_of_the_package_is_a_line_and_status_2(monkeypatch: pytest.MonkeyPatch) -> None:
    done = run("plan", "--tflops", "-1")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: --tflops is -1.0: wanted a rate above 0, such as 0.1 for two cores or 20 for a GPU\n"


def test_an_error_of_a_library_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "read_configs", lambda *_: json.loads("no JSON"))
    done = run("plan")
    assert done.exit_code == 1
    assert isinstance(done.exception, json.JSONDecodeError)


def test_an_error_of_the_system_names_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(plan, "read_configs", lambda *_: (tmp_path / "gone\x1b").read_text())
    done = run("plan")
    assert done.exit_code == 2
    assert done.stderr == f"Error: {tmp_path}/gone\\x1b: No such file or directory\n"


@pytest.mark.parametrize("arguments", [["heads", "--top", "-1"], ["show"], ["nothing"], ["heads", "--nothing"]])
def test_wrong_options_are_status_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--tflops", "1"], ["plan", "--tflops", "1", "--json"]])
def test_a_reader_that_is_gone_is_no_error(arguments: list[str], tmp_path: Path) -> None:
    """As `selfrepair ... | head -1` where there is more than a pipe holds."""
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "selfrepair", *arguments]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    finally:
        os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_a_terminal_will_do(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C", "COLUMNS": "80"}
    command = [sys.executable, "-m", "selfrepair", "show", "26.8", "ſéance"]
    done = subprocess.run(command, capture_output=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: ")
    assert b"is no folder" in done.stderr


def test_completion_is_on() -> None:
    assert "--install-completion" in run("--help").stdout
    typed = {"_SELFREPAIR_COMPLETE": "complete_bash", "COMP_WORDS": "selfrepair hea", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "selfrepair"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **typed}, check=False)
    assert done.stdout.split() == ["heads"]
