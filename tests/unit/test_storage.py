"""Result files: whole or absent, checked when they are read, and readable by name."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from selfrepair.storage import SCHEMA_VERSION, open_hdf5, write_hdf5

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


def read(path: Path) -> np.ndarray:
    with open_hdf5(path, "tokens", remake="tokenize_corpus") as dataset:
        return dataset["tokens"].values


def test_what_is_written_is_read_back_with_names_units_and_provenance(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "tokens.h5"
    write(path)
    with open_hdf5(path, "tokens", remake="tokenize_corpus") as dataset:
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
    with open_hdf5(path, "ablations", remake="ablate_heads") as found:
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
        "import os, signal, sys\nfrom pathlib import Path\nfrom selfrepair.storage import write_hdf5\n"
        "with write_hdf5(Path(sys.argv[1]), kind='tokens', provenance={}):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [entry.name for entry in tmp_path.iterdir()] == [".tokens.h5.partial"]
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
    with open_hdf5(path, "tokens", remake="tokenize_corpus") as dataset:
        np.testing.assert_array_equal(dataset["tokens"][:2].values, VALUES[:2])


def test_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    message = "holds tokens of schema version 2; wanted ablations of version 2: .*ablate_heads"
    with pytest.raises(ValueError, match=message), open_hdf5(path, "ablations", remake="ablate_heads"):
        pass


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION + 1
    with pytest.raises(ValueError, match="holds tokens of schema version 3; wanted tokens of version 2"):
        read(path)


def test_a_foreign_hdf5_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.h5"
    with h5py.File(path, "w") as file:
        file["tokens"] = VALUES
    with pytest.raises(ValueError, match="holds None of schema version 0; wanted tokens"):
        read(path)
