"""What the commands take: options and arguments that several have, heads as they are written, and examples."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from selfrepair.workflow.config import RESULTS

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


def described(command: Callable[..., Any]) -> str:
    """A command's docstring as its help has it: paragraphs, wrapped by the terminal."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))


def _runs(incomplete: str) -> list[str]:
    """Folders of runs that begin with what is typed."""
    from selfrepair.run.opened import find_runs

    return [str(folder) for folder in find_runs(RESULTS) if str(folder).startswith(incomplete)]


def _heads(ctx: Any, incomplete: str) -> list[str]:
    """The chosen heads of the run that is named, or of the one that is there."""
    from selfrepair.run.opened import open_run

    try:
        chosen = open_run(ctx.params.get("run") or RESULTS).chosen_heads
    except ValueError:
        return []
    return [name for layer, head in chosen if (name := f"{layer}.{head}").startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON: all there is, with full precision.")]
Run = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run, results/MODEL/CORPUS; or one that holds a single run.",
        autocompletion=_runs,
    ),
]
OtherRun = Annotated[Path, typer.Argument(help="The run that it is compared with.", autocompletion=_runs)]
Head = Annotated[str, typer.Argument(help="A head: layer and head, as 26.8 or L26H8.", autocompletion=_heads)]
Kind = Annotated[
    str | None, typer.Option(help="Kind of ablation: resample, mean or zero; the run's main one where it is left out.")
]
Selection = Annotated[
    str, typer.Option(help="top: means over each head's top tokens (condensed); all: over all tokens (full).")
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
