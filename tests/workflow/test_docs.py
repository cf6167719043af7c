"""Every command and every block of code in the documentation: run, tried without running, or listed with what tests it."""

import contextlib
import doctest
import io
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import selfrepair
from selfrepair.workflow.config import check_config
from workflow.running import Space

from conftest import REPOSITORY

PAGES = (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")))

OWN_TESTS = {"commands.md", "explorer.md", "module.md"}
"""Pages whose blocks have tests of their own, beside those of what they are about."""

Block = tuple[str, str]


def blocks(*languages: str) -> list[Block]:
    """Page and text of every fenced block in one of these languages."""
    found = []
    for page in PAGES:
        if page.name in OWN_TESTS:
            continue
        text = page.read_text(encoding="utf-8")
        for indent, language, block in re.findall(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            if language in languages:
                found.append((page.name, re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)))
    return found


def commands() -> list[str]:
    """Every command of the shell blocks, without its comment; those that ``&&`` joins each by itself."""
    found: dict[str, None] = {}
    for _, block in blocks("", "sh", "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                if words := " ".join(command.split()):
                    found[words] = None
    return [*found]


def program(words: list[str]) -> list[str]:
    """The command `selfrepair`, by this Python, as pyproject.toml names it."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["scripts"]["selfrepair"].partition(":")
    return [sys.executable, "-c", f"from {module} import {function}; {function}()", *words]


# How each command is tested. A pattern has to fit the whole command.

NOT_HERE = {
    r"git clone .*": "it names no real address; CI begins with a clone",
    r"cd selfrepair": "the tests have folders of their own",
    r"\. \.venv/bin/activate": "the tests run in an environment already",
    r"tmux": "a session of the terminal's own",
    r"tail -f \.snakemake/log/\*\.log": "it does not end; Snakemake writes that file in every run",
    r"selfrepair (heads|show|compare|ablate|doctor)( .*)?": "test_commands.py runs every example of their help",
    r"squeue .*": "tests/slurm: a Slurm of one node",
    r"snakemake --workflow-profile profiles/slurm .*": "tests/slurm: the whole workflow on a Slurm of one node",
}
"""Commands that are not run here, with the reason, or with what runs them."""


def _snakemake(space: Space, words: list[str]) -> None:
    """On a finished run of the tiny model, whose config stands for config/mine.yaml; a larger one is not run."""
    if "config/gemma3.yaml" in words:
        words = [*words, "--dry-run"]
        subprocess.run(
            [sys.executable, "-m", "snakemake", *("--snakefile", str(space.repo / "Snakefile")), *words[1:]],
            cwd=space.repo,
            env=space.environment,
            check=True,
            capture_output=True,
        )
        return
    at = words.index("--configfile") if "--configfile" in words else len(words)
    assert set(words[at + 1 :]) <= {"config/mine.yaml"}
    # As a shell expands them.
    targets = subprocess.run(
        ["bash", "-c", f"echo {' '.join(words[1:at])}"], capture_output=True, text=True, check=True
    )
    space.make(*targets.stdout.replace("my-model", "tiny").replace("my-text", "words").split())


def _selfrepair(space: Space, words: list[str]) -> None:
    if any(f"config/{name}.yaml" in words for name in ("paper", "gemma3")) or words == ["selfrepair", "plan"]:
        done = subprocess.run(
            program(words[1:]), cwd=space.repo, env=space.environment, capture_output=True, check=False
        )
        assert done.returncode in (0, 1), done.stderr  # 1: something does not fit on this machine
        assert b"Traceback" not in done.stderr
        return
    config = ["--configfile", "config.yaml", "--workflow", str(space.repo)]
    plain = [word for word in words[1:] if word not in ("--configfile", "config/mine.yaml")]
    done = space.execute(program([*plain, *config]))
    assert done.returncode == 0, done.stdout


def _make(_: Space, words: list[str]) -> None:
    """Its commands are printed, not run: they are the commands of this project's CI, or those of other tests and benchmarks."""
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _shell(space: Space, words: list[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", " ".join(words).replace("python ", f"{sys.executable} ")],
        cwd=space.repo,
        env=space.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


RUN: dict[str, Callable[[Space, list[str]], None]] = {
    r"snakemake( .*)?": _snakemake,
    r"selfrepair (plan|why|verify)( .*)?": _selfrepair,
    r"make [\w-]+": _make,
    r"(mkdir|cat|python docs/stand_in\.py) .*": _shell,
}
"""Commands that are run on a copy of a finished run, or of the repository, with what runs them."""


def handler(command: str) -> Callable[[Space, list[str]], None] | str | None:
    for pattern, how in (*NOT_HERE.items(), *RUN.items()):
        if re.fullmatch(pattern, command):
            return how
    return None


def test_every_command_is_run_or_listed() -> None:
    assert [command for command in commands() if handler(command) is None] == []


def test_nothing_is_listed_that_no_page_says() -> None:
    said = commands()
    assert [
        pattern for pattern in (*NOT_HERE, *RUN) if not any(re.fullmatch(pattern, command) for command in said)
    ] == []


def test_a_command_that_is_not_listed_is_found() -> None:
    assert handler("selfrepair nothing-of-this-kind") is None
    assert handler("make the-tea now") is None


@pytest.fixture(scope="module")
def space(finished: Space, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """One copy for all commands: each must run whether or not the others have."""
    space = finished.copy(tmp_path_factory.mktemp("docs") / "space")
    (space.repo / "docs").symlink_to(REPOSITORY / "docs")
    (space.repo / "texts").mkdir()
    shutil.copy2(REPOSITORY / "README.md", space.repo / "texts" / "docs.txt")
    return space


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("command", [command for command in commands() if callable(handler(command))])
def test_the_command_runs(space: Space, command: str) -> None:
    how = handler(command)
    assert callable(how)
    how(space, command.split())


@pytest.mark.parametrize(("page", "block"), blocks("yaml"))
def test_every_config_on_a_page_is_one(page: str, block: str) -> None:
    """As an overlay over the default; blocks of a profile or of a module of Snakemake have other keys."""
    overlay = yaml.safe_load(block)
    default = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text(encoding="utf-8"))
    if set(overlay) - set(default):
        profile = yaml.safe_load((REPOSITORY / "profiles" / "slurm" / "config.yaml").read_text(encoding="utf-8"))
        assert set(overlay) <= set(profile), page
        return
    for key, values in overlay.items():
        default[key] = {**default[key], **values}
    check_config(default, REPOSITORY / "config" / "config.schema.yaml")


PLACES = {
    "results/smollm2-135m-instruct/wikipedia": "results/tiny/words",
    "results/my-model/my-text": "results/tiny/words",
    "results/snapshots/models/smollm2-135m-instruct": "results/snapshots/models/tiny",
    "(20, 3": "(1, 3",
    "(26, 8": "(1, 3",
    "26.8": "1.3",
}
"""What stands for the default's run, and for heads that the tiny model has not."""


@pytest.mark.parametrize(("page", "block"), blocks("python"))
def test_every_block_of_python_runs(finished: Space, monkeypatch: pytest.MonkeyPatch, page: str, block: str) -> None:
    monkeypatch.chdir(finished.work)
    for place, stands in PLACES.items():
        block = block.replace(place, stands)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize("name", ["open_run", "self_repair"])
def test_examples_that_open_a_run_run(finished: Space, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(finished.work)
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(selfrepair, name), name, globs={})
    assert found.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found).failed == 0


def test_the_stand_in_is_a_model_that_is_measured(tmp_path: Path) -> None:
    """The quick start's model, its four layers of eight heads."""
    sys.path.insert(0, str(REPOSITORY / "docs"))
    try:
        from stand_in import save_stand_in
    finally:
        sys.path.pop(0)
    (tmp_path / "text.txt").write_text((REPOSITORY / "docs" / "idea.md").read_text(encoding="utf-8"), encoding="utf-8")
    save_stand_in(tmp_path / "model", tmp_path / "text.txt")
    ds = selfrepair.ablate_heads(
        selfrepair.load_model(tmp_path / "model"), [[1, 2, 3], [4, 5, 6]], [[4, 5, 6], [1, 2, 3]]
    )
    assert ds.sizes["head"] == 32
    assert abs(ds.self_repair).max() > 0.01  # not lost in rounding
