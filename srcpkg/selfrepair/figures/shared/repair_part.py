"""One part of condensed self-repair, in logits and as a fraction of direct effect, by layer of the ablated head."""

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, inputs, layout, looks, marks
from selfrepair.figures.wording import largest, measured, percentage, signs


def draw_part(tables: dict[str, pd.DataFrame], logits: str, fraction: str) -> Figure:
    """Draw the part in logits on the left and its fraction of direct effect on the right.

    Args:
        tables: "heads" and "layers".
        logits: The part, in logits.
        fraction: The same as a clipped fraction of direct effect.

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["relative_depth", "layer", *inputs.with_interval(logits, fraction)]
    heads = inputs.table(tables, "heads", [*columns, "head"], selection="top")
    layers = inputs.table(tables, "layers", columns, selection="top")
    run = inputs.settings(tables, "heads", "layers")
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 70.0)
        left, right = figure.subplots(1, 2)
        colour = looks.LOOKS[logits].colour
        marks.by_layer_panel(left, heads, layers, logits, run, colour=colour)
        # A clipped fraction lies between 0 and 1: the fixed range lets it be compared with other runs and parts.
        marks.by_layer_panel(right, heads, layers, fraction, run, colour=colour, limits=(-0.02, 1.02))
        layout.panel_letter(left, "a")
        layout.panel_letter(right, "b")
        footers.footer(figure, looks.TWO_COLUMNS, run, "top", "dots and bands")
    return figure


def finding_of_part(tables: dict[str, pd.DataFrame], logits: str, fraction: str, paper: str) -> list[str]:
    """The part over the model and in the layer where it is largest, and its fraction of direct effect.

    Args:
        tables: As for `draw_part`, and "model".
        logits: The part, in logits.
        fraction: The same as a clipped fraction of direct effect.
        paper: What the paper says of it, a sentence.

    Returns:
        Lines of Markdown.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    names = inputs.with_interval(logits, fraction)
    model = inputs.table(tables, "model", ["n_heads", *names], selection="top").iloc[0]
    heads = inputs.table(tables, "heads", names, selection="top")
    layers = inputs.table(tables, "layers", ["layer", *names], selection="top")
    best = largest(layers, logits)
    return [
        f"Mean over {int(model['n_heads']):,} heads on their top tokens: {measured(model, logits)}, "
        f"{signs(heads, logits, 'heads')}. Largest layer mean: layer {int(best['layer'])}, {measured(best, logits)}.",
        f"Per token, as a share of the direct effect clipped to 0 to 1, mean over heads: {percentage(model, fraction)}. "
        f"Clipping drops breakage. {paper}",
    ]
