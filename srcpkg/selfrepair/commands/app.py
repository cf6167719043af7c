"""All commands together, and how each of them ends: errors of a user in a line, errors of the program with their traceback.

Modules of commands import nothing heavy at their top, so that help and completion are there at once.
"""

import errno
import io
import os
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import selfrepair
from selfrepair.commands import ablate, compare, doctor, heads, plan, show, why
from selfrepair.commands.options import described, examples_of
from selfrepair.commands.output import printable
from selfrepair.workflow.machine import out_of_memory

PANELS = {
    "Look at a run": (heads.heads, show.show, compare.compare),
    "Without a run": (ablate.ablate, doctor.doctor),
    "Before and after a run": (plan.plan, why.why, why.verify, why.take_notes),
}
"""All commands, under the headings of the help."""
MORE_MEMORY = "close other programs, or use a machine with more memory"
ADVICE = {"ablate": f"take a shorter text or a smaller model, {MORE_MEMORY}"}
"""By command, what to do where memory is short."""


class Commands(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what the package itself refuses is said in a line, with exit status 2, and so is a lack of memory."""
        try:
            return super().invoke(ctx)
        except (MemoryError, OSError, RuntimeError, ValueError) as error:
            reason = out_of_memory(error, ADVICE.get(str(ctx.invoked_subcommand), MORE_MEMORY)) or _reason(error)
            if not reason:
                raise
        typer.echo(f"Error: {printable(reason)}", err=True)
        raise typer.Exit(2)


def _reason(error: Exception) -> str:
    """What is told of an error in a line; empty of one that keeps its traceback."""
    if isinstance(error, ValueError):
        return str(error) if _refused(error.__traceback__) else ""
    if isinstance(error, OSError) and error.errno != errno.EPIPE and error.filename is not None:
        return f"{error.filename}: {os.strerror(error.errno or 0)}"
    return ""


def _refused(trace: TracebackType | None) -> bool:
    """Whether an error was raised in this package. One of a library is no user's mistake, and keeps its traceback."""
    *_, last = _frames(trace)
    return last.partition(".")[0] == selfrepair.__name__


def _frames(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__"))
        trace = trace.tb_next


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"selfrepair {selfrepair.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Self-repair in language models. Runs are made by `snakemake`; this looks at them, and at models without one."""
    for stream in (sys.stdout, sys.stderr):
        # What a terminal's encoding lacks is written as an escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


for _panel, _commands in PANELS.items():
    for _command in _commands:
        _name = _command.__name__.replace("_", "-")
        app.command(_name, help=described(_command), epilog=examples_of(_command), rich_help_panel=_panel)(_command)
