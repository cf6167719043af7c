"""Figure: how often the Nth best neuron repairs more than some share of the head's direct effect."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.neurons import (
    draw_shares,
    find_no_neurons,
    line_with_band,
    no_neurons,
    rank_axis,
    share_panels,
)
from selfrepair.figures.shared.notes import note_of
from selfrepair.figures.style import inputs, looks
from selfrepair.figures.style.panels import Panels
from selfrepair.figures.wording import head_name, percentage

SHARE = "token_share"
COLUMNS = ("rank", "layer", "head", "n_tokens", "share_of_effect", "nth", *inputs.with_interval(SHARE))


def panels(tables: inputs.Tables) -> Panels:
    """The share of tokens against N, a line for each share of direct effect, a panel a head.

    Args:
        tables: "neuron_share".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    if (note := note_of(tables)) is not None:
        return no_neurons(tables, note)
    table = inputs.table(tables, "neuron_share", COLUMNS)
    run = inputs.settings(tables, "neuron_share")
    layer = tables["neuron_share"].attrs["neuron_layer"]
    last = int(table["nth"].max())

    def panel(ax: Axes, rows: pd.DataFrame) -> None:
        levels = sorted(rows["share_of_effect"].unique(), reverse=True)
        for level, look in zip(levels, looks.ordered_looks(len(levels)), strict=True):
            line = rows[rows["share_of_effect"] == level].sort_values("nth")
            line_with_band(ax, line["nth"], line, SHARE, look, f"{100 * level:g}%")
        rank_axis(ax, last, "N, neurons by repair")

    return share_panels(
        *(table, run, panel, f"neurons of the MLP of layer {layer}", "top tokens", "bands"),
        share="top tokens (%)",
        legend_title="the Nth neuron repairs more than this share of the head's direct effect",
    )


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_shares(panels(tables))


def finding(tables: inputs.Tables) -> list[str]:
    """For each head: how often its best and its tenth neuron repair a tenth and a hundredth of its direct effect.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    if (note := note_of(tables)) is not None:
        return find_no_neurons(note)
    table = inputs.table(tables, "neuron_share", COLUMNS)
    layer = tables["neuron_share"].attrs["neuron_layer"]
    lines = []
    for _, rows in table.groupby("rank"):
        best = rows[rows["nth"] == 1]
        shares = ", ".join(
            f"{100 * row['share_of_effect']:g}% on {percentage(row, SHARE)}" for _, row in best.iterrows()
        )
        lines.append(
            f"{head_name(best.iloc[0])}, {int(best['n_tokens'].iloc[0]):,} top tokens: the best neuron of layer {layer} "
            f"repairs more than this share of the head's direct effect on this share of tokens: {shares}."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 draw the same for Llama-7B L30H8, GPT-2 small L9H11, Pythia-160M L7H8 and Pythia-410M L17H4 "
        "and name sparse sets of neurons as a mechanism of repair."
    )
    return lines
