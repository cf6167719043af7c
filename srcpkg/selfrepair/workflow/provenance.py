"""Where a result comes from: the code it runs, as a digest that layout and comments do not change, and its inputs.

Snakemake sees inputs and params, not imported modules; a rule's ``code`` param is a digest of its script and of what that
imports, so that an edit to a module makes the results of that module stale, and no others.
"""

import ast
import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from selfrepair.files.hdf5_seal import read_attribute
from selfrepair.files.sealed import SEAL, advice_for, listed, read_listed, read_sealed, refusal

PACKAGE = "selfrepair"
RUNS_JOBS = "workflow"
NO_SYNTAX = ("kind", "type_comment", "ctx")
"""Fields of a syntax tree that do not count."""
STATEMENTS = ("body", "orelse", "finalbody", "handlers", "cases")
"""Fields that hold statements, or what these lie in."""
LIBRARIES = ("torch", "transformers", "h5py", "numpy", "snakemake")


def module_digests(script: Path, *modules: str) -> dict[str, str]:
    """Digest of the syntax of a script, and of every module of this package that it imports, directly or not.

    Comments, docstrings and layout do not count, nor do imports for type checkers alone; nor Python's version.

    Args:
        script: A Python file.
        modules: More modules of this package that it runs, where it picks them by name.

    Returns:
        16 hexadecimal digits each, by path: that of the script is its name, that of a module begins at the package.
    """
    root, script = Path(__file__).parents[1], script.resolve()
    names = {script: script.name} | {
        path: path.relative_to(root.parent).as_posix() for path in module_files(script, *modules)
    }
    return {
        name: _digest(path, path.stat().st_mtime_ns) for path, name in sorted(names.items(), key=lambda item: item[1])
    }


def code_digest(digests: Mapping[str, str]) -> str:
    """One digest of all that `module_digests` gives, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:16]


def module_files(script: Path, *modules: str) -> set[Path]:
    """Files of this package that a script, and modules named beside it, import, directly or not.

    What runs jobs (`selfrepair.workflow`) is left out: it computes nothing, and what it hands to them are params and inputs.
    """
    root = Path(__file__).parents[1]
    found = {file for module in modules for file in _files_of(module, root)}
    waiting = [script, *found]
    while waiting:
        path = waiting.pop()
        new = _imported_files(path, path.stat().st_mtime_ns, root) - found
        found |= new
        waiting.extend(new)
    return found


def describe(*, code: str, config: dict[str, Any], inputs: list[Path]) -> dict[str, Any]:
    """What a result file records of how it was made.

    Args:
        code: The rule's code digest.
        config: The config values it used.
        inputs: Its input files; each one's identity is recorded.

    Returns:
        JSON-like values, among them ``identity``: a digest of code, config and the inputs' identities, the same whenever the
        same thing was computed from the same things.
    """
    upstream = {path.as_posix(): identity_of(path) for path in inputs}
    own = json.dumps({"code": code, "config": config, "upstream": upstream}, sort_keys=True)
    return {
        "identity": hashlib.sha256(own.encode()).hexdigest()[:16],
        "package_version": version(PACKAGE),
        "code": code,
        "config": config,
        "upstream": upstream,
        "python": platform.python_version(),
        **{library: version(library) for library in LIBRARIES},
    }


def identity_of(path: Path) -> str:
    """The identity that a result file records of itself, or the SHA-256 of any other file; one that carries its own is checked.

    Raises:
        ValueError: A file is missing, damaged or locked, with what to do.
    """
    advice = advice_for(path)
    if path.suffix == ".h5":
        return read_attribute(path, "identity", advice)
    try:
        # Files of the user's, which snapshots are taken of, carry no digest.
        if path.suffix in (".json", ".parquet") and SEAL.encode() in path.read_bytes():
            read_sealed(path)
        elif listed(path).exists():
            read_listed(path)
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    except OSError as error:
        raise refusal(path, error, advice=advice) from error


@cache
def _tree(path: Path, _mtime: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def _digest(path: Path, mtime: int) -> str:
    return hashlib.sha256(_syntax(_tree(path, mtime)).encode()).hexdigest()[:16]


def _syntax(node: ast.AST) -> str:
    """A syntax tree as text that is the same in every version of Python: `ast.dump` is not."""
    # Written for speed: every start of Snakemake goes through every module.
    fields = []
    for name in node._fields:
        value = getattr(node, name, None)
        # Fields that a later version adds are empty in code of an earlier one; ``kind`` is how a text is written.
        if value is None or name in NO_SYNTAX:
            continue
        if name == "body" and isinstance(value, list):
            # A bare string is a docstring, of the body or of the attribute above it.
            value = [
                item for item in value if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
            value = [] if _for_type_checkers(node) else value
        if isinstance(value, ast.AST):
            fields.append(f"{name}=[{_syntax(value)}]")
        elif not isinstance(value, list):
            fields.append(f"{name}=[{value!a}]")
        elif value:
            texts = [_syntax(part) if isinstance(part, ast.AST) else ascii(part) for part in value]
            fields.append(f"{name}=[{', '.join(texts)}]")
    return f"{type(node).__name__}({', '.join(fields)})"


@cache
def _imports(path: Path, mtime: int) -> frozenset[str]:
    names: set[str] = set()
    waiting: list[ast.AST] = [_tree(path, mtime)]
    while waiting:
        node = waiting.pop()
        if _for_type_checkers(node):
            waiting.extend(node.orelse)
            continue
        # Imports are statements, and these lie in statements alone.
        for name in STATEMENTS:
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                waiting.extend(inner)
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}: relative import in line {node.lineno}; write it from {PACKAGE} on")
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE)


def _for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@cache
def _imported_files(path: Path, mtime: int, root: Path) -> frozenset[Path]:
    return frozenset(file for module in _imports(path, mtime) for file in _files_of(module, root))


def _files_of(module: str, root: Path) -> list[Path]:
    """The files that importing a module runs: its own, and every package's above it."""
    parts = module.split(".")[1:]
    if parts[:1] == [RUNS_JOBS]:
        parts = []
    files = [root.joinpath(*parts[:depth], "__init__.py") for depth in range(len(parts) + 1)]
    if parts:
        files.append(root.joinpath(*parts[:-1], f"{parts[-1]}.py"))
    return [file for file in files if file.is_file()]
