"""Quantities as commands name and head them."""

from collections.abc import Container, Iterable

from selfrepair.quantities import PARTS, held
from selfrepair.workflow.schema import nearest

HEADINGS = {
    "direct_effect": "direct\neffect",
    "ablated_direct_effect": "ablated\neffect",
    "logit_change": "logit\nchange",
    "self_repair": "self-\nrepair",
    "self_repair_from_heads": "by\nheads",
    "self_repair_from_mlps": "by\nMLPs",
    "self_repair_from_postnorms": "by post-\nnorms",
    "self_repair_from_layernorm": "by final\nnorm",
    "pooled_repair_fraction": "pooled\nfraction",
}
"""Over the columns of tables: short, in two lines."""
NOISE = "bfloat16\nnoise"
"""Over what a mean may be off by where matrices are bfloat16 (docs/files.md)."""
NOISE_TOLD = "A mean nearer to zero than the noise of bfloat16 is not told from zero, whatever its interval."


def heading(name: str) -> str:
    """What stands over a quantity's column."""
    return HEADINGS.get(name, name.replace("_", "\n", 1))


def parts_of(table: Container[str]) -> tuple[str, ...]:
    """The parts of self-repair that a table holds."""
    return held(PARTS, table)


def check_quantity(name: str, known: Iterable[str], option: str = "--by") -> str:
    """A quantity that is there.

    Raises:
        ValueError: There is no such quantity: those that there are.
    """
    names = list(known)
    if name not in names:
        raise ValueError(f"{option} {name} is none of {', '.join(names)}{nearest(name, names)}")
    return name
