"""Write what docs/architecture.md shows of the code: its folders, its rules and the way of the data.

`make docs` runs it. It reads the package's syntax trees, and the rules as Snakemake has parsed them, and writes the blocks of
the page between ``<!-- drawn: NAME -->`` and ``<!-- end -->``. tests/unit/test_architecture.py holds the page to the code, and
the code to `FOLDERS`.
"""

import ast
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "srcpkg" / "selfrepair"
PAGE = REPOSITORY / "docs" / "architecture.md"

FOLDERS = (
    *(
        "commands",
        "explorer",
        "run",
        "figures",
        "tables",
        "measure",
        "engine",
        "model",
        "workflow",
        "snapshots",
        "files",
    ),
)
"""Folders of the package. Each may import from itself, from those after it, and from the modules at the package's root."""
ROOT = "root"
"""Stands for the modules at the package's root, below all folders."""

Imports = dict[str, set[str]]


def imports(package: Path) -> Imports:
    """Modules of a package, each with the modules of the package that it imports, at its top or inside its functions.

    Imports for type checkers alone do not count, nor what Python runs of a module's parents.

    Args:
        package: The package's folder.

    Returns:
        By name without the package's own, such as ``engine.clean``; the package itself is ``""``.
    """
    files = {_module_name(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(_imported(path, package.name, files)) - {name} for name, path in files.items()}


def _module_name(path: Path, package: Path) -> str:
    return ".".join(part for part in path.relative_to(package).with_suffix("").parts if part != "__init__")


def _imported(path: Path, package: str, modules: Iterable[str]) -> Iterator[str]:
    for node in _run(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}, line {node.lineno}: a relative import; write it from {package} on")
            names = [(f"{node.module}.{alias.name}", node.module or "") for alias in node.names]
        else:
            continue
        for name, parent in names:
            if name.split(".")[0] == package:
                # What is imported from a module is a module too, or a name in it.
                inner, outer = name.partition(".")[2], parent.partition(".")[2]
                yield inner if inner in modules else outer


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run, which leaves out what stands under ``if TYPE_CHECKING``."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def folder_of(module: str) -> str:
    """The folder that a module lies in or runs, `ROOT` for modules at the package's root."""
    folder = module.split(".")[0]
    if module == "__main__":
        return FOLDERS[0]  # the program of the topmost folder
    return folder if "." in module or folder in FOLDERS else ROOT


def folder_imports(modules: Imports) -> Imports:
    """Which other folders each folder imports from."""
    found: Imports = {folder: set() for folder in (*FOLDERS, ROOT)}
    for module, imported in modules.items():
        found.setdefault(folder_of(module), set()).update(folder_of(other) for other in imported)
    return {folder: others - {folder} for folder, others in found.items()}


@dataclass(frozen=True)
class Rule:
    """A rule that writes files.

    Attributes:
        name: Its name.
        script: Its script.
        writes: Patterns of the files that it writes.
        after: The rules whose files it reads.
    """

    name: str
    script: Path | None
    writes: tuple[str, ...]
    after: frozenset[str]

    @property
    def subject(self) -> str:
        """Name of the folder or file that it writes: ``neurons`` for results/{model}/{corpus}/neurons/{kind}/{shard}.h5."""
        parts = [
            part
            for part in self.writes[0].split("/")
            if part not in ("results", "snapshots", "all_models", "{model}", "{corpus}")
        ]
        return parts[0].partition(".")[0]


def read_rules(snakefile: Path = REPOSITORY / "Snakefile") -> list[Rule]:
    """The rules that write files, as Snakemake parses them with the default config, in the order in which they stand.

    Every kind of ablation takes all heads here, so that what only mean ablation reads is seen, and no rule waits for itself.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    config = ConfigSettings(config={"ablations": {kind: {"heads": "all"} for kind in ("resample", "mean", "zero")}})
    # Elsewhere, so that no results are looked at and nothing is left behind.
    with tempfile.TemporaryDirectory() as folder, SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(),
            config_settings=config,
            snakefile=snakefile,
            workdir=Path(folder),
        )._workflow
        settings = workflow.globals["config"]
        # Those of rules/quick.smk are rules of the other files, on fewer shards.
        writing = [rule for rule in workflow.rules if rule.output and Path(str(rule.snakefile)).name != "quick.smk"]
        return [
            Rule(
                name=rule.name,
                script=_script(rule),
                writes=tuple(re.sub(r"\{(\w+),[^{}]*\}", r"{\1}", str(path)) for path in rule.output),
                after=frozenset(_makers(_read(rule, settings), writing)) - {rule.name},
            )
            for rule in sorted(writing, key=lambda rule: _place(rule, workflow))
        ]


def _place(rule: Any, workflow: Any) -> tuple[int, int]:
    """Where a rule stands: its file, in the order of their inclusion, and its line."""
    files = [str(path) for path in workflow.included]
    return (files.index(str(rule.snakefile)) if str(rule.snakefile) in files else len(files), rule.lineno)


def _script(rule: Any) -> Path | None:
    """A rule's script; rules that inherit from one another share a path that their params fill in."""
    if not rule.script:
        return None
    return (Path(str(rule.snakefile)).parent / str(rule.script).format(params=rule.params)).resolve()


def _read(rule: Any, settings: Mapping[str, Any]) -> Iterator[str]:
    """The files that a rule reads, for each kind of ablation, of one model, corpus and shard."""
    for kind in settings["ablations"]:
        wildcards = {
            "model": settings["run"]["models"][0],
            "corpus": settings["run"]["corpora"][0],
            "kind": kind,
            "shard": "00000",
        }
        for item in rule.input:
            given = item(_Wildcards(wildcards)) if callable(item) else str(item)
            for path in [given] if isinstance(given, str) else given:
                yield str(path).format(**wildcards)


class _Wildcards(SimpleNamespace):
    """Wildcards as an input function takes them: by attribute, by key, or unpacked."""

    def __init__(self, wildcards: Mapping[str, str]) -> None:
        super().__init__(**wildcards)

    def keys(self) -> Iterable[str]:
        return vars(self).keys()

    def __getitem__(self, name: str) -> str:
        return vars(self)[name]


def _makers(paths: Iterable[str], rules: Iterable[Any]) -> set[str]:
    return {rule.name for path in paths for rule in rules if any(output.match(path) for output in rule.output)}


def script_imports(script: Path) -> dict[str, str]:
    """What a script imports from the package's stages: module by name imported, both without the package's own."""
    tree = ast.parse(script.read_text(encoding="utf-8"))
    return {
        alias.name: (node.module or "").partition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name
        for alias in node.names
        if not (node.module or "").startswith(f"{PACKAGE.name}.workflow.")
    }


def work_of(rule: Rule) -> tuple[str, str]:
    """Module and function that do a rule's work.

    They are what the script calls of the module that has the name of the rule's file; where it imports no such module, its last
    call of anything that it imports from the package.

    Raises:
        ValueError: A script that calls nothing of the package.
    """
    if rule.script is None:
        raise ValueError(f"rule {rule.name} has no script")
    found = script_imports(rule.script)
    calls = [
        node.value.func.id
        for node in ast.walk(ast.parse(rule.script.read_text(encoding="utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
    ]
    calls = [name for name in calls if name in found]
    named = [name for name, module in found.items() if module.split(".")[-1] == rule.subject]
    choice = [name for name in calls if name in named] or named or calls
    if not choice:
        raise ValueError(f"{rule.script}: no call of a function that it imports from {PACKAGE.name}")
    return found[choice[-1]], choice[-1]


def first_line(path: Path) -> str:
    """The first line of a Python file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def draw_folders() -> str:
    """The folders and which of them imports from which, as a diagram and a list."""
    edges = folder_imports(imports(PACKAGE))
    own = sorted(path.name for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))
    lines = ["flowchart TD", *(f"    {folder}[{folder}/]" for folder in FOLDERS), f'    {ROOT}["{", ".join(own)}"]']
    lines += [
        f"    {folder} --> {other}"
        for folder in FOLDERS
        for other in (*FOLDERS, ROOT)
        if other in without_detours(edges)[folder]
    ]
    rows = [
        f"| [`{folder}/`](../srcpkg/selfrepair/{folder}) | {first_line(PACKAGE / folder / '__init__.py')} "
        f"| {', '.join(other for other in (*FOLDERS, ROOT) if other in edges[folder])} |"
        for folder in FOLDERS
    ]
    return "\n".join([*_mermaid(lines), "", "| folder | what | imports from |", "|---|---|---|", *rows])


def draw_data(rules: list[Rule]) -> str:
    """The rules and what each waits for, as a diagram; figures are one node."""
    node = {rule.name: _node(rule) for rule in rules}
    after: Imports = {node[rule.name]: set() for rule in rules}
    for rule in rules:
        after[node[rule.name]] |= {node[other] for other in rule.after}
    after = {name: others - {name} for name, others in after.items()}
    lines = ["flowchart LR"]
    labels = {node[rule.name]: _label(rule) for rule in rules} | {FIGURES_NODE: "draw_*<br/>figures/"}
    lines += [f'    {name}["{labels[name]}"]' for name in after]
    lines += [f"    {other} --> {name}" for name, others in without_detours(after).items() for other in sorted(others)]
    return "\n".join(_mermaid(lines))


FIGURES_NODE = "figures"


def _node(rule: Rule) -> str:
    return FIGURES_NODE if rule.name.startswith("draw_") else rule.name


def _label(rule: Rule) -> str:
    """A rule's name, and the file that it writes; tables are many, and stand in the table of rules."""
    return rule.name if rule.subject == "tables" else f"{rule.name}<br/>{written(rule)[0]}"


def written(rule: Rule) -> list[str]:
    """What a rule writes, in short: within its run's folder, or within results; tables without folder and ending."""
    paths = [path.removeprefix("results/{model}/{corpus}/").removeprefix("results/") for path in rule.writes]
    return [re.sub(r"^tables/[^/]+/(\w+)\.parquet$", r"\1", path) for path in paths]


def list_rules(rules: list[Rule]) -> str:
    """The table of rules."""
    rows = ["| rule | what it does | function | writes |", "|---|---|---|---|"]
    figures = [rule.name.removeprefix("draw_") for rule in rules if _node(rule) == FIGURES_NODE]
    for rule in rules:
        if _node(rule) == FIGURES_NODE and rule.name != f"draw_{figures[0]}":
            continue
        assert rule.script is not None
        module, function = work_of(rule)
        file = PACKAGE.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        name, paths = rule.name, [f"`{path}`" for path in written(rule)]
        if _node(rule) == FIGURES_NODE:
            name, paths = "draw_{figure}", ["`figures/{figure}.png`, `.svg`"]
        rows.append(
            f"| [`{name}`](../scripts/{rule.script.name}) | {first_line(rule.script).removesuffix('.')} "
            f"| [`{module}.{function}`](../{file.relative_to(REPOSITORY)}) | {', '.join(paths)} |"
        )
    return "\n".join([*rows, "", f"Figures: {', '.join(f'`{name}`' for name in figures)}."])


def without_detours(edges: Imports) -> Imports:
    """The arrows of a graph without cycles, less those that a longer way implies."""
    reached: Imports = {}
    for name in TopologicalSorter(edges).static_order():
        reached[name] = edges[name].union(*(reached[other] for other in edges[name]))
    return {
        name: {to for to in others if not any(to in reached[by] for by in others)} for name, others in edges.items()
    }


def _mermaid(lines: Iterable[str]) -> list[str]:
    return ["```mermaid", *lines, "```"]


def blocks(rules: list[Rule]) -> dict[str, str]:
    """The page's blocks as the code has them now."""
    return {"folders": draw_folders(), "data": draw_data(rules), "rules": list_rules(rules)}


def with_blocks(page: str, drawn: Mapping[str, str]) -> str:
    """A page with its blocks replaced.

    Raises:
        ValueError: A block that the page lacks.
    """
    for name, block in drawn.items():
        start, end = f"<!-- drawn: {name} -->\n", "<!-- end -->\n"
        before, found, rest = page.partition(start)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{PAGE.name} has no block {name!r}: wanted a line {start.strip()} and one {end.strip()}")
        page = f"{before}{start}\n{block}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(with_blocks(PAGE.read_text(encoding="utf-8"), blocks(read_rules())), encoding="utf-8")
