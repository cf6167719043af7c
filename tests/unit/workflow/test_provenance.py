"""Code digests and identities: what counts as a change of a result, and what does not."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import selfrepair.workflow.provenance
from selfrepair.files.hdf5 import write_hdf5
from selfrepair.files.sealed import write_json
from selfrepair.workflow.provenance import code_digest, describe, identity_of, module_digests, module_files

pytestmark = pytest.mark.filterwarnings("error")

REPOSITORY = Path(__file__).parents[3]
SCRIPT = '''"""A script."""

import numpy as np
from selfrepair.outer import work

if __name__ == "__main__":
    work(np.pi)
'''
MODULES = {
    "__init__.py": '"""The package."""\n',
    "outer.py": '''"""Works."""

from typing import TYPE_CHECKING

from selfrepair.inner.deep import number

if TYPE_CHECKING:
    from selfrepair.types_only import Number


def work(value: "Number") -> "Number":
    """Work."""
    from selfrepair.late import later

    # Why it adds.
    return later(value + number)
''',
    "inner/__init__.py": "",
    "inner/deep.py": "number = 1\n",
    "late.py": "def later(value):\n    return value\n",
    "types_only.py": "Number = float\n",
    "unused.py": "nothing = None\n",
    "by_name.py": "import selfrepair.inner.only_by_name\n",
    "inner/only_by_name.py": "",
}


class Tree:
    """A small package of the same name with its own script, so that digests are of known code."""

    def __init__(self, root: Path) -> None:
        self.package = root / "selfrepair"
        self.script = root / "script.py"
        self.script.write_text(SCRIPT)
        for name, text in MODULES.items():
            (self.package / name).parent.mkdir(parents=True, exist_ok=True)
            (self.package / name).write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.script if name == "script.py" else self.package / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def digest(self, *modules: str) -> str:
        return code_digest(module_digests(self.script, *modules))

    def files(self, *modules: str) -> set[str]:
        return {file.relative_to(self.package).as_posix() for file in module_files(self.script, *modules)}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path)
    # The package that is looked at is the one that this module lies in.
    monkeypatch.setattr(selfrepair.workflow.provenance, "__file__", str(made.package / "workflow" / "provenance.py"))
    return made


def test_imports_are_followed_within_the_package_at_any_depth_and_in_functions(tree: Tree) -> None:
    assert tree.files() == {"__init__.py", "outer.py", "inner/__init__.py", "inner/deep.py", "late.py"}


def test_modules_picked_by_name_are_followed_too(tree: Tree) -> None:
    extra = tree.files("selfrepair.by_name") - tree.files()
    assert extra == {"by_name.py", "inner/only_by_name.py"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "np.pi", "np.e"),
        ("__init__.py", '"""The package."""', "changed = True"),
        ("outer.py", "value + number", "value - number"),
        ("inner/__init__.py", "", "changed = True"),
        ("inner/deep.py", "1", "2"),
        ("late.py", "return value", "return -value"),
    ],
)
def test_an_edit_of_code_that_runs_changes_the_digest(tree: Tree, name: str, old: str, new: str) -> None:
    before = tree.digest()
    tree.edit(name, old, new)
    assert tree.digest() != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", '"""A script."""', '"""Another description."""'),
        ("script.py", "import numpy as np\n", "import numpy as np  # fast\n\n"),
        ("outer.py", '"""Works."""', '"""Works well."""'),
        ("outer.py", '    """Work."""\n', ""),
        ("outer.py", "# Why it adds.", "# Another reason."),
        ("outer.py", "later(value + number)", "later(\n        (value + number),\n    )"),
        ("inner/deep.py", "number = 1\n", 'number = 1\n"""What follows a value describes it."""\n'),
        (
            "outer.py",
            "    from selfrepair.types_only import Number",
            "    from selfrepair.unused import nothing as Number",
        ),
        ("types_only.py", "float", "int"),
        ("unused.py", "None", "1"),
        ("by_name.py", "import", "import selfrepair.unused\nimport"),
    ],
)
def test_comments_docstrings_layout_types_and_unused_code_do_not_count(
    tree: Tree, name: str, old: str, new: str
) -> None:
    before = tree.digest()
    tree.edit(name, old, new)
    assert tree.digest() == before


def test_a_relative_import_is_refused(tree: Tree) -> None:
    tree.edit("late.py", "def", "from . import unused\n\n\ndef")
    with pytest.raises(ValueError, match=r"late\.py: relative import in line 1; write it from selfrepair on"):
        tree.digest()


DIGESTS = """
from pathlib import Path
from selfrepair.workflow.provenance import code_digest, module_digests
print(*(code_digest(module_digests(path)) for path in sorted(Path("scripts").glob("*.py"))))
"""


def test_the_digest_of_every_script_is_the_same_in_another_process_and_place(tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", str(REPOSITORY / "scripts"), str(REPOSITORY / "srcpkg"), str(tmp_path)], check=True)
    printed = [
        subprocess.run(
            [sys.executable, "-c", DIGESTS],
            cwd=place,
            env={"PYTHONPATH": f"{place}/srcpkg"},
            capture_output=True,
            text=True,
        )
        for place in (REPOSITORY, tmp_path)
    ]
    here = [code_digest(module_digests(path)) for path in sorted((REPOSITORY / "scripts").glob("*.py"))]
    assert [result.stdout.split() for result in printed] == [here, here], printed
    # Scripts that run different code differ.
    assert len(set(here)) == len(here)


VERSIONS = ("3.12", "3.13", "3.14")
# Of the system, and of pyenv, whose own commands run one version alone.
OTHER_PYTHONS = [
    python
    for python in (
        *filter(None, (shutil.which(f"python{version}") for version in VERSIONS)),
        *(str(path) for version in VERSIONS for path in Path.home().glob(f".pyenv/versions/{version}.*/bin/python")),
    )
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0
]


@pytest.mark.skipif(not OTHER_PYTHONS, reason="no other version of Python is installed")
def test_another_version_of_python_gives_the_same_digests(tmp_path: Path) -> None:
    """It need not have the package's dependencies: what reads files is left out of a copy of the module."""
    shutil.copytree(REPOSITORY / "srcpkg" / "selfrepair", tmp_path / "selfrepair")
    shutil.copytree(REPOSITORY / "scripts", tmp_path / "scripts")
    (tmp_path / "selfrepair" / "files" / "sealed.py").write_text(
        "SEAL = advice_for = listed = read_listed = read_sealed = refusal = None"
    )
    (tmp_path / "selfrepair" / "__init__.py").write_text("")
    printed = {
        python: subprocess.run(
            [python, "-c", DIGESTS],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for python in (sys.executable, *OTHER_PYTHONS)
    }
    assert len(set(printed.values())) == 1, printed
    assert len(printed[sys.executable].split()) > 30


def test_identity_follows_from_code_config_and_inputs_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words")
    settings = {"code": "c0de", "config": {"seed": 0}, "inputs": [text]}
    first = describe(**settings)
    assert describe(**settings) == first
    assert describe(**settings | {"code": "other"})["identity"] != first["identity"]
    assert describe(**settings | {"config": {"seed": 1}})["identity"] != first["identity"]
    text.write_text("other words")
    assert describe(**settings)["identity"] != first["identity"]


def test_inputs_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    """A model's and a corpus's manifest.json, both inputs of one rule."""
    manifests = [tmp_path / kind / "manifest.json" for kind in ("model", "corpus")]
    for manifest in manifests:
        manifest.parent.mkdir()
        write_json(manifest, {"kind": manifest.parent.name})
    before = describe(code="c0de", config={}, inputs=manifests)["identity"]
    write_json(manifests[0], {"kind": "another model"})
    assert describe(code="c0de", config={}, inputs=manifests)["identity"] != before


def test_the_identity_of_a_result_is_the_one_it_records(tmp_path: Path) -> None:
    text, result = tmp_path / "text.txt", tmp_path / "result.h5"
    text.write_text("words")
    assert identity_of(text) == hashlib.sha256(b"words").hexdigest()[:16]
    provenance = describe(code="c0de", config={}, inputs=[text])
    assert provenance["upstream"] == {text.as_posix(): identity_of(text)}
    with write_hdf5(result, kind="tokens", provenance=provenance):
        pass
    assert identity_of(result) == provenance["identity"]
    assert {"package_version", "python", "torch", "transformers", "h5py", "numpy"} <= set(provenance)


def test_a_damaged_result_is_named_with_the_command_that_remakes_it(tmp_path: Path) -> None:
    result = tmp_path / "result.h5"
    with write_hdf5(result, kind="tokens", provenance=describe(code="c0de", config={}, inputs=[])):
        pass
    with result.open("r+b") as handle:
        handle.truncate(result.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"result\.h5 is not a whole HDF5 file") as caught:
        identity_of(result)
    assert f"`snakemake --forcerun {result}`" in str(caught.value)
