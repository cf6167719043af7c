"""Findings in words: every number stands in a table, and moves with it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from selfrepair.figures import figure_names, finding
from selfrepair.figures.findings import write_findings
from selfrepair.figures.wording import decimal, largest, measured, percentage, signs
from selfrepair.files.tables import write_table
from selfrepair.quantities import CAPPED, CHOSEN_EXPERTS, NOISE_OF
from unit.figures.shared import FIGURES, PUBLISHED, make_spread, make_tables, make_tokens

pytestmark = pytest.mark.filterwarnings("error")

NUMBER = re.compile(r"(?<![\w.])−?\d[\d,]*(?:\.\d+)?(?=[^\w,]|,\D|,?$)%?")


@pytest.mark.parametrize("name", figure_names())
def test_every_figure_has_a_finding_that_names_a_missing_table(name: str) -> None:
    with pytest.raises((ValueError, KeyError), match=r"is missing|no table|'\w+'"):
        finding(name, {})


def saved(tables: dict[str, pd.DataFrame], folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = {key: folder / f"{key}.parquet" for key in tables if key != "published"}
    for key, path in files.items():
        write_table(tables[key], path, tables[key].attrs)
    return {**files, **({"published": PUBLISHED} if "published" in tables else {})}


def values_of(tables: dict[str, pd.DataFrame]) -> np.ndarray:
    """Every number of the tables and of their settings, and the number of rows of each selection."""
    found: list[float] = []
    for table in tables.values():
        found.extend(table.select_dtypes("number").to_numpy(float).ravel())
        found.extend(value for value in table.attrs.values() if isinstance(value, int | float))
        found.extend(table["selection"].value_counts() if "selection" in table else [])
    return np.array(found)


def numbers(line: str) -> Iterator[tuple[float, int]]:
    """Numbers of a line with their decimals; what the paper says is left out."""
    own = re.sub(r"Rushing & Nanda.*", "", line)
    own = re.sub(r"L\d+H\d+", lambda head: head.group().replace("L", " ").replace("H", " "), own)
    for text in NUMBER.findall(own):
        plain = text.strip("%").replace(",", "").replace("−", "-")
        scale = 100 if text.endswith("%") else 1
        yield float(plain) / scale, len(plain.partition(".")[2]) + (2 if scale == 100 else 0)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "token_noise"])
def test_every_number_stands_in_a_table(name: str, tmp_path: Path) -> None:
    tables = make_tables()[name]
    lines = finding(name, saved(tables, tmp_path))
    values = values_of(tables)
    # Shares are told in percent; "(37 to 44%)" has the sign at its end alone.
    known = np.concatenate([values, 100 * values, [table.attrs.get("logit_cap", 0) for table in tables.values()]])
    counted = 0
    for line in lines:
        without_counts = re.sub(r"(above zero|below) in \d+", "", line)
        for value, decimals in numbers(without_counts):
            assert np.abs(known - value).min() <= 0.5001 * 10.0**-decimals, (value, line)
            counted += 1
    assert counted > 8


@pytest.mark.parametrize("name", FIGURES)
def test_numbers_move_with_the_tables(name: str, tmp_path: Path) -> None:
    tables = make_tables()[name]
    before = " ".join(finding(name, saved(tables, tmp_path / "before")))
    for table in tables.values():
        for column in table.select_dtypes("float"):
            table[column] *= -1.7
            if f"{column}_low" in table:
                table[[f"{column}_low", f"{column}_high"]] = table[[f"{column}_high", f"{column}_low"]].to_numpy()
    after = " ".join(finding(name, saved(tables, tmp_path / "after")))
    same = [a == b for a, b in zip(numbers(before), numbers(after), strict=False)]
    assert np.mean(same) < 0.5


def test_what_a_model_lacks_is_not_told(tmp_path: Path) -> None:
    """Neither post-norms nor a cap: of most models."""
    every = make_tables()
    assert "from post-norms" in " ".join(
        finding("repair_breakdown", saved(every["repair_breakdown"], tmp_path / "with"))
    )
    tables = {
        name: table.drop(columns=[column for column in table if "postnorm" in column or column.startswith(CAPPED)])
        for name, table in (every["repair_breakdown"] | every["effect_vs_logit_change"]).items()
    }
    for table in tables.values():
        del table.attrs["logit_cap"]
    for name in ("repair_breakdown", "effect_vs_logit_change"):
        told = " ".join(finding(name, saved(tables, tmp_path / name)))
        assert "post-norm" not in told
        assert " cap" not in told


def test_means_within_the_noise_of_bfloat16_are_not_told_as_found(tmp_path: Path) -> None:
    tables = make_tables()["repair_breakdown"]
    layers = tables["layers"]
    best = layers.loc[layers["selection"] == "top", "self_repair"].idxmax()
    found = []
    for share in (0.5, 1.5):
        layers[f"{NOISE_OF}self_repair"] = share * abs(layers.loc[best, "self_repair"])
        found.append(finding("repair_breakdown", saved(tables, tmp_path / str(share)))[0])
    assert ["self-repair" in line and "not told from zero by the noise of bfloat16" in line for line in found] == [
        False,
        True,
    ]


def test_tokens_that_break_and_overcorrect_are_counted(tmp_path: Path) -> None:
    tables = {"tokens": make_tokens(n_heads=1), "spread": make_spread(n_heads=1)}
    (line,) = finding("token_noise", saved(tables, tmp_path))
    assert re.search(r"L1H7, 6 top tokens: .* quantiles at −0.20, 0.25 and 0.65 logits; it is negative on 17%", line)
    assert re.search(r"overcorrects \(the logit rises\) on 50%", line)


def test_file_has_a_section_a_figure_with_its_sources(tmp_path: Path) -> None:
    every = make_tables()
    tables = {
        name: saved(every[name], tmp_path / "tables" / name) for name in ("repair_breakdown", "self_repair_by_layer")
    }
    out = tmp_path / "findings.md"
    pictures = [tmp_path / "figures" / f"{name}.png" for name in tables]
    checks = tmp_path / "tables" / "checks.parquet"
    columns = {"repeated": [4, 6], "numbers": [2000, 1000], "largest_difference": [2e-5, 1e-6]}
    write_table(pd.DataFrame({"measurement": ["ablations", "neurons"], **columns}), checks, {})
    heads = tables["self_repair_by_layer"]["heads"]
    write_findings(heads=heads, checks=checks, tables=tables, figures=pictures, out=out)
    text = out.read_text(encoding="utf-8")
    assert text.startswith("# Findings: tiny on wikipedia\n")
    assert "| Model | tiny (random float32), 4 layers of 3 heads |" in text
    assert "| Intervals | 95%, 200 resamples, seed 0 |" in text
    told = "10 ablations in 2 measurements repeated by plain runs of the whole model, 3,000 numbers, largest difference 2e-05"
    assert f"| Checked | {told} logits ([tables/checks.csv](tables/checks.csv)) |" in text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["How far this carries", *tables]
    assert "[figures/repair_breakdown.png](figures/repair_breakdown.png)" in text
    assert "(tables/self_repair_by_layer/heads.csv)" in text
    for name, files in tables.items():
        for line in finding(name, files):
            assert f"\n- {line}\n" in text


def test_a_change_of_experts_is_told_where_there_is_one(tmp_path: Path) -> None:
    tables = make_tables()["mlp_repair"]
    *others, line = finding("mlp_repair", saved(tables, tmp_path / "mixture"))
    columns = [CHOSEN_EXPERTS + end for end in ("", "_low", "_high")]
    dense = {key: table.drop(columns=columns) for key, table in tables.items()}
    assert finding("mlp_repair", saved(dense, tmp_path / "dense")) == others
    model = tables["model"].set_index("selection").loc["top"]
    assert f"{measured(model, CHOSEN_EXPERTS)} come from a change of the chosen experts" in line


def test_numbers_are_rounded_to_their_interval() -> None:
    row = {
        **{"self_repair": 0.8514, "self_repair_low": 0.772, "self_repair_high": 0.931},
        **{"share": 0.4121, "share_low": 0.374, "share_high": 0.441},
        **{"slope": -1234.5, "slope_low": -1300.2, "slope_high": -1100.0},
        **{"nothing": 0.0, "nothing_low": 0.0, "nothing_high": 0.0},
        **{"lost": np.nan, "lost_low": np.nan, "lost_high": np.nan},
    }
    assert measured(row, "self_repair") == "0.85 logits (0.77 to 0.93)"
    assert percentage(row, "share") == "41% (37 to 44%)"
    assert measured(row, "slope", "nats") == "−1,234 nats (−1,300 to −1,100)"
    assert measured(row, "nothing") == "0.00 (0.00 to 0.00)"
    assert measured(row, "lost") == "none (none to none)"
    assert decimal(-0.001, 2) == "0.00"


def test_signs_count_intervals() -> None:
    table = pd.DataFrame({"x": [1.0, 2, -1, 0.1, np.nan]})
    table["x_low"], table["x_high"] = table["x"] - 0.5, table["x"] + 0.5
    assert signs(table, "x", "heads") == "above zero in 2 of 5 heads, below in 1"
    assert largest(table, "x")["x"] == 2
