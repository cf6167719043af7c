"""Logs of shards, which are thousands: those of finished ones are gathered in one file a rule and kind."""

import fcntl
from contextlib import suppress
from pathlib import Path

FINISHED = "finished.log"
"""In a rule's folder of logs: those of the shards that it has finished."""


def gather(log: Path) -> None:
    """Move a finished shard's log to the end of `FINISHED` beside it; where that cannot be, it stays as it is."""
    with suppress(OSError), (log.parent / FINISHED).open("a", encoding="utf-8") as shared:
        fcntl.flock(shared, fcntl.LOCK_EX)
        shared.write(f"== {log.stem}\n{log.read_text(encoding='utf-8')}")
        shared.flush()
        log.unlink()


def clear(logs: Path) -> None:
    """Remove the empty logs that Snakemake puts in place of those that were gathered; when no job runs.

    Args:
        logs: The folder of all logs.
    """
    for shared in logs.rglob(FINISHED):
        for log in shared.parent.glob("*.log"):
            if not log.stat().st_size:
                log.unlink()
