"""Figure: how much of a head's effect the MLPs repair, in logits and as a fraction of direct effect."""

from matplotlib.figure import Figure

from selfrepair.figures.shared.repair_part import draw_part, finding_of_part, panels_of_part
from selfrepair.figures.style import inputs
from selfrepair.figures.style.panels import Panels
from selfrepair.figures.wording import measured, signs
from selfrepair.quantities import CHOSEN_EXPERTS

LOGITS, FRACTION = "self_repair_from_mlps", "clipped_fraction_from_mlps"


def panels(tables: inputs.Tables) -> Panels:
    """The part of condensed self-repair that comes from the MLPs, by layer of the ablated head.

    Args:
        tables: "heads" and "layers".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    return panels_of_part(tables, LOGITS, FRACTION)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_part(panels(tables))


def finding(tables: inputs.Tables) -> list[str]:
    """The part of condensed self-repair from the MLPs, over the model and in the layer where it is largest.

    Takes the tables of `panels` and "model", and raises what `panels` raises. Gives lines of Markdown.
    """
    lines = finding_of_part(tables, LOGITS, FRACTION, "Rushing & Nanda 2024 trace MLP repair to sparse neurons.")
    if CHOSEN_EXPERTS not in tables["model"]:
        return lines
    names = inputs.with_interval(LOGITS, CHOSEN_EXPERTS)
    model = inputs.table(tables, "model", names, selection="top").iloc[0]
    heads = inputs.table(tables, "heads", names, selection="top")
    return [
        *lines,
        f"The MLPs are mixtures of experts. Of their {measured(model, LOGITS)}, {measured(model, CHOSEN_EXPERTS)} come from a "
        "change of the chosen experts, those that came in less those that went out; by head, the mean is "
        f"{signs(heads, CHOSEN_EXPERTS, 'heads')}.",
    ]
