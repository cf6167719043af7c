"""What findings open with: words that follow from the intervals, numbers that stand in tables, links that lead somewhere."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from selfrepair.figures import catalogue, module_of
from selfrepair.figures.findings import write_findings
from selfrepair.figures.opening import LINES, ORDER, link, opening, reach
from selfrepair.files.tables import write_table
from selfrepair.quantities import CHOSEN_EXPERTS, PARTS, POSTNORMS
from unit.figures.shared import PUBLISHED, make_tables
from unit.figures.test_circuits import repair_tables, set_attrs_of
from unit.figures.test_controls import control_tables, published_tables
from unit.figures.test_findings import numbers, saved, values_of
from unit.figures.test_models import NAMES, joined
from unit.figures.test_neurons import by_figure
from unit.tables.test_neurons import condensed, noted, shard

pytestmark = pytest.mark.filterwarnings("error")

Tables = dict[str, pd.DataFrame]


def planted(table: pd.DataFrame, name: str, value: float, low: float, high: float) -> None:
    """Give every row the same value and interval."""
    for end, number in (("", value), ("_low", low), ("_high", high)):
        table[name + end] = number


def tables_of(sign: str = "above") -> dict[str, Tables]:
    """Made-up tables in which self-repair, over the model and in every layer, is above zero, below, or not told from it."""
    tables = make_tables()
    value = {"above": 0.3, "below": -0.3, "unclear": 0.1}[sign]
    for name in ("model", "heads", "layers"):
        planted(tables["self_repair_by_layer"][name], "self_repair", value, value - 0.2, value + 0.2)
    return {**tables, "who_repairs_whom": repair_tables(), "selection_control": control_tables()}


def line_of(tables: dict[str, Tables], name: str, at: int = 0) -> str:
    return module_of(name).in_short(tables[name])[at]


@pytest.mark.parametrize(
    ("sign", "first", "second"),
    [
        ("above", "The model repairs itself", "It repairs most in layer 0"),
        ("below", "The model breaks further", "No layer repairs, and layer 0 breaks the least"),
        (
            "unclear",
            "Whether the model repairs itself is not told by this run",
            "Its largest layer mean, in layer 0, is not told from zero",
        ),
    ],
)
def test_words_follow_the_interval(sign: str, first: str, second: str) -> None:
    tables = tables_of(sign)
    assert line_of(tables, "self_repair_by_layer").startswith(f"**{first}**: on each head's top tokens, ")
    assert line_of(tables, "self_repair_by_layer", 1).startswith(f"**{second}** (relative depth 0.00")


def test_a_mean_within_the_noise_of_bfloat16_is_not_told() -> None:
    tables = tables_of()
    tables["self_repair_by_layer"]["model"]["noise_of_self_repair"] = 0.5
    assert line_of(tables, "self_repair_by_layer").startswith("**Whether the model repairs itself is not told")


def test_parts_are_told_by_their_signs() -> None:
    tables = tables_of()
    model = tables["repair_breakdown"]["model"]
    heads, mlps, postnorms, layernorm = PARTS
    planted(model, heads, 0.01, -0.02, 0.04)
    planted(model, mlps, 0.2, 0.1, 0.3)
    planted(model, postnorms, -0.2, -0.3, -0.1)
    planted(model, layernorm, -0.1, -0.2, -0.05)
    line = line_of(tables, "repair_breakdown")
    assert line.startswith(
        "**On average MLPs repair, post-norms and LayerNorm break further, of other heads it is not told**"
    )
    assert "follow from a change of the chosen experts" in line
    unclear = model.copy()
    for part in PARTS:
        planted(unclear, part, 0.01, -0.02, 0.04)
    (line,) = module_of("repair_breakdown").in_short({"model": unclear})
    assert line.startswith("**On average no part is told to repair or to break**: 0.01")
    plain = model.drop(columns=[name for name in model if POSTNORMS in name or CHOSEN_EXPERTS in name])
    planted(plain, mlps, -0.2, -0.3, -0.1)
    line = module_of("repair_breakdown").in_short({"model": plain})[0]
    assert line.startswith("**On average MLPs and LayerNorm break further, of other heads it is not told**")
    assert "post-norm" not in line
    assert "experts" not in line


@pytest.mark.parametrize(
    ("low", "high", "half", "told"),
    [
        (2.0, 10.0, 1, "strongest pairs of a head and what repairs or breaks it are told from zero"),
        (0.5, 10.0, 1, "2 have an interval that holds zero or spans an order of magnitude: a few tokens carry them"),
        (-1.0, 10.0, 2, "2 have an interval that holds zero or spans an order of magnitude: a few tokens carry them"),
        (-1.0, 10.0, 9, "2 have an interval that holds zero or spans an order of magnitude.**"),
    ],
)
def test_pairs_that_a_few_tokens_carry(low: float, high: float, half: int, told: str) -> None:
    tables = repair_tables()
    pairs = tables["pairs"].assign(n_prompts=20, prompts_of_half=half)
    pairs["repair_low"], pairs["repair_high"] = pairs["repair"] - 0.01, pairs["repair"] + 0.01
    first = pairs["rank"] == 1
    pairs.loc[first, ["repair", "repair_low", "repair_high"]] = [5.0, low, high]
    pairs.loc[~first, ["repair", "repair_low", "repair_high"]] = [1.0, 0.9, 1.1]
    tables["pairs"] = set_attrs_of(pairs, tables["rows"])
    (line,) = module_of("who_repairs_whom").in_short(tables)
    assert told in line
    assert (f"half of it in {half} of 20 prompts" in line) == ("told from zero" not in told)


def test_neurons_of_a_mixture_are_not_compared(tmp_path: Path) -> None:
    note = "layer 27 is a mixture of experts"
    tables = by_figure(noted(tmp_path, note))
    assert line_of(tables, "neuron_concentration") == f"No neurons are compared: {note}."


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.01, 0.2, "a larger share is repaired"),
        (-0.2, -0.01, "a smaller share is repaired"),
        (-0.1, 0.1, "the share repaired is the same, as far as the intervals tell"),
    ],
)
def test_the_control_is_told_by_its_difference(low: float, high: float, told: str) -> None:
    tables = control_tables()
    planted(tables["model"], "pooled_repair_fraction_minus_top", (low + high) / 2, low, high)
    assert (
        module_of("selection_control")
        .in_short(tables)[0]
        .startswith(f"**On tokens chosen otherwise than by direct effect {told}**")
    )


def test_agreement_is_told_of_published_models_alone(tmp_path: Path) -> None:
    module = module_of("published_comparison")
    assert module.in_short(published_tables(tmp_path / "any", None)) == []
    (line,) = module.in_short(published_tables(tmp_path / "gpt2", "gpt2-small"))
    assert "published for GPT-2 small by 0." in line


def test_every_number_stands_in_a_table(tmp_path: Path, rng: np.random.Generator) -> None:
    tables = {**tables_of(), **by_figure(condensed(tmp_path, [shard(rng, 40, 12), shard(rng, 40, 12)]))}
    run = tables["self_repair_by_layer"]["heads"].attrs
    counted = 0
    for name in ORDER:
        for line in module_of(name).in_short(tables[name]) if name in tables else []:
            values = values_of(tables[name])
            known = np.concatenate([values, 100 * values])
            # Counts of rows, the middle 80% between the quantiles, and what is 1 or 30% by definition.
            own = re.sub(
                r"(above zero|below) in \d+|in \d+ of \d+|of (the )?\d+ \w+|by \d+|middle 80%|1%|30%|1 the last",
                "",
                line,
            )
            own = re.sub(r"where 0 is the first layer and|Of the \d+ strongest|, \d+ have", "", own)
            for value, decimals in numbers(own):
                assert np.nanmin(np.abs(known - value)) <= 0.5001 * 10.0**-decimals, (value, line)
                counted += 1
    assert counted > 40
    last = opening(tables, run)[-1]
    assert last.startswith(f"**{run['n_tokens']:,} tokens of {run['n_prompts']} prompts carry this far**")


def test_reach_says_what_a_run_is_too_small_for() -> None:
    model = make_tables()["self_repair_by_layer"]["model"]
    planted(model, "pooled_repair_fraction", 0.5, 0.4, 0.6)
    told = " ".join(reach(model, model.attrs))
    assert "with four times the prompts (160; 5,120 tokens)" in told
    assert "50% (40 to 60%), would be some 10 percentage points wide in place of 20" in told
    assert "rough itself" not in told
    assert "top tokens alone" not in told
    told = " ".join(reach(model[model["selection"] == "top"], {**model.attrs, "n_prompts": 4}))
    assert "With 4 prompts the bootstrap is rough itself" in told
    assert "each head's top tokens alone" in told


def anchors(html_headings: list[str]) -> set[str]:
    """As GitHub makes them: lower case, blanks to hyphens, punctuation but - and _ left out."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in html_headings}


def written(tables: dict[str, Tables], folder: Path) -> str:
    files = {name: saved(of, folder / name) for name, of in tables.items()}
    checks = folder / "checks.parquet"
    columns = {"repeated": [4, 6], "numbers": [2000, 1000], "largest_difference": [2e-5, 1e-6]}
    write_table(pd.DataFrame({"measurement": ["ablations", "neurons"], **columns}), checks, {})
    whole = files.get("self_repair_by_layer") or files["models_by_layer"]
    out = folder / "findings.md"
    pictures = [folder / f"{name}.png" for name in tables]
    write_findings(heads=whole["heads"], checks=checks, tables=files, figures=pictures, out=out)
    return out.read_text(encoding="utf-8")


def check_links(text: str, most: int) -> list[str]:
    """Every line of the opening has one link, which leads to a heading; gives the lines."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    lines = re.findall(r"^\d+\. (.*)$", text.partition("| | |")[0], re.MULTILINE)
    assert 4 <= len(lines) <= most
    for line in lines:
        (target,) = re.findall(r"\]\(#([^)]+)\)\)$", line)
        assert target in anchors(headings), line
    return lines


def test_findings_open_with_ten_lines_whose_links_lead_to_sections(tmp_path: Path, rng: np.random.Generator) -> None:
    tables = {**tables_of(), **by_figure(condensed(tmp_path / "n", [shard(rng, 40, 12), shard(rng, 40, 12)]))}
    tables["self_repair_by_layer"]["published"] = pd.read_csv(PUBLISHED)
    text = written(tables, tmp_path)
    lines = check_links(text, LINES)
    assert len(lines) == LINES - 1  # these made-up tables have no `layernorm_claim`
    assert text.startswith("# Findings: tiny on wikipedia\n\n1. **The model repairs itself**")


def test_findings_of_a_few_figures_open_with_fewer(tmp_path: Path) -> None:
    """Top tokens alone, no published values, no neurons."""
    every = tables_of("unclear")
    tables = {name: every[name] for name in ("self_repair_by_layer", "repair_breakdown", "who_repairs_whom")}
    del tables["self_repair_by_layer"]["published"]
    for of in tables.values():
        for key, table in of.items():
            if "selection" in table:
                of[key] = set_attrs_of(table[table["selection"] == "top"].reset_index(drop=True), table)
    text = written(tables, tmp_path)
    lines = check_links(text, LINES)
    assert len(lines) == 5
    assert "publish peak" not in text
    assert "each head's top tokens alone" in text


def test_findings_of_all_models_open_alike(tmp_path: Path) -> None:
    tables = joined(tmp_path)
    of_figures = {name: {key: tables[key] for key in entry.tables} for name, entry in catalogue.OF_MODELS.items()}
    planted(of_figures["models_by_layer"]["model"], "self_repair", 0.2, 0.1, 0.3)
    text = written(of_figures, tmp_path / "out")
    lines = check_links(text, LINES)
    assert text.startswith("# Findings: all models on wikipedia\n\n1. **2 of 2 models repair themselves**")
    assert all(name in lines[0] for name in NAMES)
    other = of_figures["models_by_layer"]["model"]
    other.loc[other["model"] == NAMES[0], ["self_repair", "self_repair_low", "self_repair_high"]] = [-0.2, -0.3, -0.1]
    line = module_of("models_by_layer").in_short(of_figures["models_by_layer"])[0]
    assert line.startswith("**1 of 2 models repair themselves, 1 break further**")


def test_links_are_made_as_forges_make_them() -> None:
    assert link("who_repairs_whom") == "[who_repairs_whom](#who_repairs_whom)"
    assert link("How far this carries") == "[How far this carries](#how-far-this-carries)"


def test_what_is_said_of_another_kind_than_resampling_names_it() -> None:
    every = make_tables()["effect_vs_logit_change"]
    module = module_of("effect_vs_logit_change")
    assert " tokens more heads " in module.in_short(every)[0] or " tokens as many heads " in module.in_short(every)[0]
    [mean] = module.in_short({"heads_mean": every["heads_mean"]})
    assert re.match(r"\*\*Over all [\d,]+ tokens under mean ablation ", mean)
