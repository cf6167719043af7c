"""Progress of a long step on a terminal."""

import sys

import pytest

from selfrepair.workflow.progress import Progress


def test_what_was_finished_before_counts_and_is_not_in_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(10, "ablation", "head") as progress:
        progress.skip(4)
        progress.advance()
        bar = progress._bar
        assert bar is not None
        [task] = bar.tasks
        assert (progress.done, task.completed, task.total) == (5, 5, 10)
        assert sum(sample.completed for sample in task._progress) == 1
