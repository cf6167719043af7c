"""Result files: whole or absent, checked when they are read, and readable by name."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from selfrepair.files import hdf5
from selfrepair.files.hdf5 import SCHEMA_VERSION, heads_of, open_hdf5, open_shards, rows_of, same_heads, write_hdf5
from selfrepair.files.hdf5_seal import add_seal, require_seal

pytestmark = pytest.mark.filterwarnings("error")

VALUES = np.arange(4 * 6, dtype=np.float32).reshape(4, 6)


def write(path: Path, values: np.ndarray = VALUES) -> None:
    with write_hdf5(path, kind="tokens", provenance={"identity": "0"}, attrs={"n_pos": 6}) as file:
        file.dims(prompt=4, pos=6)
        variable = file.variable(
            "tokens", ("prompt", "pos"), values.dtype, chunk={"prompt": 1}, units="logits", description="some values"
        )
        for prompt in range(4):
            variable[prompt] = values[prompt]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks as they are asked for, small as these are."""
    monkeypatch.setattr(hdf5, "SMALL_CHUNK", 1)


@pytest.mark.parametrize(
    ("chunk", "wanted"),
    [
        ({"head": 1, "prompt": 1}, (8, 8, 127)),  # 8 heads of 4,064 bytes
        ({"head": 1}, (8, 8, 127)),
        ({"head": 20}, (20, 8, 127)),
        ({}, (270, 8, 127)),
    ],
)
def test_small_chunks_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: dict[str, int], wanted: tuple[int, ...]
) -> None:
    """Up to 32,000 bytes, from the last dimension on; and all of what is smaller."""
    path = tmp_path / "ablations.h5"
    monkeypatch.setattr(hdf5, "SMALL_CHUNK", 32_000)
    with write_hdf5(path, kind="ablations", provenance={}) as file:
        file.dims(head=270, prompt=8, pos=127)
        file.put("logit_change", ("head", "prompt", "pos"), np.zeros((270, 8, 127), np.float32), chunk=chunk)
        file.put("layer", ("head",), np.zeros(270, int), chunk={"head": 1})
    with h5py.File(path) as plain:
        assert plain["logit_change"].chunks == wanted
        assert plain["layer"].chunks == (270,)


def read(path: Path) -> np.ndarray:
    with open_hdf5(path, "tokens") as dataset:
        return dataset["tokens"].values


def test_what_is_written_is_read_back_with_names_units_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "tokens.h5"
    write(path)
    with open_hdf5(path, "tokens") as dataset:
        assert dict(dataset.sizes) == {"prompt": 4, "pos": 6}
        assert dataset["tokens"].dims == ("prompt", "pos")
        assert dataset["tokens"].dtype == np.float32
        assert dataset["tokens"].attrs["units"] == "logits"
        assert dataset["tokens"].attrs["long_name"] == "some values"
        assert (dataset.attrs["kind"], dataset.attrs["schema_version"]) == ("tokens", SCHEMA_VERSION)
        assert json.loads(dataset.attrs["provenance"]) == {"identity": "0"}
        assert dataset.attrs["n_pos"] == 6
        np.testing.assert_array_equal(dataset["tokens"].values, VALUES)


def test_plain_h5py_sees_scales_chunks_and_checksums(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    with h5py.File(path) as file:
        assert file["tokens"].fletcher32
        assert file["tokens"].chunks == (1, 6)
        assert [scale[0].name for scale in file["tokens"].dims] == ["/prompt", "/pos"]


def test_a_dataset_is_written_with_its_coordinates(tmp_path: Path) -> None:
    dataset = xr.Dataset(
        {"logit_change": (("head", "prompt"), VALUES, {"units": "logits", "description": "change"})},
        coords={"layer": ("head", np.arange(4))},
    )
    path = tmp_path / "ablations.h5"
    with write_hdf5(path, kind="ablations", provenance={}) as file:
        file.put_dataset(dataset, chunk={"head": 1})
    with open_hdf5(path, "ablations") as found:
        np.testing.assert_array_equal(found["logit_change"].values, VALUES)
        assert found["logit_change"].attrs["units"] == "logits"
        np.testing.assert_array_equal(found["layer"].values, np.arange(4))


def fail(path: Path) -> None:
    with write_hdf5(path, kind="tokens", provenance={}) as file:
        file.dims(prompt=4)
        file.put("tokens", ("prompt",), VALUES[:, 0])
        raise RuntimeError("on the way")


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on the way"):
        fail(tmp_path / "tokens.h5")
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_former_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="on the way"):
        fail(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_has_the_final_name_before_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    with write_hdf5(path, kind="tokens", provenance={}):
        assert not path.exists()
    assert path.exists()


def test_a_killed_writer_leaves_no_file_and_the_next_one_no_remains(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom selfrepair.files.hdf5 import write_hdf5\n"
        "with write_hdf5(Path(sys.argv[1]), kind='tokens', provenance={}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert re.fullmatch(r"\.tokens\.h5\..+-\d+\.partial", left.name)
    write(path)
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(read(path), VALUES)


def flip_a_byte(path: Path) -> None:
    """One bit of one value, which leaves the file's structure as it is."""
    with h5py.File(path) as file:
        offset = file["tokens"].id.get_chunk_info(2).byte_offset
    with path.open("r+b") as handle:
        handle.seek(offset + 5)
        byte = handle.read(1)[0]
        handle.seek(offset + 5)
        handle.write(bytes([byte ^ 1]))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "is damaged .*filter returned failure"),
        (truncate, "is not a whole HDF5 file"),
        (empty, "is not a whole HDF5 file"),
        (Path.unlink, "does not exist"),
    ],
)
def test_a_damaged_file_is_named_with_the_command_that_remakes_it(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    np.testing.assert_array_equal(read(path), VALUES)
    damage(path)
    with pytest.raises(ValueError, match=f"tokens.h5 {reason}") as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert f"`snakemake --forcerun {path}`" in str(caught.value)
    assert "tokenize_corpus" in str(caught.value)


def test_only_the_damaged_part_is_refused(tmp_path: Path) -> None:
    """A checksum is of a chunk, one prompt here: the others can still be read."""
    path = tmp_path / "tokens.h5"
    write(path)
    flip_a_byte(path)
    with open_hdf5(path, "tokens") as dataset:
        np.testing.assert_array_equal(dataset["tokens"][:2].values, VALUES[:2])


def test_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    message = "holds tokens of schema version 3; wanted ablations of version 3: .*ablate_heads"
    with pytest.raises(ValueError, match=message), open_hdf5(path, "ablations"):
        pass


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION + 1
    add_seal(path)
    with pytest.raises(ValueError, match="holds tokens of schema version 4; wanted tokens of version 3"):
        read(path)


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = VALUES
    with pytest.raises(
        ValueError, match=r"carries no seal \(one that was cut or changed, of another version, or not ours\)"
    ):
        read(path)


@pytest.mark.parametrize("layout", [{"chunks": (1, 6)}, {}], ids=["in chunks", "whole"])
def test_values_without_a_checksum_are_under_the_seal(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    plain = np.arange(100.0, 106.0)
    with h5py.File(path, "r+") as file:
        file.create_dataset("plain", data=plain[None], **layout)
    add_seal(path)
    require_seal(path, "")
    content = path.read_bytes()
    at = content.index(plain.tobytes())
    path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    with pytest.raises(ValueError, match="is damaged"):
        require_seal(path, "")


HEADS = [(0, 1), (1, 0)]


def write_shard(path: Path, first: int, *, heads: list[tuple[int, int]] = HEADS, size: int = 2, **changed: Any) -> Path:
    """An ablations file of some prompts, with the provenance that a job gives it."""
    config = {"prompts": [first, first + size], "kind": changed.get("kind", "resample")}
    upstream = {"results/tokens.h5": changed.get("tokens", "a"), f"results/activations/{first:05d}.h5": str(first)}
    dataset = xr.Dataset(
        {"logit_change": (("head", "prompt", "pos"), np.zeros((len(heads), changed.get("held", size), 3)))},
        coords={name: ("head", at) for name, at in zip(("layer", "head_index"), np.array(heads).T, strict=True)},
    )
    with write_hdf5(path, kind="ablations", provenance={"config": config, "upstream": upstream}) as file:
        file.put_dataset(dataset)
    return path


def firsts(*paths: Path, n_prompts: int | None = None) -> list[int]:
    return [first for _, first in open_shards(paths, "ablations", n_prompts=n_prompts)]


def test_shards_are_read_in_the_order_of_their_prompts(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{number}.h5", 2 * number) for number in range(3)]
    assert firsts(*shards, n_prompts=6) == [0, 2, 4]
    with pytest.raises(ValueError, match=r"1\.h5 begins with prompt 2 where prompt 0 follows: name every shard"):
        firsts(*shards[1:])
    with pytest.raises(ValueError, match=r"2\.h5 begins with prompt 4 where prompt 2 follows"):
        firsts(shards[0], shards[2])
    with pytest.raises(ValueError, match=r"0\.h5 begins with prompt 0 where prompt 2 follows"):
        firsts(shards[0], shards[0])
    with pytest.raises(ValueError, match=r"0\.h5 and the shards after it hold 4 prompts, the run 6"):
        firsts(*shards[:2], n_prompts=6)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"heads": HEADS[::-1]}, "heads differ"),
        ({"heads": HEADS[:1]}, "heads differ|sizes differ"),
        ({"kind": "mean"}, "settings differ"),
        ({"tokens": "b"}, "inputs differ"),
        ({"held": 1}, "holds 1 prompts of 2"),
    ],
)
def test_a_shard_of_another_run_is_named_with_the_one_it_differs_from(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    first, other = write_shard(tmp_path / "a.h5", 0), write_shard(tmp_path / "b.h5", 2, **changed)
    with pytest.raises(ValueError, match=reason) as caught:
        firsts(first, other)
    assert str(other) in str(caught.value)
    assert "holds" in reason or str(first) in str(caught.value)


def test_rows_of_two_files_are_joined_only_where_their_heads_are_the_same(tmp_path: Path) -> None:
    path, whose = write_shard(tmp_path / "a.h5", 0), tmp_path / "chosen_heads.json"
    with open_hdf5(path, "ablations") as dataset:
        assert heads_of(dataset) == HEADS
        same_heads(path, dataset, HEADS, whose)
        assert rows_of(HEADS[::-1], whose, dataset, path) == [1, 0]
        with pytest.raises(
            ValueError, match=r"a\.h5 holds the heads 0\.1, 1\.0 \(2\), .*chosen_heads\.json names 1\.0, 0\.1"
        ):
            same_heads(path, dataset, HEADS[::-1], whose)
        with pytest.raises(ValueError, match=r"a\.h5 lacks heads \[\(4, 4\)\], which .*chosen_heads\.json names"):
            rows_of([(0, 1), (4, 4)], whose, dataset, path)


READ = """
import sys
from pathlib import Path
from selfrepair.workflow.provenance import identity_of
from selfrepair.files.hdf5 import open_hdf5
try:
    with open_hdf5(Path(sys.argv[1]), "tokens") as dataset:
        dataset.load()
finally:
    identity_of(Path(sys.argv[1]))
"""
WRITE = """
import sys
from pathlib import Path
import numpy as np
from selfrepair.files.hdf5 import write_hdf5
with write_hdf5(Path(sys.argv[1]), kind="tokens", provenance={}) as file:
    file.dims(prompt=200000)
    file.put("tokens", ("prompt",), np.random.default_rng(0).random(200000))
"""


def said(code: str, path: Path, **environment: str) -> str:
    """The last line that a process of its own says when it runs ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def test_a_file_that_another_program_has_open_is_locked_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    with h5py.File(path, "r+"):
        for environment in ({}, {"HDF5_USE_FILE_LOCKING": "FALSE"}):
            message = said(READ, path, **environment)
            assert str(path) in message
            assert "is locked: another program has it open" in message
            assert "damaged" not in message


def test_a_file_that_another_program_opened_to_write_is_no_longer_what_was_written(tmp_path: Path) -> None:
    """Its values and their checksums may be others, which HDF5 would not tell."""
    path = tmp_path / "tokens.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file["tokens"][0, 0] += 1
    with pytest.raises(ValueError, match=r"carries no seal \(.*changed"):
        read(path)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, str]]:
    """Environments in which a call of the C library fails with an error number."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a system that refuses")
    folder = tmp_path_factory.mktemp("refused")

    def environment(call: str, number: str) -> dict[str, str]:
        library = folder / f"{number}.so"
        source = f"#include <errno.h>\nlong {call}() {{ errno = {number}; return -1; }}\n"
        command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(library)]
        subprocess.run(command, input=source, text=True, check=True)
        return {"LD_PRELOAD": str(library)}

    return environment


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP"])
def test_a_filesystem_without_locks_is_said_with_what_to_set(
    tmp_path: Path, refused: Callable[[str, str], dict[str, str]], number: str
) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    without = refused("flock", number)
    for code, name in ((READ, path), (WRITE, tmp_path / "new.h5")):
        message = said(code, name, **without)
        assert f"{name} cannot be locked" in message
        assert "set HDF5_USE_FILE_LOCKING=FALSE" in message
        assert "remake" not in message
        assert said(code, name, **without, HDF5_USE_FILE_LOCKING="FALSE") == ""


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        ("ENOSPC", "free space"),
        ("EDQUOT", "free space"),
        ("EIO", "says nothing of the content"),
        ("EROFS", "another folder"),
    ],
)
def test_what_the_system_refuses_to_write_is_named_with_its_cause(
    tmp_path: Path, refused: Callable[[str, str], dict[str, str]], number: str, remedy: str
) -> None:
    message = said(WRITE, tmp_path / "new.h5", **refused("pwrite64", number), HDF5_USE_FILE_LOCKING="FALSE")
    message = message or said(WRITE, tmp_path / "new.h5", **refused("pwrite", number), HDF5_USE_FILE_LOCKING="FALSE")
    assert f"{tmp_path / 'new.h5'} cannot be written" in message
    assert remedy in message
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_a_missing_permission_are_not_damage(tmp_path: Path) -> None:
    folder = tmp_path / "folder.h5"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"folder\.h5 cannot be read .*: a folder is where a file is wanted"):
        read(folder)
    with pytest.raises(ValueError, match=r"folder\.h5 cannot be written .*: a folder is where a file is wanted"):
        write(folder)
    write(path := tmp_path / "tokens.h5")
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(ValueError, match=r"tokens\.h5 cannot be read .*: give this user the permission"):
            read(path)


def test_an_error_of_another_file_is_not_blamed_on_the_one_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    with pytest.raises(FileNotFoundError), open_hdf5(path, "tokens"):
        (tmp_path / "another").read_bytes()
