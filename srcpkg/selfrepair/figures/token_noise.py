"""Figure: how much self-repair varies from token to token, for four heads."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.token_dots import X, Y, draw_tokens, token_legend, token_range
from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import decimal, head_name, percentage


def panels(tables: inputs.Tables) -> Panels:
    """Direct effect against logit change, a dot a token, a panel a head.

    Args:
        tables: "tokens"; `finding` takes "spread".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    tokens = inputs.table(tables, "tokens", ["rank", "layer", "head", X, Y, "selected"])
    run = inputs.settings(tables, "tokens")
    heads = [rows for _, rows in tokens.groupby("rank")]
    limits = token_range(tokens)
    of = {
        (name := head_name(rows.iloc[0])): Panel(
            partial(_panel, tokens=rows, limits=limits), name, guides.axis_label(Y)
        )
        for rows in heads
    }
    what = f"all tokens of {len(heads)} heads, the top {{top:g}}% marked"
    return Panels(of, run, (what, *footers.sampled(tables["tokens"])))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    n = len(shown.of)
    with looks.context():
        figure, axes = layout.square_panels(looks.TWO_COLUMNS, n)
        counts = shown.draw(*axes)
        axes[0].set_ylabel(guides.axis_label(Y))
        headings = layout.square_headings(axes, shown.titles(), counts, 37.0)
        token_legend(figure, axes[0], ncols=2, markerscale=2)
        below = shown.footer(figure, looks.TWO_COLUMNS)
        layout.lay_out_squares(figure, axes, below, headings, slots=max(n, 4), right_mm=3.0, top_mm=5.0)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """For each head: how far self-repair spreads over its top tokens, and on how many of them it falls short or overcorrects.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    quantiles = [f"self_repair_q{at}" for at in (10, 50, 90)]
    shares = inputs.with_interval("broken", "overcorrected")
    heads = inputs.table(tables, "spread", ["layer", "head", "n_tokens", *quantiles, *shares])
    lines = []
    for _, head in heads[heads["n_tokens"] > 0].iterrows():
        low, middle, high = (decimal(float(head[name]), 2) for name in quantiles)
        lines.append(
            f"{head_name(head)}, {int(head['n_tokens']):,} top tokens: self-repair has its 10%, 50% and 90% quantiles at "
            f"{low}, {middle} and {high} logits; it is negative on {percentage(head, 'broken')} of them, and overcorrects "
            f"(the logit rises) on {percentage(head, 'overcorrected')}."
        )
    if lines:
        lines[-1] += (
            " Rushing & Nanda 2024 call self-repair noisy: it varies greatly between prompts and sometimes overcorrects."
        )
    return lines


def in_short(tables: inputs.Tables) -> list[str]:
    """How far self-repair spreads over the tokens of one head; takes "spread" and raises what `finding` raises."""
    shares = inputs.with_interval("broken", "overcorrected")
    heads = inputs.table(tables, "spread", ["layer", "head", "n_tokens", "self_repair_q10", "self_repair_q90", *shares])
    heads = heads[heads["n_tokens"] > 0]
    if heads.empty:
        return []
    head = heads.iloc[0]
    low, high = (decimal(float(head[f"self_repair_q{at}"]), 2) for at in (10, 90))
    return [
        f"**It varies from token to token**: over the {int(head['n_tokens']):,} top tokens of {head_name(head)}, the middle "
        f"80% lie between {low} and {high} logits; it is negative on {percentage(head, 'broken')} of them and overcorrects on "
        f"{percentage(head, 'overcorrected')}. Rushing & Nanda 2024 call self-repair noisy."
    ]


def _panel(ax: Axes, tokens: pd.DataFrame, limits: tuple[float, float]) -> list[str]:
    """Draw one head's tokens and return the counts of what lies outside."""
    layout.square(ax, limits, layout.mirrored(limits))
    ax.set_xlabel(guides.axis_label(X))
    guides.zero_line(ax)
    draw_tokens(ax, tokens, "the head's top tokens by direct effect")
    guides.minus_x_line(ax, tokens[X], tokens[Y])
    return ranges.mark_outside(ax, tokens[X], tokens[Y], looks.INK)
