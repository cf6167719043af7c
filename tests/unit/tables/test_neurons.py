"""Tables of neurons from made-up shards, against plain counting."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from selfrepair.measure.neurons import DESCRIPTIONS, write_neurons, write_no_neurons
from selfrepair.tables.neurons import AMONG_TOP, QUADRANTS, SHARES_OF_EFFECT, tabulate_neurons

from written import write_settings

pytestmark = pytest.mark.filterwarnings("error")

TABLES = ("neuron_share", "neuron_concentration", "erasure_neurons", "erasure_quadrants", "neuron_consistency")
HEADS = [(1, 3), (0, 2)]
COUNTS = np.array([1, 3, 10, 30])
SETTINGS = {
    **{"ablation": "resample", "parallel_attention_mlp": False, "first_position": 0, "n_prompts": 8},
    **{"n_bootstrap": 60, "bootstrap_seed": 3, "n_tokens": 72},
}


def shard(rng: np.random.Generator, n: int, best: int) -> xr.Dataset:
    """Tokens of two heads in four prompts."""
    clean = rng.normal(-0.5, 1, (n, best))
    repair = -np.sort(-rng.exponential(0.3, (n, best)), axis=1)
    repair[: n // 5, 0] = 0
    neuron = np.argsort(rng.random((n, 30)) ** np.linspace(0.2, 2, 30), axis=1)[:, :best]
    per_token = {
        "head": rng.integers(2, size=n),
        "prompt": rng.integers(4, size=n),
        "pos": rng.permutation(n),
        "head_direct_effect": rng.normal(2, 1, n),
        "mlp_direct_effect": rng.normal(size=n),
        "mlp_ablated_direct_effect": rng.normal(size=n),
        "total_absolute_change": rng.exponential(size=n),
    }
    shares = {
        name: np.sort(rng.random((n, len(COUNTS))), axis=1) for name in DESCRIPTIONS if name.startswith("share_of")
    }
    shares["share_of_change"][2] = np.nan
    return xr.Dataset(
        {
            **{name: ("token", values) for name, values in per_token.items()},
            **{name: (("token", "point"), values) for name, values in shares.items()},
            "neuron": (("token", "best"), neuron),
            "direct_effect": (("token", "best"), clean),
            "ablated_direct_effect": (("token", "best"), clean + repair),
        },
        coords={"neurons": ("point", COUNTS)},
    )


def noted(folder: Path, note: str) -> dict[str, pd.DataFrame]:
    """Tables of two shards without neurons."""
    files = [folder / f"{number}.h5" for number in range(2)]
    for file in files:
        attrs = {"ablation": "resample", "neuron_layer": 2, "n_neurons": 0, "n_prompts": 4, "note": note}
        write_no_neurons(file, HEADS, attrs=attrs, provenance={})
    return tabulated(folder, files)


def condensed(folder: Path, shards: list[xr.Dataset], n_neurons: int = 30) -> dict[str, pd.DataFrame]:
    files = []
    for number, dataset in enumerate(shards):
        files.append(folder / f"{number}.h5")
        attrs = {"ablation": "resample", "neuron_layer": 2, "n_neurons": n_neurons, "n_prompts": 4}
        write_neurons(files[-1], [dataset], HEADS, attrs=attrs, provenance={})
    return tabulated(folder, files)


def tabulated(folder: Path, files: list[Path]) -> dict[str, pd.DataFrame]:
    heads = write_settings(folder / "heads.parquet", **SETTINGS)
    tables = {name: folder / f"{name}.parquet" for name in TABLES}
    tabulate_neurons(shards=files, heads_table=heads, tables=tables)
    return {name: pd.read_parquet(path) for name, path in tables.items()}


@pytest.fixture
def shards(rng: np.random.Generator) -> list[xr.Dataset]:
    """The second shard holds no token at all of either head, the third some again."""
    return [shard(rng, 40, 12), shard(rng, 40, 12).isel(token=slice(0, 0))]


@pytest.fixture
def tables(tmp_path: Path, shards: list[xr.Dataset]) -> dict[str, pd.DataFrame]:
    return condensed(tmp_path, shards)


@pytest.fixture(params=[0, 1])
def head(request: pytest.FixtureRequest, shards: list[xr.Dataset]) -> tuple[int, xr.Dataset]:
    """A head's place, and its tokens."""
    return request.param, shards[0].isel(token=shards[0]["head"].values == request.param)


def rows_of(table: pd.DataFrame, row: int) -> pd.DataFrame:
    rows = table[table["rank"] == row + 1]
    assert set(zip(rows["layer"], rows["head"], strict=True)) == {HEADS[row]}
    return rows


def test_settings_and_counts(tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]) -> None:
    row, tokens = head
    for name, table in tables.items():
        assert table.attrs == {**SETTINGS, "neuron_layer": 2, "n_neurons": 30, "top_percent": 1}
        if name != "erasure_neurons":
            rows = rows_of(table, row)
            assert (rows["n_tokens"] == tokens.sizes["token"]).all()
            assert (rows["n_prompts"] == len(set(tokens["prompt"].values))).all()


def test_nth_best_neuron(tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]) -> None:
    row, tokens = head
    rows = rows_of(tables["neuron_share"], row)
    assert len(rows) == len(SHARES_OF_EFFECT) * 12
    for _, got in rows.iterrows():
        nth = int(got["nth"]) - 1
        repair = (tokens["ablated_direct_effect"] - tokens["direct_effect"]).values[:, nth]
        above = repair > got["share_of_effect"] * np.abs(tokens["head_direct_effect"].values)
        assert got["token_share"] == pytest.approx(above.mean())
        assert got["token_share_low"] <= got["token_share"] <= got["token_share_high"]
    assert rows["token_share"].between(0.1, 0.9).sum() > 10


def test_curves_leave_out_tokens_without_a_change(
    tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]
) -> None:
    row, tokens = head
    rows = rows_of(tables["neuron_concentration"], row)
    assert rows["neurons"].tolist() == COUNTS.tolist()
    np.testing.assert_allclose(rows["neuron_fraction"], COUNTS / 30)
    for name in ("share_of_change", "share_of_repair", "share_of_direct_effect"):
        values = tokens[name].values
        np.testing.assert_allclose(rows[name], values[~np.isnan(values[:, 0])].mean(0))
    change = (tokens["mlp_ablated_direct_effect"] - tokens["mlp_direct_effect"]).values
    np.testing.assert_allclose(rows["mlp_repair"], change.mean())
    np.testing.assert_allclose(rows["total_absolute_change"], tokens["total_absolute_change"].values.mean())


def test_intervals_are_over_prompts(tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]) -> None:
    row, tokens = head
    draws = np.random.default_rng(3).integers(8, size=(60, 8))
    by_prompt = [tokens["total_absolute_change"].values[tokens["prompt"].values == prompt] for prompt in range(8)]
    resampled = [np.concatenate([by_prompt[prompt] for prompt in drawn]) for drawn in draws]
    wanted = np.quantile([values.mean() for values in resampled if len(values)], [0.025, 0.975])
    got = rows_of(tables["neuron_concentration"], row).iloc[0]
    np.testing.assert_allclose(got[["total_absolute_change_low", "total_absolute_change_high"]].tolist(), wanted)


def test_every_token_is_in_one_quadrant(tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]) -> None:
    row, tokens = head
    shares = rows_of(tables["erasure_quadrants"], row).set_index("quadrant")["token_share"]
    assert list(shares.index) == list(QUADRANTS)
    assert shares.sum() == pytest.approx(1)
    clean, ablated = (tokens[name].values[:, 0] for name in ("direct_effect", "ablated_direct_effect"))
    wanted = {"anti_erasure": 0, "negative_to_positive": 0, "more_positive": 0, "no_repair": 0}
    for before, after in zip(clean, ablated, strict=True):
        if after == before:
            wanted["no_repair"] += 1
        elif before >= 0:
            wanted["more_positive"] += 1
        else:
            wanted["anti_erasure" if after <= 0 else "negative_to_positive"] += 1
    assert min(wanted.values()) > 0
    assert shares.to_dict() == pytest.approx({name: count / len(clean) for name, count in wanted.items()})
    each = rows_of(tables["erasure_neurons"], row)
    assert each["quadrant"].value_counts().to_dict() == wanted
    assert set(each["neuron"]) == set(tokens["neuron"].values[:, 0])


def test_how_often_a_neuron_is_among_the_first(tables: dict[str, pd.DataFrame], head: tuple[int, xr.Dataset]) -> None:
    row, tokens = head
    rows = rows_of(tables["neuron_consistency"], row)
    assert sorted(set(rows["top"])) == list(AMONG_TOP)
    assert rows["neuron"].dtype == np.int32
    for top, part in rows.groupby("top"):
        repairs = (tokens["ablated_direct_effect"] > tokens["direct_effect"]).values
        pairs = zip(tokens["neuron"].values, repairs, strict=True)
        first = [set(best[:top][of[:top]].tolist()) for best, of in pairs]
        assert any(len(best) < top for best in first)  # what does not repair is no leader
        seen = set().union(*first)
        assert (part["n_neurons"] == len(seen)).all()
        assert set(part["neuron"]) == seen
        for neuron, share in zip(part["neuron"], part["token_share"], strict=True):
            assert share == pytest.approx(np.mean([neuron in best for best in first]))
        assert part.sort_values("neuron_rank")["token_share"].is_monotonic_decreasing


def test_prompts_are_counted_over_all_shards(tmp_path: Path, rng: np.random.Generator) -> None:
    parts = [shard(rng, 10, 12), shard(rng, 10, 12)]
    leaders = condensed(tmp_path, parts)["erasure_neurons"]
    assert sorted(leaders["prompt"]) == sorted([*parts[0]["prompt"].values, *(parts[1]["prompt"].values + 4)])


def test_shards_without_neurons_give_their_reason(tmp_path: Path) -> None:
    for table in noted(tmp_path, "because").values():
        assert table.to_dict("list") == {"rank": [1, 2], "layer": [1, 0], "head": [3, 2], "note": ["because"] * 2}
        assert table.attrs["neuron_layer"] == 2
        assert table.attrs["n_tokens"] == SETTINGS["n_tokens"]
