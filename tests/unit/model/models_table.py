"""The table of docs/models.md, written from what `test_families` measured: `make models`."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from selfrepair.families import FAMILIES, REFUSED

START, END = "<!-- measured: {} -->\n", "<!-- end -->\n"


@dataclass
class Line:
    """An architecture's line.

    Attributes:
        off: By dtype, the largest difference from the reference, relative to the largest value of its quantity or to one logit.
        but: Analyses that some of its models are refused for.
        tried: Options of the configurations that were measured or refused.
    """

    off: dict[str, float] = field(default_factory=dict)
    but: set[str] = field(default_factory=set)
    tried: list[str] = field(default_factory=list)

    def text(self, family: str) -> str:
        """The line."""
        float64, float32 = (f"{self.off[dtype]:.0e}" if dtype in self.off else "" for dtype in ("float64", "float32"))
        analyses = f"all but {' and '.join(sorted(self.but))}" if self.but else "all"
        return f"| `{family}` | {float64} | {float32} | {analyses} | {'; '.join(self.tried)} |"


def write(path: Path, lines: Mapping[str, Line]) -> None:
    """Put lines in the place of those that the page has, and the reasons of what is refused in theirs."""
    text = path.read_text(encoding="utf-8")
    kept = {found[1]: found[0] for found in re.finditer(r"^\| `(\S+)` \|.*$", _between(text, "covered"), re.MULTILINE)}
    kept |= {family: line.text(family) for family, line in lines.items()}
    text = _replaced(text, "covered", [kept[family] for family in sorted(kept) if family in FAMILIES])
    text = _replaced(text, "refused", [f"| `{family}` | {REFUSED[family]} |" for family in sorted(REFUSED)])
    path.write_text(text, encoding="utf-8")


def architectures(path: Path, part: str) -> list[str]:
    """The architectures that a part of the page ("covered" or "refused") has lines of."""
    return re.findall(r"^\| `(\S+)` \|", _between(path.read_text(encoding="utf-8"), part), re.MULTILINE)


def _between(text: str, part: str) -> str:
    return text.split(START.format(part), 1)[1].split(END, 1)[0]


def _replaced(text: str, part: str, lines: Iterable[str]) -> str:
    before, rest = text.split(START.format(part), 1)
    old, after = rest.split(END, 1)
    head = old.splitlines()[:2]  # the names of the columns
    return before + START.format(part) + "\n".join([*head, *lines]) + "\n" + END + after
