"""A run on a terminal: a bar in place of Snakemake's lines, which its log has as ever."""

import os
import pty
import subprocess
import termios
import threading
from pathlib import Path

import pytest

from workflow.running import TIMEOUT, Space

pytestmark = pytest.mark.filterwarnings("error")


def on_a_terminal(space: Space, *arguments: str, interrupt_at: str | None = None) -> tuple[int, str]:
    """Run Snakemake on a pseudo-terminal; gives its exit code and all that was written there.

    ``interrupt_at``: text at which Ctrl-C is pressed, once.
    """
    outer, inner = pty.openpty()
    termios.tcsetwinsize(inner, (24, 100))
    written: list[bytes] = []
    pressed: list[int] = []

    def read() -> None:
        try:
            while part := os.read(outer, 65536):
                written.append(part)
                if interrupt_at is not None and not pressed and interrupt_at.encode() in b"".join(written):
                    pressed.append(os.write(outer, b"\x03"))
        except OSError:  # the last writer has closed it
            return

    reader = threading.Thread(target=read)
    environment = {**space.environment, "TERM": "xterm"}
    # In a session of its own, whose terminal this is: so that Ctrl-C reaches it, and its jobs.
    with subprocess.Popen(
        space.command(*arguments), cwd=space.work, env=environment, preexec_fn=lambda: os.login_tty(inner)
    ) as run:
        os.close(inner)
        reader.start()
        code = run.wait(timeout=TIMEOUT)
    reader.join(timeout=TIMEOUT)
    os.close(outer)
    return code, b"".join(written).decode()


def last_log(space: Space) -> str:
    logs: list[Path] = sorted((space.work / ".snakemake" / "log").iterdir())
    return logs[-1].read_text(encoding="utf-8")


def test_a_terminal_gets_a_bar_and_the_log_all_lines(copied: Space) -> None:
    copied.change("statistics.n_bootstrap", 60)
    code, shown = on_a_terminal(copied, "self_repair_by_layer")
    assert code == 0, shown
    assert "Whole run" in shown
    assert "of 2 jobs" in shown
    assert "Tables: 1 job in " in shown
    assert "Figures: 1 job in " in shown
    assert "Job 2: " not in shown  # of the lines that a pipe gets
    assert "Complete log(s): " in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is shown again
    log = last_log(copied)
    assert "Condense resample ablations of tiny" in log
    assert "Finished jobid: " in log
    assert "\x1b" not in log


def test_what_fails_is_said_above_the_bar_and_at_the_end(copied: Space) -> None:
    table = copied.run / "tables" / "resample" / "published_pairs.parquet"
    table.write_bytes(b"damaged" + table.read_bytes())
    code, shown = on_a_terminal(copied, "published_comparison", "--rerun-triggers", "mtime")
    assert code == 1, shown
    assert "Error in rule draw_published_comparison:" in shown
    assert "Failed: draw_published_comparison: " in shown.rsplit("Error in rule", 1)[1]
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


def test_ctrl_c_leaves_the_terminal_as_it_was_and_the_run_goes_on(copied: Space) -> None:
    copied.change("statistics.n_bootstrap", 60)
    code, shown = on_a_terminal(copied, "self_repair_by_layer", interrupt_at="0 of 1 job")
    assert code != 0
    assert "^C" in shown
    assert "Traceback" not in shown
    before, _, after = shown.partition("^C")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "Whole run" in before
    assert "Whole run" not in after.rpartition("\x1b[2K")[2]  # the last that is erased is the bar
    assert list(copied.work.rglob("*.partial")) == []
    assert sum(copied.jobs("self_repair_by_layer").values()) in (1, 2)
    assert on_a_terminal(copied, "self_repair_by_layer")[0] == 0
