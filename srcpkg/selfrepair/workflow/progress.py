"""Progress of long steps: a bar with rate and time left on a terminal, plain log lines elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts finished units of a long step, as a context manager.

    Args:
        total: Number of units.
        label: What is being done.
        unit: What is counted.
        show: Show anything at all.
    """

    def __init__(self, total: int, label: str, unit: str, show: bool = True) -> None:
        self.total, self.label, self.unit, self.show = total, label, unit, show
        self.done = self.skipped = 0
        self._bar: Bar | None = None

    def __enter__(self) -> "Progress":
        """Start counting."""
        self._started = self._spoke = time.monotonic()
        if self.show and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.add_task(f"{self.label}, {self.unit}s", total=self.total)
            self._bar.start()
        return self

    def advance(self, units: int = 1) -> None:
        """Count ``units`` more as finished."""
        self.done += units
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], units)
        if self.show and time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES:
            self._say()

    def skip(self, units: int) -> None:
        """Count ``units`` more that were finished before this process began: the rate leaves them out."""
        self.done += units
        self.skipped += units
        if self._bar is not None:
            self._bar.reset(self._bar.task_ids[0], total=self.total, completed=self.done)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar and say how long it took."""
        if self._bar is not None:
            self._bar.stop()
        if self.show and error is None:
            self._say()

    def _say(self) -> None:
        now = self._spoke = time.monotonic()
        seconds = max(now - self._started, 1e-9)
        rate = (self.done - self.skipped) / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        logger.info(
            "%s: %d of %d %ss, %.3g %ss/s, %.0f s left",
            self.label,
            self.done,
            self.total,
            self.unit,
            rate,
            self.unit,
            left,
        )


def _bar() -> "Bar":
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = [*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, console=Console(stderr=True), transient=True)
