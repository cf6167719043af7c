"""What repairs, in words: the parts of a mean self-repair, one after the other."""

import pandas as pd

from selfrepair.figures.wording import measured
from selfrepair.quantities import PARTS

SOURCES = dict(zip(PARTS, ("other heads", "MLPs", "post-norms", "LayerNorm"), strict=True))
"""What findings call the source of each part."""


def told(row: pd.Series, parts: tuple[str, ...]) -> str:
    """Each part of a row with its interval, and where it is from; parts that its model does not have are left out."""
    return ", ".join(f"{measured(row, part)} from {SOURCES[part]}" for part in parts if pd.notna(row[part]))
