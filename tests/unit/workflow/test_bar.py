"""The bar of the run: what it shows of Snakemake's log, and that it is there on a terminal alone."""

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

from selfrepair.workflow.bar import RunBar, Step, draw_run, duration

pytestmark = pytest.mark.filterwarnings("error")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(event: LogEvent | None, text: str = "", level: int = logging.INFO, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, __file__, 1, text, None, None)
    made.__dict__.update(event=event, **more)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def steps(tmp_path: Path) -> dict[int, Step]:
    """Two shards of 100 seconds, a table of 10 and a figure of 40."""
    shards = {
        number: Step("Ablate heads (mean)", lambda: 100, tmp_path / f"{number}.log", "shard") for number in (1, 2)
    }
    return {**shards, 3: Step("Tables", lambda: 10), 4: Step("Figures", lambda: 40)}


@pytest.fixture
def bar(steps: dict[int, Step], clock: Clock) -> RunBar:
    made = RunBar(steps, Console(file=Terminal(), width=100, force_terminal=True, no_color=True), clock)
    made.setFormatter(DefaultFormatter())
    return made


def shown(bar: RunBar) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    console.print(*bar._bars.get_renderables())
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_stages_shards_and_time_left(bar: RunBar, clock: Clock, tmp_path: Path) -> None:
    bar.emit(record(LogEvent.JOB_INFO, jobid=1))
    bar.emit(record(LogEvent.JOB_INFO, jobid=2))
    assert "0 of 2 shards" in shown(bar)[1]
    assert "left" not in shown(bar)[0]
    clock.now = 50
    lines = [
        "... resample ablation: 10 of 40 heads, 3 heads/s, 90 s left",
        "... resample ablation: 20 of 40 heads, 3 heads/s, 60 s left",
    ]
    (tmp_path / "1.log").write_text("\n".join([*lines, "something else"]), encoding="utf-8")
    # Half a shard of 100 seconds is done, of 250 seconds in all.
    assert [part in shown(bar)[0] for part in ("Whole run", "0 of 4 jobs", "3 min left")] == [True] * 3
    clock.now = 100
    for number in (1, 2):
        bar.emit(record(LogEvent.JOB_FINISHED, job_id=number))
    bar.emit(record(LogEvent.JOB_INFO, jobid=3))
    whole, *stages = shown(bar)
    assert "2 of 4 jobs" in whole
    assert "25 s left" in whole
    assert [stage.split()[0] for stage in stages] == ["Tables"]
    assert bar._console.file.getvalue().splitlines() == ["Ablate heads (mean): 2 shards in 2 min"]  # type: ignore[attr-defined]


def test_no_time_is_said_while_the_size_of_the_model_is_not_known(clock: Clock) -> None:
    known: list[float] = []
    steps = {1: Step("Snapshot model", lambda: known[0] if known else None), 2: Step("Tables", lambda: 10)}
    bar = RunBar(steps, Console(file=Terminal(), width=100, force_terminal=True), clock)
    bar.emit(record(LogEvent.JOB_INFO, jobid=1))
    clock.now = 10
    bar.emit(record(LogEvent.JOB_FINISHED, job_id=1))
    assert "left" not in shown(bar)[0]
    assert "1 of 2 jobs" in shown(bar)[0]
    known.append(10)
    assert "10 s left" in shown(bar)[0]


def test_warnings_and_errors_are_said_in_full(bar: RunBar) -> None:
    bar.emit(record(None, "Select jobs to execute..."))
    bar.emit(record(None, "[Fri] 3 of 4", level=logging.WARNING))
    bar.emit(record(LogEvent.ERROR, "no such file", level=logging.ERROR))
    assert bar._console.file.getvalue().splitlines() == ["[Fri] 3 of 4", "no such file"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("stream", "quiet", "drawn"),
    [(Terminal(), set(), True), (io.StringIO(), set(), False), (Terminal(), {"all"}, False)],
)
def test_it_is_drawn_on_a_terminal_alone_and_not_where_quiet_is_asked_for(
    stream: io.StringIO, quiet: set[Any], drawn: bool, steps: dict[int, Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    logger = logging.Logger("of snakemake")
    lines = ColorizingTextHandler(stream=stream)
    lines.name = "DefaultStreamHandler"
    lines.addFilter(DefaultFilter(quiet, False, False, False, False))  # type: ignore[arg-type]
    logger.addHandler(lines)
    take_away = draw_run(logger, steps)
    assert [type(handler) for handler in logger.handlers] == [RunBar if drawn else ColorizingTextHandler]
    take_away()
    take_away()
    assert logger.handlers == [lines]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (89, "89 s"), (120, "2 min"), (3600, "60 min"), (7000, "1 h 57 min")]
)
def test_times_as_a_person_says_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
