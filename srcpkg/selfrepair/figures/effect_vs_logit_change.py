"""Figure: mean direct effect of each head against what ablating it does to the logit, one panel an ablation."""

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.kinds import given_kinds
from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, largest, measured, signs
from selfrepair.quantities import CAPPED

X, Y = "direct_effect", "logit_change"


def panels(tables: inputs.Tables) -> Panels:
    """Direct effect against logit change, means over all tokens, a panel an ablation.

    Args:
        tables: Any of "heads_resample", "heads_mean", "heads_zero".

    Raises:
        ValueError: No table of an ablation, a column or a setting is missing, or the tables are of several runs.
    """
    kinds = given_kinds(tables, "heads")
    columns = ["relative_depth", *inputs.with_interval(X, Y)]
    heads = {kind: inputs.table(tables, f"heads_{kind}", columns, selection="all") for kind in kinds}
    run = inputs.settings(tables, *(f"heads_{kind}" for kind in kinds), differing=["ablation"])
    pooled = pd.concat(list(heads.values()))
    limits = ranges.square_range(pooled[X], pooled[Y], coverage=0.995)
    of = {
        kind: Panel(partial(_panel, heads=rows, limits=limits), f"{kind} ablation", guides.axis_label(Y), looks.DEPTH)
        for kind, rows in heads.items()
    }
    return Panels(of, run, ("all", "bars"), kinds)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page: one column wide for one panel, else two."""
    shown = panels(tables)
    n = len(shown.of)
    width = looks.TWO_COLUMNS if n > 1 else looks.ONE_COLUMN
    with looks.context():
        figure, axes = layout.square_panels(width, n)
        counts = shown.draw(*axes)
        axes[0].set_ylabel(guides.axis_label(Y))
        headings = layout.square_headings(axes, shown.titles(), counts, 0.72 * width / n)
        below = shown.footer(figure, width)
        layout.lay_out_squares(figure, axes, below, headings, slots=n, right_mm=14.0)
        layout.colour_bar(figure, axes[-1], looks.DEPTH)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """For each ablation: on how many heads the model repairs, and the head of largest effect.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one an ablation.
    """
    lines = []
    for kind in given_kinds(tables, "heads"):
        columns = ["layer", "head", "n_tokens", *inputs.with_interval(X, "ablated_direct_effect", Y, "self_repair")]
        heads = inputs.table(tables, f"heads_{kind}", columns, selection="all")
        strongest = largest(heads, X)
        lines.append(
            f"{kind} ablation, means over all {int(heads['n_tokens'].max()):,} tokens: self-repair is "
            f"{signs(heads, 'self_repair', 'heads')}. The head of largest direct effect, {head_name(strongest)}, writes "
            f"{measured(strongest, X)}, and {measured(strongest, 'ablated_direct_effect')} when ablated; the logit changes by "
            f"{measured(strongest, Y)}{_capped(strongest, heads)}."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 see self-repair of single heads over the full training distribution, not on top tokens alone."
    )
    return lines


def in_short(tables: inputs.Tables) -> list[str]:
    """Whether heads are repaired over all tokens too; takes the tables of `panels` and raises what `finding` raises."""
    kind = given_kinds(tables, "heads")[0]
    heads = inputs.table(tables, f"heads_{kind}", ["n_tokens", *inputs.with_interval("self_repair")], selection="all")
    above, below = int((heads["self_repair_low"] > 0).sum()), int((heads["self_repair_high"] < 0).sum())
    title = (
        "more heads are repaired than broken further"
        if above > below
        else "more heads are broken further than repaired"
        if below > above
        else "as many heads are repaired as broken further"
    )
    # Of every other kind that is the main one, too: which is the main one no table of these says.
    under = "" if kind == "resample" else f" under {kind} ablation"
    return [
        f"**Over all {int(heads['n_tokens'].max()):,} tokens{under} {title}**: self-repair is "
        f"{signs(heads, 'self_repair', 'heads')}. "
        "Rushing & Nanda 2024 see self-repair of single heads over the full training distribution too."
    ]


def _capped(row: pd.Series, heads: pd.DataFrame) -> str:
    """What the cap makes of it, where the model caps its logits."""
    return f", and by {measured(row, CAPPED)} after the cap of {heads.attrs['logit_cap']:g}" if CAPPED in heads else ""


def _panel(ax: Axes, heads: pd.DataFrame, limits: tuple[float, float]) -> list[str]:
    """Draw one ablation's heads and return the counts of what lies outside."""
    layout.square(ax, limits, layout.mirrored(limits))
    ax.set_xlabel(guides.axis_label(X))
    guides.zero_line(ax)
    guides.minus_x_line(ax, heads[X], heads[Y])
    bars: dict[str, Any] = {"color": looks.FAINT, "alpha": 0.5, "linewidth": 0.4, "zorder": 1.5, "label": "_bars"}
    ax.vlines(heads[X], heads[f"{Y}_low"], heads[f"{Y}_high"], **bars)
    ax.hlines(heads[Y], heads[f"{X}_low"], heads[f"{X}_high"], **bars)
    marks.depth_dots(ax, heads, X, Y, size=9.0, edge=0.25)
    return ranges.mark_outside(ax, heads[X], heads[Y], looks.INK)
