"""Of a file that a later step reads, a flipped bit changes nothing that is read, or is refused with the file and a remedy."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from selfrepair import load_model
from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.sealed import read_json, write_json
from selfrepair.files.tables import read_table, write_table
from selfrepair.measure.chosen_heads import read_chosen_heads
from selfrepair.snapshots.manifest import publish, read_manifest, staging, verify_manifest
from selfrepair.workflow.provenance import identity_of

from tiny_model import save_tiny_model

pytestmark = pytest.mark.filterwarnings("error")

FLIPS = 200
PUBLISHED = Path(__file__).parents[3] / "resources" / "published" / "self_repair_by_head.csv"


def written_hdf5(folder: Path, *, long: bool) -> Path:
    """Every layout that the workflow writes: chunks, whole variables, a scale with values; all kinds of attributes."""
    path = folder / "ablations.h5"
    rng = np.random.default_rng(0)
    dataset = xr.Dataset(
        {
            "logit_change": (
                ("head", "prompt", "pos"),
                rng.normal(size=(3, 4, 5)).astype(np.float32),
                {"units": "logits"},
            ),
            "n_selected": (("head", "prompt"), rng.integers(9, size=(3, 4))),
        },
        coords={
            "layer": ("head", np.arange(3)),
            "head_index": ("head", np.arange(3)),
            "scale": ("scale", np.arange(2.0)),
        },
    )
    # More inputs than an HDF5 header holds: the attribute is kept elsewhere.
    upstream = {f"activations/{number:05d}.h5": "0" * 16 for number in range(3000 if long else 1)}
    attrs = {"tokens": "all", "rounding": 1e-5, "coordinates": "layer head_index"}
    provenance = {"identity": "c0ffee" * 2, "upstream": upstream}
    with write_hdf5(path, kind="ablations", provenance=provenance, attrs=attrs) as file:
        file.put_dataset(dataset, chunk={"head": 1, "prompt": 1})
        file.dims(sample=6)
        file.put("whole", ("sample",), np.arange(6))
        by_part = file.variable("by_part", ("sample", "pos"), np.float64, chunk={"sample": 4})
        by_part[:3] = np.ones((3, 5))
        by_part[3:] = np.zeros((3, 5))
    return path


def read_hdf5(path: Path) -> Any:
    with open_hdf5(path, "ablations") as dataset:
        return dataset.load()


def written_table(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "layer": pd.array([0, None, 2] * 40, dtype="Int64"),
            "by": ["head", "mlp", "é"] * 40,
            "value": rng.normal(size=120),
            "selected": rng.random(120) > 0.5,
        }
    )
    path = folder / "heads.parquet"
    write_table(table, path, {"model": "tiny", "n_prompts": 8, "confidence": 0.95})
    return path


def written_json(folder: Path) -> Path:
    write_json(folder / "chosen_heads.json", {"heads": [[0, 1], [1, 3], [10, 11]]})
    return folder / "chosen_heads.json"


def written_snapshot(folder: Path) -> Path:
    manifest = folder / "manifest.json"
    with staging(manifest) as partial:
        save_tiny_model(partial)
        publish(manifest, partial, {"kind": "model", "source": "path:x", "license": "none", "weights": "float32"})
    return manifest


def written_corpus(folder: Path) -> Path:
    manifest = folder / "manifest.json"
    with staging(manifest) as partial:
        (partial / "documents.jsonl").write_text('{"text": "the cat sat"}\n' * 9, encoding="utf-8")
        publish(manifest, partial, {"kind": "corpus", "source": "path:x", "license": "none"})
    return manifest


def copied_published(folder: Path) -> Path:
    for path in (PUBLISHED, PUBLISHED.with_name(f"{PUBLISHED.name}.sha256")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / PUBLISHED.name


def of_snapshot(name: str) -> Callable[[Path], Path]:
    return lambda folder: written_snapshot(folder).parent / name


def verified(kind: str) -> Callable[[Path], Any]:
    return lambda path: verify_manifest(path.parent / "manifest.json", kind)


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "hdf5": (lambda folder: written_hdf5(folder, long=False), read_hdf5),
    "hdf5 with long attributes": (lambda folder: written_hdf5(folder, long=True), read_hdf5),
    "identity of hdf5": (lambda folder: written_hdf5(folder, long=False), identity_of),
    "parquet": (written_table, read_table),
    "columns of parquet": (written_table, lambda path: read_table(path, columns=["value"])),
    "identity of parquet": (written_table, lambda path: read_table(path) if identity_of(path) else None),
    "json": (written_json, read_chosen_heads),
    "identity of json": (written_json, lambda path: read_json(path) if identity_of(path) else None),
    "manifest": (written_snapshot, lambda path: read_manifest(path, "model")),
    "weights": (of_snapshot("model.safetensors"), verified("model")),
    "config": (of_snapshot("config.json"), verified("model")),
    "tokenizer": (of_snapshot("tokenizer.json"), verified("model")),
    "documents": (lambda folder: written_corpus(folder).parent / "documents.jsonl", verified("corpus")),
    "published": (copied_published, read_table),
    "digest of published": (
        lambda folder: copied_published(folder).with_name(f"{PUBLISHED.name}.sha256"),
        lambda path: read_table(path.with_suffix("")),
    ),
}
"""By kind of file: how it is written, and what a job does first with it."""


def same(got: Any, wanted: Any) -> bool:
    if isinstance(wanted, xr.Dataset):
        return got.identical(wanted) and all(got[name].dtype == wanted[name].dtype for name in wanted.variables)
    if isinstance(wanted, pd.DataFrame):
        return got.equals(wanted) and got.attrs == wanted.attrs
    return bool(got == wanted)


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    place, bit = rng.integers(len(content)), rng.integers(8)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_is_silent(kind: str, tmp_path: Path, rng: np.random.Generator) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    wanted, content = read(path), path.read_bytes()
    outcomes = Counter()
    for _ in range(FLIPS):
        path.write_bytes(flipped(content, rng))
        try:
            outcomes["same" if same(read(path), wanted) else "silent"] += 1
        except ValueError as error:
            named = path.name in str(error) and re.search("`snakemake --forcerun |`git checkout ", str(error))
            outcomes["noticed" if named else f"unnamed: {error}"] += 1
    assert outcomes["noticed"] > 0
    assert set(outcomes) <= {"noticed", "same"}, outcomes
    # Only a format with room to spare may hold bits that say nothing.
    assert "hdf5" in kind or not outcomes["same"], outcomes
    path.write_bytes(content)
    assert same(read(path), wanted)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_cut_file_is_named(kind: str, share: float, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    path = write(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
        read(path)
    assert re.search("`snakemake --forcerun |`git checkout ", str(caught.value))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_load_model_refuses_a_damaged_snapshot(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    file = written_snapshot(tmp_path).parent / name
    load_model(tmp_path)
    file.write_bytes(flipped(file.read_bytes(), rng))
    with pytest.raises(
        ValueError, match=rf"{name}: sha256 .*it is damaged; remake it with `snakemake --forcerun snapshot_model`"
    ):
        load_model(tmp_path)


def places_of_values(path: Path) -> set[int]:
    """Bytes that hold values, which are under HDF5's own checksums."""
    with h5py.File(path) as file:
        chunked = [each.id for each in file.values() if each.chunks]
        chunks = [each.get_chunk_info(number) for each in chunked for number in range(each.get_num_chunks())]
    return {place for chunk in chunks for place in range(chunk.byte_offset, chunk.byte_offset + chunk.size)}


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("read", [read_hdf5, identity_of])
def test_damage_outside_of_values_is_seen_before_hdf5_looks(
    read: Callable[[Path], Any], long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 follows a wrong reference for ever, or into a fault of memory: in heaps, and where long attributes lie."""
    path = written_hdf5(tmp_path, long=long)
    content, values = path.read_bytes(), places_of_values(path)
    heap = content.index(b"GCOL\x01")
    places = {*range(heap, heap + 200), *range(0, len(content), 501), *range(len(content) - 60, len(content))} - values
    assert len(places) > 260
    monkeypatch.setattr(h5py, "File", None)
    for place in places:
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"ablations\.h5 is (damaged|not a whole)"):
            read(path)
