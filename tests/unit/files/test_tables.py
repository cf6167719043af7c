"""Tables as files: how they are read."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from selfrepair.files.tables import read_settings, read_table, write_table


def test_arrow_is_given_no_python_object_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads may hold one when the process ends, and abort it; pandas is looked through, as it calls Arrow itself."""
    own, read = parquet.read_table, []

    def watched(source: Any, *args: Any, **options: Any) -> pa.Table:
        read.append((source, options.get("use_threads")))
        return own(source, *args, **options)

    monkeypatch.setattr(parquet, "read_table", watched)
    table = pd.DataFrame({"layer": [0, 1], "self_repair": [0.5, 0.25]})
    write_table(table, tmp_path / "heads.parquet", {"model": "tiny"})
    found = read_table(tmp_path / "heads.parquet")
    pd.testing.assert_frame_equal(found, table)
    assert found.attrs == read_settings(tmp_path / "heads.parquet") == {"model": "tiny"}
    assert len(read) == 2
    assert all(isinstance(source, pa.NativeFile) and not isinstance(source, pa.PythonFile) for source, _ in read)
    assert all(threads is False for _, threads in read)
