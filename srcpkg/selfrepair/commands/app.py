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

PANELS = {
    "Look at a run": (heads.heads, show.show, compare.compare),
    "Without a run": (ablate.ablate, doctor.doctor),
    "Before and after a run": (plan.plan, why.why, why.verify, why.take_notes),
}
"""All commands, under the headings of the help."""


class Commands(TyperGroup):
    """The group of all commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what the package itself refuses is said in a line, with exit status 2."""
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if not _refused(error.__traceback__):
                raise
            reason = str(error)
        except OSError as error:
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            reason = f"{error.filename}: {os.strerror(error.errno or 0)}"
        typer.echo(f"Error: {printable(reason)}", err=True)
        raise typer.Exit(2)


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
