"""What the page holds of a run: the run's own numbers, exactly or to the step, and no more than there is room for."""

import re
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from selfrepair.explorer import payload, write_explorer
from selfrepair.explorer.payload import RunFiles, of_run
from selfrepair.explorer.repairs import strongest_repairers
from selfrepair.explorer.texts import Pieces
from selfrepair.files.hdf5 import open_hdf5, write_hdf5
from selfrepair.files.tables import read_table, write_table
from selfrepair.snapshots.encoding import byte_symbols
from selfrepair.tables.repair import repair_of_head
from unit.explorer import reading

from conftest import REPOSITORY
from tiny_model import save_tiny_model

sys.path.insert(0, str(REPOSITORY / "benchmarks"))

from made_shards import Sizes, make_shards
from many_shards import jobs

pytestmark = pytest.mark.filterwarnings("error")

SIZES = Sizes(layers=3, heads=4, prompts=8, positions=15, neurons=60, best=10)
PUBLISHED = REPOSITORY / "resources" / "published" / "self_repair_by_head.csv"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="module")
def shards(folder: Path) -> dict[str, Path]:
    return make_shards(folder, SIZES)


def files_of(shards: dict[str, Path], folder: Path, n_shards: int) -> RunFiles:
    """A run of the same shard again and again."""
    out = folder / f"of_{n_shards}"
    made = jobs(shards, SIZES, n_shards, 20, out)
    if not (out / "heads.parquet").exists():
        made["find_thresholds"]()
        made["tabulate_heads"]()
        save_tiny_model(folder / "snapshot")
        with write_hdf5(out / "tokens.h5", kind="tokens", provenance={}) as file:
            file.dims(prompt=n_shards * SIZES.prompts, pos=SIZES.positions + 1)
            ids = np.random.default_rng(0).integers(2, 9, size=(n_shards * SIZES.prompts, SIZES.positions + 1))
            file.put("tokens", ("prompt", "pos"), ids.astype(np.int32), chunk={"prompt": 1})
        settings = read_table(out / "settings.parquet").attrs
        for name in ("heads", "layers", "model"):
            table = read_table(out / f"{name}.parquet")
            table.attrs = {**settings, **table.attrs, "n_prompts": n_shards * SIZES.prompts}
            write_table(table, out / f"{name}.parquet", table.attrs)
    return RunFiles(
        model="made",
        corpus="noise",
        kinds=["resample"],
        tables={"resample": {name: out / f"{name}.parquet" for name in ("heads", "layers", "model")}},
        shards={"resample": [shards["ablations"]] * n_shards},
        thresholds=out / "thresholds.h5",
        tokens=out / "tokens.h5",
        chosen_heads=shards["chosen_heads"],
        snapshot=folder / "snapshot",
    )


@pytest.fixture(scope="module")
def files(shards: dict[str, Path], folder: Path) -> RunFiles:
    return files_of(shards, folder, 3)


def joined(shards: dict[str, Path], name: str, n_shards: int) -> np.ndarray:
    with open_hdf5(shards["ablations"], "ablations") as dataset:
        if name == "scale_ratio":
            one = dataset["clean_scale"].values / dataset["ablated_scale"].values.astype(float)
        else:
            one = dataset[name].values.astype(float)
    return np.concatenate([one] * n_shards, axis=1)


def tops(files: RunFiles) -> np.ndarray:
    with open_hdf5(files.thresholds, "thresholds") as dataset:
        return dataset["top_tokens"].values.astype(bool).reshape(SIZES.layers * SIZES.heads, -1)


def test_every_token_has_its_own_values(files: RunFiles, shards: dict[str, Path]) -> None:
    run = of_run(files, share=1.0)
    kind = run["kinds"]["resample"]
    assert run["prompts"] == list(range(24))
    names = [name for name, _, _ in kind["stored"]]
    assert set(names) >= {"direct_effect", "ablated_direct_effect", "logit_change", "self_repair", "scale_ratio"}
    measured = {name: np.rint(joined(shards, name, 3) / run["step"]) for name in names}
    for row, text in enumerate(kind["values"]):
        found, [top] = reading.values(kind, text, 24 * SIZES.positions)
        for name in names:
            np.testing.assert_array_equal(found[name], measured[name][row].ravel(), err_msg=name)
        np.testing.assert_array_equal(top.astype(bool), tops(files)[row])


def test_tables_are_held_exactly(files: RunFiles) -> None:
    held = reading.tables(of_run(files, share=1.0)["kinds"]["resample"])
    for name, path in files.tables["resample"].items():
        table = read_table(path)
        assert held[name]["columns"] == list(table.columns)
        found = pd.DataFrame(held[name]["rows"], columns=held[name]["columns"])
        for column in table:
            numbers = pd.api.types.is_numeric_dtype(table[column])
            given = table[column].to_numpy(float) if numbers else table[column].to_numpy()
            np.testing.assert_array_equal(found[column].to_numpy(float) if numbers else found[column].to_numpy(), given)


def test_the_best_tokens_are_those_of_largest_direct_effect(files: RunFiles, shards: dict[str, Path]) -> None:
    kind = of_run(files, share=1.0)["kinds"]["resample"]
    effects, top = joined(shards, "direct_effect", 3), tops(files)
    n_best = len(kind["best"][0])
    found, _ = reading.values(kind, kind["best_values"], len(kind["best"]) * n_best)
    for row, best in enumerate(kind["best"]):
        flat = np.where(top[row], effects[row].ravel(), -np.inf)
        order = [at for at in np.argsort(-flat, kind="stable")[:n_best] if np.isfinite(flat[at])]
        places = [tuple(place) for place in best if place[0] >= 0]
        assert places == [divmod(int(at), SIZES.positions) for at in order]
        of_head = found["direct_effect"][row * n_best : (row + 1) * n_best]
        np.testing.assert_array_equal(of_head[: len(order)], np.rint(flat[order] / 0.001))
        assert np.isnan(of_head[len(order) :]).all()


def test_what_repairs_a_head_is_what_the_tables_say(files: RunFiles) -> None:
    """Against the function of the tables, which takes one head at a time."""
    run = read_table(files.tables["resample"]["heads"]).attrs
    found = strongest_repairers(files.shards["resample"], run)
    assert len(found.groupby(["layer", "head"])) == SIZES.layers * SIZES.heads
    one = found[(found["layer"] == 0) & (found["head"] == 2)].astype({"by_layer": "Int64", "by_head": "Int64"})
    every = repair_of_head((0, 2), files.shards["resample"], run)
    both = one.merge(every, on=["layer", "head", "by", "by_layer", "by_head"], suffixes=("", "_wanted"))
    assert len(both) >= 8  # made-up shards have repairs by layers that cannot change, which the tables leave out
    for end in ("", "_low", "_high"):
        np.testing.assert_allclose(both[f"repair{end}"], both[f"repair{end}_wanted"], rtol=1e-12)
    assert (one["repair"].abs().diff().dropna() <= 0).all()


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(payload, "BUDGET", 12_000)
    return None


def test_of_too_many_prompts_a_sample_is_held(files: RunFiles, shards: dict[str, Path], little_room: None) -> None:
    run, again = of_run(files, share=1.0), of_run(files, share=1.0)
    assert run == again  # the sample is the seed's
    kind = run["kinds"]["resample"]
    assert 1 <= len(run["prompts"]) < 24
    assert sum(map(len, kind["values"])) <= 12_000
    size = len(run["prompts"]) * SIZES.positions
    found, _ = reading.values(kind, kind["values"][5], size)
    measured = joined(shards, "self_repair", 3)[5][run["prompts"]].ravel()
    np.testing.assert_array_equal(found["self_repair"], np.rint(measured / 0.001))
    # The best tokens are those of all prompts, with the text around them.
    elsewhere = {f"{p}.{k}" for best in kind["best"] for p, k in best if p >= 0 and p not in run["prompts"]}
    assert elsewhere
    assert set(kind["around"]) == elsewhere


def test_two_runs_share_the_room(files: RunFiles, little_room: None) -> None:
    alone, half = of_run(files, share=1.0), of_run(files, share=0.5)
    assert set(half["prompts"]) < set(alone["prompts"])


def test_memory_does_not_grow_with_shards(
    shards: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "AT_MOST", 12 * SIZES.positions * 8)
    few, many = (files_of(shards, folder, n_shards) for n_shards in (4, 24))

    def peak(files: RunFiles) -> int:
        tracemalloc.start()
        try:
            of_run(files, share=1.0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(few)  # whatever is imported or kept for good
    small, large = peak(few), peak(many)
    grown = 20 * SIZES.prompts * (1 + 20)  # which prompts each resample draws takes a byte each
    assert large <= 1.15 * small + 2 * grown + 50_000, f"{small:,} bytes of 4 shards, {large:,} of 24"


def byte_level() -> Tokenizer:
    """A vocabulary of single bytes."""
    tokenizer = Tokenizer(models.BPE(vocab={symbol: at for at, symbol in enumerate(byte_symbols())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_a_part_of_a_character_is_shown_by_its_bytes() -> None:
    pieces = Pieces(byte_level())
    places = pieces.of("a“\n".encode() + "é".encode()[:1])
    assert [pieces.list[place] for place in places] == ["a", ["E2"], ["80"], "“", "\n", ["C3"]]


def test_the_page_holds_texts_that_would_be_markup_as_text(files: RunFiles, tmp_path: Path) -> None:
    nasty = '</script><img src=x onerror="window.harmed=1">'
    out = tmp_path / "explorer.html"
    write_explorer([replace(files, model=nasty, corpus="<!--")], published=PUBLISHED, out=out)
    page = out.read_text(encoding="utf-8")
    assert nasty not in page
    assert reading.content(page)["runs"][0]["model"] == nasty
    # One script with data and two with code, each closed once.
    assert len(re.findall(r"</script", page)) == 3


def test_the_page_names_no_place_on_any_network(files: RunFiles, tmp_path: Path) -> None:
    out = tmp_path / "explorer.html"
    write_explorer([files], published=PUBLISHED, out=out)
    page = out.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:link|script|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy.group(1)
    assert "connect-src" not in policy.group(1)  # so that default-src holds
    assert out.stat().st_size < 2_000_000
