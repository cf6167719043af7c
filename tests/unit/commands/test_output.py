"""What is printed: visible characters, JSON that any reader takes, tables that fit."""

import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from rich.cells import cell_len
from rich.console import Console

from selfrepair.commands.output import (
    in_context,
    interval,
    number,
    plain,
    print_json,
    print_table,
    printable,
    quoted,
    signed,
    table,
    visible,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (" the", "' the'"),
        ("\n\t", r"'\n\t'"),
        ("\x1b[31mred\x07", r"'\x1b[31mred\x07'"),
        ("\u202egnp.exe", r"'\u202egnp.exe'"),
        ("a\u200bb\u00a0c", r"'a\u200bb\xa0c'"),
        ("naïve 🦙 日本", "'naïve 🦙 日本'"),
        (r"\xf0\x9f", r"'\xf0\x9f'"),
        ("[bold]x[/bold]", "'[bold]x[/bold]'"),
        ("\udc80", r"'\udc80'"),
    ],
)
def test_no_character_of_a_token_is_hidden_or_acted_on(text: str, seen: str) -> None:
    assert quoted(text) == seen
    assert "\x1b" not in printable(text)


def test_errors_keep_their_line_breaks_and_nothing_else() -> None:
    assert printable("one\ntwo\x1b]0;title\x07") == "one\ntwo\\x1b]0;title\\x07"
    assert visible("one\ntwo") == r"one\ntwo"


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": np.float32(0.5), "c": [np.int64(3), np.inf, pd.NA], "d": np.array([[1.0, np.nan]])})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": 0.5, "c": [3, None, None], "d": [[1.0, None]]}
    assert plain({1: True}) == {"1": True}


def test_numbers_and_intervals() -> None:
    assert number(-0.0001) == "0.000"
    assert number(-1234.5678) == "-1,234.568"
    assert number(math.nan) == "none"
    assert interval(-0.5, 1.25) == "-0.500 to 1.250"
    assert interval(math.nan, math.nan) == ""
    assert [signed(value, low, high).style for value, low, high in ((1, 0.5, 2), (-1, -2, -0.5), (1, -1, 2))] == [
        "cyan",
        "red",
        "",
    ]


def test_what_is_within_noise_has_no_colour() -> None:
    assert [signed(0.5, 0.2, 0.8, noise=noise).style for noise in (0, 0.5, 0.6)] == ["cyan", "cyan", ""]
    assert [signed(-0.5, noise=noise).style for noise in (0.5, 0.6)] == ["red", ""]


@pytest.mark.parametrize("room", [12, 30, 200])
@pytest.mark.parametrize("before", ["short", "a long text that goes on for more than it may", "日本語の文章です" * 3])
def test_a_token_in_context_keeps_to_its_room_and_is_never_cut(room: int, before: str) -> None:
    told = in_context([before, " and"], " now", room).plain
    assert told.endswith("[ now]")
    assert cell_len(told) <= room
    assert "..." in told or told == f"{before} and[ now]"


def _printed(width: int, **settings: object) -> str:
    out = Console(width=width, file=io.StringIO(), markup=False, **settings)  # type: ignore[arg-type]
    rows = table("what it is", "first\nvalue", "second\nvalue", "third\nvalue")
    rows.add_row("[red]a[/red]", "1.001", "2.002", "3.003")
    print_table(out, rows, ["second\nvalue", "third\nvalue"])
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_columns_that_do_not_fit_are_left_out_and_named() -> None:
    assert "Left out" not in _printed(80)
    narrow = _printed(26)
    assert "1.001" in narrow
    assert "2.002" in narrow
    assert "3.003" not in narrow
    assert "Left out at this width" in narrow
    assert "third value" in " ".join(narrow.split())
    assert all(cell_len(line) <= 26 for line in narrow.splitlines())
    # Words are broken before numbers are cut.
    assert "1.001" in _printed(12)


def test_nothing_in_a_table_is_taken_for_markup_and_nothing_is_coloured_off_a_terminal() -> None:
    assert "[red]a[/red]" in _printed(80)
    assert "\x1b" not in _printed(80)
    assert "\x1b" in _printed(80, force_terminal=True, color_system="standard")
