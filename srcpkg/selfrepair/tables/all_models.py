"""Tables of all models of a run on one text, each joined into one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfrepair.files.tables import read_table, write_table
from selfrepair.tables.columns import THIS_RUN

OF_A_MODEL = ("model", "weights", "n_layers", "n_heads", "parallel_attention_mlp", "published", "logit_cap")
"""Settings that each model has of its own: lists in the joined table's attributes, in the order of the models."""


def join_models(*, tables: Sequence[Path], out: Path) -> None:
    """Put one table of several models below one another, with a column that names the model.

    A table that sets the run's model beside published ones has that column. There, this run's rows take the model's name, a
    column `published` tells them from those of the published models, and these stand in it once.

    Args:
        tables: The models' tables, each with its settings.
        out: Parquet file, a CSV beside it.

    Raises:
        ValueError: Two tables were made with other settings than what models have of their own, or are of one model.
    """
    read = [read_table(path) for path in tables]
    attrs = _joined_settings([table.attrs for table in read], tables)
    frames = [_own_rows(table, str(table.attrs["model"])) for table in read]
    if "model" in read[0].columns:
        theirs = read[0][read[0]["model"] != THIS_RUN]
        frames = [*(frame.assign(published=False) for frame in frames), theirs.assign(published=True)]
    write_table(pd.concat(frames, ignore_index=True), out, attrs)


def _own_rows(table: pd.DataFrame, model: str) -> pd.DataFrame:
    if "model" in table.columns:
        return table[table["model"] == THIS_RUN].assign(model=model)
    named = table.copy()
    named.insert(0, "model", model)
    return named


def _joined_settings(settings: Sequence[Mapping[Any, Any]], tables: Sequence[Path]) -> dict[Any, Any]:
    first = settings[0]
    for own, path in zip(settings, tables, strict=True):
        shared = [key for key in first.keys() | own.keys() if key not in OF_A_MODEL]
        if differing := sorted(str(key) for key in shared if own.get(key) != first.get(key)):
            told = "; ".join(f"{key} {first.get(key)!r} and {own.get(key)!r}" for key in differing)
            raise ValueError(
                f"{tables[0]} and {path} were made with other settings ({told}): make both with one config"
            )
    names = [own["model"] for own in settings]
    if len(set(names)) < len(names):
        raise ValueError(f"tables of {', '.join(map(str, names))}: a model stands there twice; name each once")
    return {
        **{key: value for key, value in first.items() if key not in OF_A_MODEL},
        **{key: [own.get(key) for own in settings] for key in OF_A_MODEL if any(key in own for own in settings)},
    }
