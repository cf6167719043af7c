"""Tables of several models, joined into one."""

from pathlib import Path

import pandas as pd
import pytest

from selfrepair.files.tables import read_table, write_table
from selfrepair.tables.all_models import join_models
from unit.figures.shared import make_heads, settings

pytestmark = pytest.mark.filterwarnings("error")


def written(folder: Path, name: str, table: pd.DataFrame, **changes: object) -> Path:
    write_table(table, folder / f"{name}.parquet", {**table.attrs, "model": name, **changes})
    return folder / f"{name}.parquet"


def test_rows_of_all_models_stand_below_one_another_and_carry_the_settings_of_each(tmp_path: Path) -> None:
    first = make_heads(4, 3)
    second = make_heads(2, 5, weights="float16 safetensors", parallel_attention_mlp=True)
    join_models(
        tables=[written(tmp_path, "first", first), written(tmp_path, "second", second)], out=tmp_path / "all.parquet"
    )
    joined = read_table(tmp_path / "all.parquet")
    assert list(joined["model"]) == ["first"] * 24 + ["second"] * 20
    for name, table in (("first", first), ("second", second)):
        own = joined[joined["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, table)
    assert joined.attrs["model"] == ["first", "second"]
    assert joined.attrs["weights"] == ["random float32", "float16 safetensors"]
    assert (joined.attrs["n_layers"], joined.attrs["n_heads"]) == ([4, 2], [3, 5])
    assert joined.attrs["parallel_attention_mlp"] == [False, True]
    assert {key: joined.attrs[key] for key in ("corpus", "n_tokens")} == {"corpus": "wikipedia", "n_tokens": 1280}
    assert pd.read_csv(tmp_path / "all.csv").shape == joined.shape


def test_what_one_model_has_and_another_lacks_is_no_difference(tmp_path: Path) -> None:
    capped, plain = make_heads(4, 3), make_heads(4, 3)
    plain = plain.drop(columns=[column for column in plain if "postnorm" in column or column.startswith("capped")])
    plain.attrs = {key: value for key, value in capped.attrs.items() if key != "logit_cap"}
    files = [written(tmp_path, "plain", plain), written(tmp_path, "capped", capped)]
    join_models(tables=files, out=tmp_path / "all.parquet")
    joined = read_table(tmp_path / "all.parquet")
    assert joined.attrs["logit_cap"] == [None, 30.0]
    assert joined.groupby("model")["capped_logit_change"].count().to_dict() == {"capped": 24, "plain": 0}


def test_published_rows_stand_once_and_this_runs_take_the_models_name(tmp_path: Path) -> None:
    rows = [
        {"model": model, "depth": depth, "quantity": quantity, "median": 1.0}
        for model in ("this run", "gpt2-small")
        for depth in ("first", "last")
        for quantity in ("self_repair", "direct_effect")
    ]
    table = pd.DataFrame(rows)
    table.attrs = settings()
    files = [
        written(tmp_path, name, table, published=published)
        for name, published in (("gpt2-small", "gpt2-small"), ("other", None))
    ]
    join_models(tables=files, out=tmp_path / "all.parquet")
    joined = read_table(tmp_path / "all.parquet")
    counts = joined.value_counts(["model", "published"]).to_dict()
    assert counts == {("gpt2-small", False): 4, ("other", False): 4, ("gpt2-small", True): 4}
    assert joined.attrs["published"] == ["gpt2-small", None]


def test_tables_of_other_settings_or_of_one_model_are_refused(tmp_path: Path) -> None:
    heads = make_heads()
    files = [written(tmp_path, "first", heads), written(tmp_path, "second", heads, n_tokens=99)]
    with pytest.raises(
        ValueError, match=r"other settings \(n_tokens 99 and 1280|other settings \(n_tokens 1280 and 99"
    ):
        join_models(tables=files, out=tmp_path / "all.parquet")
    with pytest.raises(ValueError, match="first, first: a model stands there twice"):
        join_models(tables=[files[0], files[0]], out=tmp_path / "all.parquet")
