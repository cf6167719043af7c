"""What a figure is drawn from: its tables, checked for what it shows, and the run's settings."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from selfrepair.quantities import OF_SOME_MODELS, held

Tables = Mapping[str, pd.DataFrame]
"""A figure's tables, by what the figure calls each."""

SETTINGS = (
    "model",
    "weights",
    "corpus",
    "ablation",
    "n_prompts",
    "prompt_length",
    "n_tokens",
    "top_fraction",
    "first_position",
    "donors",
    "n_bootstrap",
    "confidence",
    "n_layers",
    "n_heads",
    "parallel_attention_mlp",
)
"""The keys of a table's attributes that footers, axes and captions use."""
OF_PARTS = ("prompts_of_run",)
"""Keys that tables of a part of a run have beside these."""


def table(
    tables: Mapping[str, pd.DataFrame],
    key: str,
    columns: Iterable[str],
    *,
    selection: str | None = None,
    may_lack: Collection[str] = (),
    may_be_empty: bool = False,
) -> pd.DataFrame:
    """One table of a figure, checked, with the rows of one selection.

    Args:
        tables: The figure's tables.
        key: The table wanted.
        columns: Columns that the figure draws.
        selection: Keep the rows of this selection ("top" or "all"); None keeps all rows.
        may_lack: Columns that may hold no number at all, as the figure says in words why they do.
        may_be_empty: The table may have no rows, likewise.

    Returns:
        The rows, their attributes kept.

    Raises:
        ValueError: The table, a column or the selection is missing, or a column holds no number at all.
    """
    if key not in tables:
        raise ValueError(f"table {key!r} is missing (got {sorted(tables)}): add it to the figure's inputs")
    found = tables[key]
    wanted = [*columns, *(["selection"] if selection is not None else [])]
    missing = [column for column in wanted if column not in found.columns]
    if missing:
        raise ValueError(f"table {key!r} lacks {', '.join(missing)}: remake it with this version of selfrepair")
    if selection is not None:
        rows = found[found["selection"] == selection]
        if rows.empty:
            raise ValueError(f"table {key!r} has no rows of selection {selection!r}: remake it with both selections")
        found, rows.attrs = rows, dict(found.attrs)
    if may_be_empty and found.empty:
        return found
    empty = [column for column in wanted if column not in may_lack and found[column].isna().all()]
    if empty:
        raise ValueError(
            f"table {key!r} has no value in {', '.join(empty)}: "
            "no token was selected or every value is NaN; check the upstream tables, or use more prompts"
        )
    return found


def with_interval(*names: str) -> list[str]:
    """Column names of quantities and of the ends of their intervals."""
    return [name + end for name in names for end in ("", "_low", "_high")]


def settings(tables: Mapping[str, pd.DataFrame], *keys: str, differing: Sequence[str] = ()) -> dict[str, Any]:
    """The run's settings, which travel in the tables' attributes.

    Args:
        tables: The figure's tables.
        keys: The tables of the run; one line under the figure speaks for all of them.
        differing: Settings in which they may differ; the first table's value is returned.

    Raises:
        ValueError: A setting is missing, or the tables do not agree in one.
    """
    first = tables[keys[0]].attrs
    for key in keys:
        attrs = tables[key].attrs
        missing = [name for name in SETTINGS if name not in attrs]
        if missing:
            raise ValueError(
                f"table {key!r} has no {', '.join(missing)} in its attributes: "
                "write it with DataFrame.to_parquet, which keeps DataFrame.attrs"
            )
        other = [name for name in SETTINGS if name not in differing and attrs[name] != first[name]]
        if other:
            told = "; ".join(f"{name} {first[name]!r} and {attrs[name]!r}" for name in other)
            raise ValueError(f"tables {keys[0]!r} and {key!r} are of different runs ({told}): make both from one run")
    return {name: first[name] for name in (*SETTINGS, *held((*OF_SOME_MODELS, *OF_PARTS), first))}
