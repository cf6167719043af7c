"""Figure: how much of a head's effect the final LayerNorm repairs, in logits and as a fraction of direct effect."""

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.shared.repair_part import draw_part, finding_of_part
from selfrepair.figures.style import guides, looks

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
    figure = draw_part(tables, LOGITS, FRACTION)
    with looks.context():
        guides.reference_line(figure.axes[1], PAPER_FRACTION, "Rushing &\nNanda 2024:\nabout 30%")
    return figure


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The part of condensed self-repair from the final LayerNorm, over the model and in the layer where it is largest.

    Takes the tables of `draw` and "model", and raises what `draw` raises. Gives lines of Markdown.
    """
    return finding_of_part(tables, LOGITS, FRACTION, "Rushing & Nanda 2024 put it at about 30% of the direct effect.")
