"""Figure: how much of a head's effect the final LayerNorm repair, in logits and as a fraction of direct effect."""

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, guides, inputs, layout, looks, marks
from selfrepair.figures.wording import largest, measured, percentage, signs

LOGITS, FRACTION = "self_repair_from_layernorm", "clipped_fraction_from_layernorm"
PAPER_FRACTION = 0.3
"""About what the final LayerNorm repairs of a head's direct effect, as Rushing & Nanda (2024) put it."""


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the part of condensed self-repair that comes from the final LayerNorm, by layer of the ablated head.

    Args:
        tables: "heads" and "layers".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["relative_depth", "layer", *inputs.with_interval(LOGITS, FRACTION)]
    heads = inputs.table(tables, "heads", [*columns, "head"], selection="top")
    layers = inputs.table(tables, "layers", columns, selection="top")
    run = inputs.settings(tables, "heads", "layers")
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 70.0)
        left, right = figure.subplots(1, 2)
        colour = looks.LOOKS[LOGITS].colour
        marks.by_layer_panel(left, heads, layers, LOGITS, run, colour=colour)
        # A clipped fraction lies between 0 and 1: the fixed range lets it be compared with other runs and parts.
        marks.by_layer_panel(right, heads, layers, FRACTION, run, colour=colour, limits=(-0.02, 1.02))
        guides.reference_line(right, PAPER_FRACTION, "Rushing &\nNanda 2024:\nabout 30%")
        layout.panel_letter(left, "a")
        layout.panel_letter(right, "b")
        footers.footer(figure, looks.TWO_COLUMNS, run, "top", "dots and bands")
    return figure


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The part of condensed self-repair from the final LayerNorm, over the model and in the layer where it is largest.

    Args:
        tables: As for `draw`, and "model".

    Returns:
        Lines of Markdown.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    names = inputs.with_interval(LOGITS, FRACTION)
    model = inputs.table(tables, "model", ["n_heads", *names], selection="top").iloc[0]
    heads = inputs.table(tables, "heads", names, selection="top")
    layers = inputs.table(tables, "layers", ["layer", *names], selection="top")
    best = largest(layers, LOGITS)
    return [
        f"Mean over {int(model['n_heads']):,} heads on their top tokens: {measured(model, LOGITS)}, "
        f"{signs(heads, LOGITS, 'heads')}. Largest layer mean: layer {int(best['layer'])}, {measured(best, LOGITS)}.",
        f"Per token, as a share of the direct effect clipped to 0 to 1, mean over heads: {percentage(model, FRACTION)}. "
        "Clipping drops breakage. Rushing & Nanda 2024 put it at about 30% of the direct effect.",
    ]
