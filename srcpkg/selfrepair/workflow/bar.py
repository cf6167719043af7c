"""A bar for the whole run, on a terminal: stages, shards, time left. Elsewhere Snakemake's own lines stay as they are."""

import atexit
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from snakemake_interface_logger_plugins.common import LogEvent

Seconds = int | float

_COUNT = re.compile(r": (\d+) of (\d+) \w+, [^,]*, \S+ s left$")
"""A line of a job's log (`selfrepair.workflow.progress`)."""
_TAIL = 2000
"""Bytes of a log in which its last such line is looked for."""
_SECONDS_BETWEEN_LOOKS = 5.0
_ENOUGH = 0.01
"""Share of the run that must be done before its rate says anything."""
_ERRORS = (LogEvent.ERROR, LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR)


@dataclass
class Step:
    """A job of the run.

    Attributes:
        stage: What it is one of.
        weigh: Seconds that it takes, roughly; None where nothing says yet how large the model is.
        log: Its log, which says how far it is.
        unit: What a stage counts.
    """

    stage: str
    weigh: Callable[[], Seconds | None]
    log: Path | None = None
    unit: str = "job"
    _looked: float = field(default=-_SECONDS_BETWEEN_LOOKS, init=False)
    _share: float = field(default=0.0, init=False)

    def share(self, now: Seconds) -> float:
        """How much of it is done, while it runs."""
        if self.log is not None and now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            self._share = _done(self.log)
        return self._share


def _done(log: Path) -> float:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return 0.0
    found = next((found for line in reversed(lines) if (found := _COUNT.search(line))), None)
    return int(found[1]) / int(found[2]) if found else 0.0


class RunBar(logging.Handler):
    """Draws what Snakemake's log says of the run, in place of its lines; warnings and errors are printed above.

    Args:
        steps: The jobs of the run, by Snakemake's number.
        console: The terminal.
        clock: Seconds.
    """

    def __init__(
        self, steps: Mapping[int, Step], console: Console, clock: Callable[[], Seconds] = time.monotonic
    ) -> None:
        super().__init__()
        self._steps, self._console, self._clock = steps, console, clock
        self._running: set[int] = set()
        self._finished: set[int] = set()
        self._weights: dict[int, Seconds] = {}
        self._began: dict[str, Seconds] = {}
        self._rows: dict[str, TaskID] = {}
        self._of_stage: dict[str, list[int]] = {}
        for number, step in steps.items():
            self._of_stage.setdefault(step.stage, []).append(number)
        self._started = clock()
        self._bars = _Bars(self._refresh, console)
        self._whole = self._bars.add_task("Whole run", total=1.0, count="", left="")

    def start(self) -> None:
        """Begin to draw."""
        atexit.register(self.stop)
        self._bars.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        atexit.unregister(self.stop)
        self._bars.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record of Snakemake's."""
        event = getattr(record, "event", None)
        if event == LogEvent.JOB_INFO:
            self._begin(record.__dict__["jobid"])
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.__dict__["job_id"])
        elif event in _ERRORS or record.levelno >= logging.WARNING:
            self._running.discard(record.__dict__.get("jobid", -1))
            self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)

    def _begin(self, number: int) -> None:
        if number not in self._steps:
            return
        self._running.add(number)
        stage = self._steps[number].stage
        self._began.setdefault(stage, self._clock())
        if stage not in self._rows:
            total = len(self._of_stage[stage])
            self._rows[stage] = self._bars.add_task(stage, total=total, count="", left="")
        self._bars.update(self._rows[stage], visible=True)

    def _finish(self, number: int) -> None:
        if number not in self._steps:
            return
        self._running.discard(number)
        self._finished.add(number)
        step = self._steps[number]
        of_stage = self._of_stage[step.stage]
        if self._finished.issuperset(of_stage):
            took = duration(self._clock() - self._began.get(step.stage, self._clock()))
            self._console.print(f"{step.stage}: {_counted(len(of_stage), step.unit)} in {took}", highlight=False)
        if step.stage in self._rows and not self._running.intersection(of_stage):
            self._bars.update(self._rows[step.stage], visible=False)

    def _refresh(self) -> None:
        """Bring the rows up to date."""
        now = self._clock()
        shares = {number: self._steps[number].share(now) for number in self._running}
        for stage, row in self._rows.items():
            of_stage = self._of_stage[stage]
            done = sum(number in self._finished for number in of_stage)
            part = sum(shares.get(number, 0.0) for number in of_stage)
            self._bars.update(
                row,
                completed=done + part,
                count=f"{done} of {_counted(len(of_stage), self._steps[of_stage[0]].unit)}",
            )
        weight, of_all = self._weighed(shares)
        left = (now - self._started) * (of_all / weight - 1) if weight > _ENOUGH * of_all else None
        self._bars.update(
            self._whole,
            completed=weight / of_all if of_all else len(self._finished) / len(self._steps),
            count=f"{len(self._finished)} of {_counted(len(self._steps), 'job')}",
            left="" if left is None else f"{duration(left)} left",
        )

    def _weighed(self, shares: Mapping[int, float]) -> tuple[Seconds, Seconds]:
        """Seconds of work that are done, and of the whole run; zeros while some are not known."""
        if len(self._weights) < len(self._steps):
            for number, step in self._steps.items():
                if number not in self._weights:
                    if (weight := step.weigh()) is None:
                        return 0, 0
                    self._weights[number] = weight
        finished = sum(self._weights[number] for number in self._finished)
        part = sum(self._weights[number] * share for number, share in shares.items())
        return finished + part, sum(self._weights.values())


class _Bars(Progress):
    """Rows that are brought up to date each time they are drawn."""

    def __init__(self, refresh: Callable[[], None], console: Console) -> None:
        self._bring_up_to_date = refresh
        super().__init__(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(),
            TextColumn("{task.fields[count]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            console=console,
            refresh_per_second=2,
            transient=True,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The rows."""
        if self.task_ids:
            self._bring_up_to_date()
        return super().get_renderables()


def duration(seconds: Seconds) -> str:
    """A time as a person says it: two units at most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _counted(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def draw_run(logger: logging.Logger, steps: Mapping[int, Step]) -> Callable[[], None]:
    """Put the bar in the place of Snakemake's lines, if these go to a terminal; gives what takes it away again.

    Args:
        logger: Snakemake's.
        steps: The jobs of the run, by Snakemake's number.
    """
    lines = next((handler for handler in logger.handlers if handler.name == "DefaultStreamHandler"), None)
    if not isinstance(lines, logging.StreamHandler) or not steps:
        return lambda: None
    console = Console(file=lines.stream, no_color=getattr(lines, "nocolor", None) or None)
    quiet = any(getattr(of, "quiet", None) for of in lines.filters)
    # What is not asked for is not drawn; and a terminal that cannot move its cursor shows lines.
    if quiet or lines.stream not in (sys.stdout, sys.stderr) or not console.is_terminal or console.is_dumb_terminal:
        return lambda: None
    bar = RunBar(steps, console)
    bar.setFormatter(lines.formatter)
    logger.removeHandler(lines)
    logger.addHandler(bar)
    bar.start()

    def take_away() -> None:
        if bar in logger.handlers:
            bar.stop()
            logger.removeHandler(bar)
            logger.addHandler(lines)

    return take_away
