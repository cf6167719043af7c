"""What repairs, in words: the parts of a mean self-repair, one after the other."""

import pandas as pd

from selfrepair.figures.wording import measured
from selfrepair.quantities import OWN_POSTNORM, PARTS, POSTNORMS

SOURCES = dict(zip(PARTS, ("other heads", "MLPs", "post-norms", "LayerNorm"), strict=True))
"""What findings call the source of each part."""


def told(row: pd.Series, parts: tuple[str, ...]) -> str:
    """Each part of a row with its interval, and where it is from; parts that its model does not have are left out.

    Of post-norms, the part of the ablated head's own attention is told too where the row has it.
    """
    lines = []
    for part in parts:
        if pd.notna(row[part]):
            own = part == POSTNORMS and OWN_POSTNORM in row
            also = f" ({measured(row, OWN_POSTNORM)} from its own attention's)" if own else ""
            lines.append(f"{measured(row, part)} from {SOURCES[part]}{also}")
    return ", ".join(lines)
