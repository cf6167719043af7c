"""Figure: how much self-repair varies from token to token, for four heads."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.token_dots import X, Y, draw_tokens, token_legend, token_range
from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.wording import decimal, head_name, percentage
from selfrepair.tables.statistics import means_of_tokens


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw direct effect against logit change, a dot a token, a panel a head.

    Args:
        tables: "tokens".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    tokens = inputs.table(tables, "tokens", ["rank", "layer", "head", X, Y, "selected"])
    run = inputs.settings(tables, "tokens")
    heads = [rows for _, rows in tokens.groupby("rank")]
    with looks.context():
        figure, axes = layout.square_panels(looks.TWO_COLUMNS, token_range(tokens), len(heads))
        counts = [_panel(ax, rows) for ax, rows in zip(axes, heads, strict=True)]
        axes[0].set_ylabel(guides.axis_label(Y))
        names = [head_name(rows.iloc[0]) for rows in heads]
        headings = layout.square_headings(axes, names, counts, 37.0)
        token_legend(figure, axes[0], ncols=2, markerscale=2)
        below = footers.footer(
            figure, looks.TWO_COLUMNS, run, f"all tokens of {len(heads)} heads, the top {{top:g}}% marked"
        )
        layout.lay_out_squares(figure, axes, below, headings, slots=max(len(heads), 4), right_mm=3.0, top_mm=5.0)
    return figure


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """For each head: how far self-repair spreads over its top tokens, and on how many of them it falls short or overcorrects.

    Takes the tables of `draw` and raises what it raises. Gives lines of Markdown, one a head.
    """
    columns = ["rank", "layer", "head", "prompt", Y, "self_repair", "selected"]
    tokens = inputs.table(tables, "tokens", columns)
    chosen = tokens[tokens["selected"].astype(bool)]
    lines = []
    for _, rows in chosen.groupby("rank"):
        shares = {"broken": rows["self_repair"].to_numpy() < 0, "overcorrected": rows[Y].to_numpy() > 0}
        found = means_of_tokens(rows["prompt"].to_numpy(), shares, tables["tokens"].attrs)
        low, middle, high = (decimal(float(rows["self_repair"].quantile(at)), 2) for at in (0.1, 0.5, 0.9))
        lines.append(
            f"{head_name(rows.iloc[0])}, {len(rows):,} top tokens: self-repair has its 10%, 50% and 90% quantiles at {low}, "
            f"{middle} and {high} logits; it is negative on {percentage(found, 'broken')} of them, and overcorrects (the logit "
            f"rises) on {percentage(found, 'overcorrected')}."
        )
    if lines:
        lines[-1] += (
            " Rushing & Nanda 2024 call self-repair noisy: it varies greatly between prompts and sometimes overcorrects."
        )
    return lines


def _panel(ax: Axes, tokens: pd.DataFrame) -> list[str]:
    """Draw one head's tokens and return the counts of what lies outside."""
    ax.set_xlabel(guides.axis_label(X))
    guides.zero_line(ax)
    draw_tokens(ax, tokens, "the head's top tokens by direct effect")
    guides.minus_x_line(ax, tokens[X], tokens[Y])
    return ranges.mark_outside(ax, tokens[X], tokens[Y], looks.INK)
