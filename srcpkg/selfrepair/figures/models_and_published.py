"""Figure: heads of all models of the run beside the paper's, by third of depth."""

import pandas as pd
from matplotlib.figure import Figure

from selfrepair.figures.shared import models
from selfrepair.figures.shared.distributions import (
    COLUMNS,
    Models,
    distribution_lines,
    distribution_panels,
    draw_distributions,
    published_models,
)
from selfrepair.figures.style import inputs
from selfrepair.figures.style.panels import Panels


def panels(tables: inputs.Tables) -> Panels:
    """Quantiles over heads by third of depth, of every model.

    Args:
        tables: "distributions" of all models (`selfrepair.tables.all_models`).

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    run = inputs.settings(tables, "distributions")
    table, names = _keyed(tables)
    return distribution_panels(table, run, names)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_distributions(panels(tables))


def _keyed(tables: inputs.Tables) -> tuple[pd.DataFrame, Models]:
    """The table with each model under a key of its own, as a model of the run may be called as a published one is."""
    table = inputs.table(tables, "distributions", [*COLUMNS, "published"])
    run = inputs.settings(tables, "distributions")
    own = {f"own {model}": (model, look) for model, look in models.model_looks(run).items()}
    keys = [
        model if published else f"own {model}"
        for model, published in zip(table["model"], table["published"], strict=True)
    ]
    theirs = published_models(table[table["published"]]["model"].unique())
    return table.assign(model=keys), {**own, **theirs}


def in_short(tables: inputs.Tables) -> list[str]:
    """Median self-repair beside the published models'; takes the table of `panels` and raises what it raises."""
    line = distribution_lines(*_keyed(tables))[0]
    return [f"**Beside the models of Rushing & Nanda 2024**: {line} Brackets are intervals over heads."]


def finding(tables: inputs.Tables) -> list[str]:
    """How the models' distributions lie beside the published ones.

    Takes the table of `draw` and raises what it raises. Gives lines of Markdown.
    """
    return distribution_lines(*_keyed(tables))
