"""Figure: whether the same neurons repair on every token."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.neurons import (
    all_neurons,
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
COLUMNS = (
    *("rank", "layer", "head", "n_tokens", "top", "n_neurons", "neuron_rank", "neuron"),
    *inputs.with_interval(SHARE),
)


def panels(tables: inputs.Tables) -> Panels:
    """The share of tokens on which each neuron is among the top ones, neurons sorted by it, a panel a head.

    Args:
        tables: "neuron_consistency".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    if (note := note_of(tables)) is not None:
        return no_neurons(tables, note)
    table = inputs.table(tables, "neuron_consistency", COLUMNS)
    run = inputs.settings(tables, "neuron_consistency")
    last = int(table["neuron_rank"].max())

    def panel(ax: Axes, rows: pd.DataFrame) -> None:
        tops = sorted(rows["top"].unique().tolist())
        for top, look in zip(tops, looks.ordered_looks(len(tops)), strict=True):
            line = rows[rows["top"] == top].sort_values("neuron_rank")
            line_with_band(ax, line["neuron_rank"], line, SHARE, look, _among(top))
        lead = rows[rows["top"] == 1].iloc[0]
        text = f"{int(lead['n_neurons']):,} neurons lead\non {int(lead['n_tokens']):,} tokens"
        ax.text(0.98, 0.98, text, transform=ax.transAxes, ha="right", va="top", fontsize=looks.SMALL_SIZE)
        rank_axis(ax, last, "neurons, most frequent first")

    return share_panels(
        *(table, run, panel, all_neurons(tables["neuron_consistency"]), "top tokens", "bands"),
        share="top tokens (%)",
        legend_title="the neuron is, by repair,",
    )


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_shares(panels(tables))


def _among(top: int) -> str:
    return "the first" if top == 1 else f"among the first {top}"


def finding(tables: inputs.Tables) -> list[str]:
    """For each head: how many neurons lead on some token, and how often the most frequent one does.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    if (note := note_of(tables)) is not None:
        return find_no_neurons(note)
    table = inputs.table(tables, "neuron_consistency", COLUMNS)
    attrs = tables["neuron_consistency"].attrs
    lines = []
    for _, rows in table[table["neuron_rank"] == 1].groupby("rank"):
        lead = rows[rows["top"] == 1].iloc[0]
        more = "; ".join(
            f"neuron {int(row['neuron'])} is {_among(int(row['top']))} on {percentage(row, SHARE)}"
            for _, row in rows[rows["top"] > 1].iterrows()
        )
        lines.append(
            f"{head_name(lead)}: over {int(lead['n_tokens']):,} top tokens, {int(lead['n_neurons']):,} of the "
            f"{attrs['n_neurons']:,} neurons of layer {attrs['neuron_layer']} repair most on some token. The most frequent "
            f"leader, neuron {int(lead['neuron'])}, leads on {percentage(lead, SHARE)} of tokens{'; ' * bool(more)}{more}."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 show the share of Pythia-160M L10H11's tokens with each neuron among the top ones, on tokens "
        "chosen by the MLPs' repair: different neurons repair on different tokens."
    )
    return lines
