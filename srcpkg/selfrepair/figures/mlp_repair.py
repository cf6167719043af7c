"""Figure: how much of a head's effect the MLPs repair, in logits and as a fraction of direct effect."""

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.shared.repair_part import draw_part, finding_of_part

LOGITS, FRACTION = "self_repair_from_mlps", "clipped_fraction_from_mlps"


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the part of condensed self-repair that comes from the MLPs, by layer of the ablated head.

    Args:
        tables: "heads" and "layers".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    return draw_part(tables, LOGITS, FRACTION)


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """The part of condensed self-repair from the MLPs, over the model and in the layer where it is largest.

    Takes the tables of `draw` and "model", and raises what `draw` raises. Gives lines of Markdown.
    """
    return finding_of_part(tables, LOGITS, FRACTION, "Rushing & Nanda 2024 trace MLP repair to sparse neurons.")
