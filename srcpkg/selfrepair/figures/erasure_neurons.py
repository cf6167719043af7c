"""Figure: what the neuron that repairs most does, clean and with the head ablated: does it erase less (Anti-Erasure)?"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.neurons import find_no_neurons, no_neurons
from selfrepair.figures.shared.notes import draw_note, note_of
from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, percentage

X, Y, COLOUR = "direct_effect", "ablated_direct_effect", "mlp_direct_effect"
SHARE = "token_share"
QUADRANTS = {
    "anti_erasure": "Anti-Erasure",
    "negative_to_positive": "sign turns",
    "more_positive": "more positive",
}


def panels(tables: inputs.Tables) -> Panels:
    """Clean against ablated direct effect of each token's leading neuron, coloured by the MLP's, a panel a head.

    Args:
        tables: "neurons", a row a token, and "quadrants".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    if (note := note_of(tables)) is not None:
        return no_neurons(tables, note)
    tokens = inputs.table(tables, "neurons", ["rank", "layer", "head", X, Y, COLOUR])
    quadrants = inputs.table(tables, "quadrants", ["rank", "quadrant", *inputs.with_interval(SHARE)])
    run = inputs.settings(tables, "neurons", "quadrants")
    layer = tables["neurons"].attrs["neuron_layer"]
    heads = [(rows, quadrants[quadrants["rank"] == rank]) for rank, rows in tokens.groupby("rank")]
    limits = ranges.bulk_range(tokens[X], tokens[Y], include=[0.0])
    span = ranges.bulk_range(tokens[COLOUR], -tokens[COLOUR], include=[0.0])[1]
    scale = looks.Scale("direct effect of the MLP (logits)", (-span, 0.0, span))
    of = {
        (name := head_name(rows.iloc[0])): Panel(
            partial(_panel, tokens=rows, quadrants=shares, limits=limits, span=span),
            name,
            "ablated direct effect (logits)",
            scale,
        )
        for rows, shares in heads
    }
    what = f"the neuron of layer {layer} that repairs most, on each head's top {{top:g}}% of tokens by direct effect"
    return Panels(of, run, (what, *footers.sampled(tables["neurons"])))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    if shown.note is not None:
        return draw_note(shown)
    first, n = next(iter(shown.of.values())), len(shown.of)
    with looks.context():
        figure, axes = layout.square_panels(looks.TWO_COLUMNS, n)
        counts = shown.draw(*axes)
        axes[0].set_ylabel(first.ylabel)
        headings = layout.square_headings(axes, shown.titles(), counts, 34.0)
        below = shown.footer(figure, looks.TWO_COLUMNS)
        layout.lay_out_squares(figure, axes, below, headings, slots=max(n, 4), right_mm=16.0)
        layout.colour_bar(figure, axes[-1], first.scale)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """For each head: on how many of its top tokens the leading neuron does what.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    if (note := note_of(tables)) is not None:
        return find_no_neurons(note)
    columns = ["rank", "layer", "head", "n_tokens", "n_prompts", "quadrant", *inputs.with_interval(SHARE)]
    quadrants = inputs.table(tables, "quadrants", columns)
    layer = tables["quadrants"].attrs["neuron_layer"]
    lines = []
    for _, rows in quadrants.groupby("rank"):
        row = rows.iloc[0]
        share = {name: percentage(one, SHARE) for name, one in rows.set_index("quadrant").iterrows()}
        lines.append(
            f"{head_name(row)}, {int(row['n_tokens']):,} top tokens of {int(row['n_prompts']):,} prompts: the neuron of layer "
            f"{layer} that repairs most does so by Anti-Erasure (negative direct effect, less negative with the head ablated) "
            f"on {share['anti_erasure']} of tokens; its direct effect turns from negative to positive on "
            f"{share['negative_to_positive']}, and grows from zero or more on {share['more_positive']}."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 show Pythia-160M L10H11, on tokens chosen by the MLPs' repair, and name sparse sets of neurons "
        "that implement Anti-Erasure as a mechanism of repair."
    )
    return lines


def _panel(
    ax: Axes, tokens: pd.DataFrame, quadrants: pd.DataFrame, limits: tuple[float, float], span: float
) -> list[str]:
    """Draw one head's tokens and return the counts of what lies outside."""
    layout.square(ax, limits, limits)
    ax.set_xlabel("clean direct effect (logits)")
    guides.zero_line(ax)
    guides.upright_zero_line(ax)
    guides.x_line(ax)
    common: dict[str, Any] = {"linewidth": 0.3, "edgecolor": looks.INK, "zorder": 2}
    ax.scatter(
        tokens[X],
        tokens[Y],
        c=tokens[COLOUR],
        cmap=looks.DIVERGING,
        vmin=-span,
        vmax=span,
        s=8,
        rasterized=len(tokens) > looks.RASTERISE_ABOVE,
        label="_tokens",
        **common,
    )
    # A neuron that repairs lies above y = x, so that there is room below.
    shares = quadrants.set_index("quadrant")[SHARE]
    text = "\n".join(f"{name} {100 * shares[key]:.0f}%" for key, name in QUADRANTS.items())
    ax.text(
        *(0.98, 0.02, text),
        transform=ax.transAxes,
        ha="right",
        va="bottom",
        fontsize=looks.SMALL_SIZE,
        zorder=1,
        bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
    )
    return ranges.mark_outside(ax, np.asarray(tokens[X]), np.asarray(tokens[Y]), looks.INK)
