"""The kinds of ablation that a figure is given tables of."""

from collections.abc import Mapping
from typing import Any

from selfrepair.quantities import ABLATION_KINDS


def given_kinds(tables: Mapping[str, Any], name: str) -> list[str]:
    """The kinds that have a table called `{name}_{kind}`, in the order in which they are shown.

    Args:
        tables: The figure's tables.
        name: What such a table's name begins with.

    Raises:
        ValueError: There is none.
    """
    kinds = [kind for kind in ABLATION_KINDS if f"{name}_{kind}" in tables]
    if not kinds:
        wanted = ", ".join(f"{name}_{kind}" for kind in ABLATION_KINDS)
        raise ValueError(f"no table of an ablation (got {sorted(tables)}): give at least one of {wanted}")
    return kinds
