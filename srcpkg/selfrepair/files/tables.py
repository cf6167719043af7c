"""Tables as files: Parquet with the run's settings in its attrs, sealed, and a CSV beside it to look at."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow import BufferReader, Table, parquet

from selfrepair.files.sealed import (
    BLANK,
    SEAL,
    advice_for,
    read_listed,
    read_sealed,
    write_sealed,
    write_whole,
    writing,
)

LINES = 1000
"""Lines of a CSV that are put together at once: each of their cells is a Python object."""


def write_table(table: pd.DataFrame, path: Path, attrs: Mapping[Any, Any]) -> None:
    """Write a table as Parquet, its settings in attrs, and as CSV beside it; each appears whole or not at all."""
    csv = path.with_suffix(".csv")
    with write_whole(csv) as temporary, writing(csv):
        table.to_csv(temporary, index=False, chunksize=LINES)
    labelled = table.copy(deep=False)
    labelled.attrs = dict(attrs)
    columns = Table.from_pandas(labelled, preserve_index=False)
    # What pandas writes, and reads attrs from, without a second copy of the table.
    columns = columns.replace_schema_metadata({**columns.schema.metadata, "PANDAS_ATTRS": json.dumps(labelled.attrs)})
    sealed = io.BytesIO()
    with parquet.ParquetWriter(sealed, columns.schema) as writer:
        writer.write_table(columns)
        # Beside the schema, so that the table's attrs are the run's settings alone.
        writer.add_key_value_metadata({"selfrepair": json.dumps({SEAL: BLANK})})
    write_sealed(path, sealed.getvalue())


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table that `write_table` wrote, its settings in attrs; or a CSV of the release, which has none.

    Args:
        path: Parquet file, or a CSV file whose digest stands beside it (`selfrepair.files.sealed.read_listed`).
        columns: Columns to read; None means all.

    Raises:
        ValueError: A file of another kind, one that is missing or damaged, or one that this package did not write.
    """
    wanted = None if columns is None else list(columns)
    if path.suffix == ".csv":
        return pd.read_csv(io.BytesIO(read_listed(path)), usecols=wanted)
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: tables are read from .parquet or .csv files")
    try:
        return pd.read_parquet(_native(read_sealed(path)), columns=wanted, use_threads=False)
    except OSError as error:  # pyarrow's, of bytes that are what was written
        raise ValueError(f"{path} is no table ({error}): {advice_for(path)}") from error


def read_settings(path: Path) -> dict[Any, Any]:
    """The settings that a table carries in its attrs; errors are those of `read_table`."""
    return dict(read_table(path, columns=[]).attrs)


def _native(content: bytes) -> BufferReader:
    """Bytes as a file of Arrow's own.

    What Arrow reads from a Python object, its threads may still hold when the process ends, and abort it, though all is done
    (apache/arrow issues 34314 and 50482).
    """
    return BufferReader(content)
