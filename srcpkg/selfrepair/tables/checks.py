"""How far measurements are from plain runs of the whole model (`selfrepair.engine.proof`): what shards record, in one table."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from selfrepair.files.hdf5 import open_shards
from selfrepair.files.tables import read_settings, write_table

PROVED = ("ablations", "numbers", "largest_difference")
"""What a file's attributes say of its proof, after ``proof_``."""


def tabulate_checks(*, heads_table: Path, shards: Mapping[str, Sequence[Path]], out: Path) -> None:
    """Gather what jobs have repeated by plain runs, a row a measurement and kind of ablation.

    Args:
        heads_table: Table "heads" of the main kind, for its settings.
        shards: Files of every measurement that repeats some of its ablations, by their kind.
        out: Parquet file, a CSV beside it: measurement, ablation, shards; repeated ablations (an ablation on a prompt), numbers
            that were compared, and their largest_difference in logits.
    """
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for kind, paths in shards.items():
        for _, of_one in itertools.groupby(paths, key=lambda path: path.parent):
            for dataset, _ in open_shards(list(of_one), kind):
                found = {name: dataset.attrs[f"proof_{name}"] for name in PROVED}
                rows.setdefault((kind, str(dataset.attrs.get("ablation", ""))), []).append(found)
    table = [
        {
            "measurement": measurement,
            "ablation": ablation,
            "shards": len(files),
            "repeated": sum(int(found["ablations"]) for found in files),
            "numbers": sum(int(found["numbers"]) for found in files),
            "largest_difference": max(float(found["largest_difference"]) for found in files),
        }
        for (measurement, ablation), files in rows.items()
    ]
    write_table(pd.DataFrame(table), out, read_settings(heads_table))
