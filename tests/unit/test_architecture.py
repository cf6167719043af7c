"""The package's folders, the workflow's names and docs/architecture.md are held to one another."""

import ast
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

from selfrepair.figures import SHARED

from conftest import REPOSITORY


def _drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", REPOSITORY / "docs" / "draw_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


pytestmark = pytest.mark.filterwarnings("error")

drawing = _drawing()
PACKAGE: Path = drawing.PACKAGE
SCRIPTS = REPOSITORY / "scripts"
PAGE = drawing.PAGE.read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")

OTHER_NAMES = {
    # It writes how many of the prompts in tokens.h5 are asked for.
    "check_prompts": "measure.tokens",
}
"""Modules of rules that are named otherwise than what they write, each with its reason."""


@pytest.fixture(scope="module")
def rules() -> dict:
    return {rule.name: rule for rule in drawing.read_rules()}


def unknown_folders(package: Path) -> list[str]:
    """Folders of a package that have no place in the order, and those in the order that it does not have."""
    held = {path.parent.name for path in package.glob("*/__init__.py")}
    return sorted(held ^ set(drawing.FOLDERS))


def upward_imports(package: Path) -> list[str]:
    """Imports that run against the order of the folders, such as ``engine.clean imports measure.tokens``."""
    order = {folder: at for at, folder in enumerate((*drawing.FOLDERS, drawing.ROOT))}
    return [
        f"{module or package.name} imports {other}"
        for module, imported in drawing.imports(package).items()
        for other in sorted(imported)
        if order[drawing.folder_of(other)] < order[drawing.folder_of(module)]
    ]


def import_cycle(package: Path) -> list[str]:
    """Modules that import one another in a circle, the first one named last again; empty if there are none."""
    try:
        TopologicalSorter(drawing.imports(package)).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_folder_has_its_place() -> None:
    assert unknown_folders(PACKAGE) == []


def test_imports_run_one_way() -> None:
    assert upward_imports(PACKAGE) == []


def test_no_modules_import_one_another() -> None:
    assert import_cycle(PACKAGE) == []


def _with(folder: Path, file: str, lines: str) -> Path:
    """A copy of the package with lines added to one of its files."""
    package = Path(shutil.copytree(PACKAGE, folder / "selfrepair", ignore=shutil.ignore_patterns("__pycache__")))
    path = package / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        handle.write(f"\n\n{lines}\n")
    return package


PLANTED = {
    "a module": ("engine/clean.py", "import selfrepair.measure.tokens", "engine.clean imports measure.tokens"),
    "a module by from": ("engine/clean.py", "from selfrepair.tables import heads", "engine.clean imports tables.heads"),
    "a folder": ("files/hdf5.py", "from selfrepair import measure", "files.hdf5 imports measure"),
    "in a function": (
        "files/hdf5.py",
        "def late():\n    from selfrepair.model.model import Model",
        "files.hdf5 imports model.model",
    ),
    "when not checking types": (
        "files/hdf5.py",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import selfrepair.model.model",
        "files.hdf5 imports model.model",
    ),
    "at the root": ("quantities.py", "import selfrepair.files.tables", "quantities imports files.tables"),
    "in the package itself": ("__init__.py", "import selfrepair.files.hdf5", "selfrepair imports files.hdf5"),
    "for type checkers alone": ("families.py", "if TYPE_CHECKING:\n    import selfrepair.model.model", None),
    "downward": ("figures/wording.py", "from selfrepair.files.tables import read_table", None),
    "of the package itself": ("files/hdf5.py", "from selfrepair import __version__", None),
}
"""A file of the package, lines that are added to it, and what is found."""


@pytest.mark.parametrize(("file", "lines", "found"), PLANTED.values(), ids=PLANTED)
def test_a_planted_import_is_found_if_it_runs_upward(tmp_path: Path, file: str, lines: str, found: str | None) -> None:
    package = _with(tmp_path, file, lines)
    assert upward_imports(package) == ([found] if found else [])


def test_a_planted_cycle_within_a_folder_is_found(tmp_path: Path) -> None:
    package = _with(tmp_path, "model/calls.py", "def late():\n    from selfrepair.model import model")
    assert upward_imports(package) == []
    assert set(import_cycle(package)) == {"model.calls", "model.model"}


def test_a_planted_folder_is_found(tmp_path: Path) -> None:
    package = _with(tmp_path, "extras/__init__.py", "")
    assert unknown_folders(package) == ["extras"]


def test_a_relative_import_is_an_error(tmp_path: Path) -> None:
    package = _with(tmp_path, "engine/clean.py", "from ..measure import tokens")
    with pytest.raises(ValueError, match=r"engine/clean\.py, line \d+: a relative import"):
        upward_imports(package)


def test_every_rule_has_the_script_of_its_name(rules: dict) -> None:
    named = {name: "draw_figure" if name.startswith("draw_") else name for name in rules}
    wrong = {name: rule.script for name, rule in rules.items() if rule.script != SCRIPTS / f"{named[name]}.py"}
    assert not wrong, f"rules and scripts that are named apart: {wrong}"


def test_every_script_is_a_rule_s(rules: dict) -> None:
    assert _apart(SCRIPTS.glob("*.py"), {rule.script for rule in rules.values()}) == {}


def test_every_figure_is_a_module(rules: dict) -> None:
    figures = {name.removeprefix("draw_") for name in rules if name.startswith("draw_")}
    shared = {"__init__", *SHARED}
    assert _apart({path.stem for path in (PACKAGE / "figures").glob("*.py")} - shared, figures) == {}


def test_every_rule_calls_the_module_of_its_name(rules: dict) -> None:
    """What a rule writes has the name of the module that makes it: folder, file or, of tables, rule."""
    wrong = []
    for name, rule in rules.items():
        module, function = drawing.work_of(rule)
        if name.startswith("tabulate_"):
            wanted = {f"tables.{name.removeprefix('tabulate_')}"}
        elif name in OTHER_NAMES:
            wanted = {OTHER_NAMES[name]}
        else:
            wanted = {f"{folder}.{rule.subject}" for folder in drawing.FOLDERS} | {rule.subject}
        if module not in wanted:
            wrong.append(f"{name} writes {rule.writes[0]} by {module}.{function}")
    assert not wrong, "\n".join(["modules that are named otherwise than what they make:", *wrong])


def test_rules_of_tables_are_named_alike(rules: dict) -> None:
    others = [name for name, rule in rules.items() if rule.subject == "tables" and not name.startswith("tabulate_")]
    assert not others, f"rules that write tables and are not called tabulate_: {', '.join(others)}"


def test_every_rule_has_a_row_in_the_docs_and_every_row_is_a_rule(rules: dict) -> None:
    rows = re.findall(r"^\| \[`([^`]+)`\]\(\.\./scripts/", PAGE, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert _apart(set(rows), {"draw_{figure}" if name.startswith("draw_") else name for name in rules}) == {}


def test_the_drawn_blocks_are_current(rules: dict) -> None:
    assert drawing.with_blocks(PAGE, drawing.blocks(list(rules.values()))) == PAGE, (
        "docs/architecture.md is behind the code: run `make docs`"
    )


def test_a_block_that_the_page_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="no block 'data'"):
        drawing.with_blocks("nothing", {"data": ""})


def test_every_name_in_the_docs_is_in_the_code() -> None:
    """Names such as `engine.clean.run_clean`: a module of the package, and what is defined in it."""
    folders = "|".join(drawing.FOLDERS)
    # `explorer.html` is a file.
    names = set(re.findall(rf"`((?:{folders})\.(?!html)[A-Za-z_.]+?)(?:\(.*?\))?`", PAGE))
    assert names
    unknown = sorted(name for name in names if not _defined(name))
    assert not unknown, f"names that the code does not have: {', '.join(unknown)}"


def test_every_link_in_the_docs_leads_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", PAGE)
    assert [target for target in targets if not (drawing.PAGE.parent / target).exists()] == []


def test_the_readme_lists_every_figure(rules: dict) -> None:
    listed = re.findall(r"^\| `(\w+)` \|", README.partition("| figure |")[2].partition("- **Units.**")[0], re.MULTILINE)
    assert _apart(listed, {name.removeprefix("draw_") for name in rules if name.startswith("draw_")}) == {}


def _apart(one: Iterable, other: Iterable) -> dict[str, list]:
    """What is in one alone, and in the other alone; nothing where they are the same."""
    here, there = set(one), set(other)
    sides = {"without a counterpart": sorted(here - there), "missing": sorted(there - here)}
    return {side: names for side, names in sides.items() if names}


def _defined(name: str) -> bool:
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:depth])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if file.is_file():
            body, inner = ast.parse(file.read_text(encoding="utf-8")).body, parts[depth:]
            break
    else:
        return False
    for part in inner:
        found = [node for node in body if part in _names(node)]
        if not found:
            return False
        body = getattr(found[-1], "body", [])
    return True


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
