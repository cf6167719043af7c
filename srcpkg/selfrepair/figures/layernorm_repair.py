"""Figure: how much of a head's effect the final LayerNorm repairs, in logits and as a fraction of direct effect."""

from matplotlib.figure import Figure

from selfrepair.figures.shared.repair_part import draw_part, finding_of_part, panels_of_part
from selfrepair.figures.style import inputs
from selfrepair.figures.style.panels import Panels

LOGITS, FRACTION = "self_repair_from_layernorm", "clipped_fraction_from_layernorm"
PAPER_FRACTION = 0.3
"""About what the final LayerNorm repairs of a head's direct effect, as Rushing & Nanda (2024) put it."""


def panels(tables: inputs.Tables) -> Panels:
    """The part of condensed self-repair that comes from the final LayerNorm, by layer of the ablated head.

    Args:
        tables: "heads" and "layers".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    return panels_of_part(tables, LOGITS, FRACTION, PAPER_FRACTION)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_part(panels(tables))


def finding(tables: inputs.Tables) -> list[str]:
    """The part of condensed self-repair from the final LayerNorm, over the model and in the layer where it is largest.

    Takes the tables of `panels` and "model", and raises what `panels` raises. Gives lines of Markdown.
    """
    return finding_of_part(tables, LOGITS, FRACTION, "Rushing & Nanda 2024 put it at about 30% of the direct effect.")
