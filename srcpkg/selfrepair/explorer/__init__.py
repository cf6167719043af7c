"""The explorer: one page that shows every head and token of a run, in its text."""

from collections.abc import Sequence
from pathlib import Path

from selfrepair.explorer.page import content_of, html
from selfrepair.explorer.payload import RunFiles
from selfrepair.files.sealed import write_whole, writing
from selfrepair.files.tables import read_table


def write_explorer(runs: Sequence[RunFiles], *, published: Path, out: Path) -> None:
    """Write the page of all models of a run.

    Args:
        runs: Files of each model on each text.
        published: The paper's per-head results.
        out: HTML file to write.

    Raises:
        ValueError: A file that is missing, damaged, or not of one run with the others.
    """
    page = html(content_of(runs, read_table(published)))
    with write_whole(out) as temporary, writing(out):
        temporary.write_text(page, encoding="utf-8")
