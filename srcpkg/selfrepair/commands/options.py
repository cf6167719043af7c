"""What the commands take: options and arguments that several have, heads as they are written, and examples."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

_HEAD = re.compile(r"(?:L|)(\d{1,4})(?:\.|H)(\d{1,4})", re.IGNORECASE)
_EXAMPLES: dict[Callable[..., Any], tuple[str, ...]] = {}

Command = TypeVar("Command", bound=Callable[..., Any])


def examples(*lines: str) -> Callable[[Command], Command]:
    """Give a command its examples: lines as they are typed, which its help ends in and a test runs."""

    def keep(command: Command) -> Command:
        _EXAMPLES[command] = lines
        return command

    return keep


def examples_of(command: Callable[..., Any]) -> str:
    """The end of a command's help."""
    return "\n".join(["Examples:", *_EXAMPLES[command]])


def parse_head(text: str) -> tuple[int, int]:
    """A head as it is written, 26.8 or L26H8, as (layer, head).

    Raises:
        ValueError: It is written otherwise.
    """
    found = _HEAD.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no head: wanted layer and head, counted from 0, as 26.8 or L26H8")
    return int(found[1]), int(found[2])


Json = Annotated[bool, typer.Option("--json", help="Print JSON: all there is, with full precision.")]
Run = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run, results/MODEL/CORPUS; or one below which there is a single run.",
        show_default=True,
    ),
]
OtherRun = Annotated[Path, typer.Argument(help="The run that it is compared with.")]
Head = Annotated[str, typer.Argument(help="A head: layer and head, as 26.8 or L26H8.")]
Kind = Annotated[
    str | None, typer.Option(help="Kind of ablation: resample, mean or zero; the run's main one where it is left out.")
]
Overlays = Annotated[
    list[Path] | None, typer.Option(help="Overlay of the default config, as for snakemake; may be given again.")
]
Workflow = Annotated[
    Path | None, typer.Option(help="Folder of the Snakefile; that of this package where it is left out.")
]
Targets = Annotated[
    list[str] | None, typer.Argument(help="Figures, rules or files; all of the run where they are left out.")
]

HOME = Path(__file__).resolve().parents[3]
"""The folder of the Snakefile, where the package lies in its repository."""
