"""Figure: on how few neurons the change of the MLP is concentrated."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.neurons import (
    all_neurons,
    draw_shares,
    find_no_neurons,
    line_with_band,
    no_neurons,
    share_panels,
)
from selfrepair.figures.shared.notes import note_of
from selfrepair.figures.style import inputs, looks
from selfrepair.figures.style.panels import Panels
from selfrepair.figures.wording import head_name, measured, percentage

CHANGE, REPAIR, EFFECT = "share_of_change", "share_of_repair", "share_of_direct_effect"
COLUMNS = (
    *("rank", "layer", "head", "n_tokens", "neurons", "neuron_fraction"),
    *inputs.with_interval(CHANGE, REPAIR, EFFECT, "total_absolute_change", "mlp_repair"),
)
LINES = {
    CHANGE: ("absolute change when the head is ablated", looks.LOOKS["self_repair_from_mlps"]),
    EFFECT: ("absolute clean direct effect, for comparison", looks.LOOKS["direct_effect"]),
}


def panels(tables: inputs.Tables) -> Panels:
    """The cumulative share of the neurons' absolute change against the share of neurons, a panel a head.

    Args:
        tables: "neuron_concentration".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    if (note := note_of(tables)) is not None:
        return no_neurons(tables, note)
    table = inputs.table(tables, "neuron_concentration", COLUMNS)
    run = inputs.settings(tables, "neuron_concentration")
    top_percent = tables["neuron_concentration"].attrs["top_percent"]
    what = all_neurons(tables["neuron_concentration"])
    return share_panels(
        *(table, run, partial(_panel, top_percent=top_percent), what, "top", "bands"), share="cumulative share (%)"
    )


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    return draw_shares(panels(tables))


def _panel(ax: Axes, rows: pd.DataFrame, top_percent: int) -> None:
    """The lines of one head, and what its top 1% of neurons carry."""
    line = rows.sort_values("neurons")
    for name, (label, look) in LINES.items():
        line_with_band(ax, line["neuron_fraction"], line, name, look, label)
    ax.plot(
        line["neuron_fraction"],
        line["neuron_fraction"],
        color=looks.FAINT,
        linewidth=0.8,
        dashes=(5, 2),
        label="spread evenly",
    )
    top = line[line["neurons"] == top_percent].iloc[0]
    ax.axvline(top["neuron_fraction"], color=looks.FAINT, linewidth=0.6, zorder=0.5, label="_top")
    ax.annotate(
        f"top 1%:\n{100 * top[CHANGE]:.0f}%",
        (top["neuron_fraction"], 0.08),
        (2, 0),
        textcoords="offset points",
        fontsize=looks.SMALL_SIZE,
        va="bottom",
    )
    ax.set_xscale("log")
    ax.set_xticks([0.001, 0.01, 0.1, 1], ["0.1", "1", "10", "100"])
    ax.minorticks_off()
    ax.set_xlim(line["neuron_fraction"].min() * 0.85, 1.15)
    ax.set_xlabel("neurons, largest first (%)")


def in_short(tables: inputs.Tables) -> list[str]:
    """Whether the change is on fewer neurons than the clean direct effects are; raises what `finding` raises."""
    if (note := note_of(tables)) is not None:
        return find_no_neurons(note)
    table = inputs.table(tables, "neuron_concentration", COLUMNS)
    attrs = tables["neuron_concentration"].attrs
    rows = table[table["neurons"] == attrs["top_percent"]].sort_values("rank")
    first = rows.iloc[0]
    more = int((rows[f"{CHANGE}_low"] > rows[f"{EFFECT}_high"]).sum())
    less = int((rows[f"{CHANGE}_high"] < rows[f"{EFFECT}_low"]).sum())
    return [
        f"**The top 1% of neurons of the MLP of layer {attrs['neuron_layer']} carry {percentage(first, CHANGE)} of its "
        f"change** when {head_name(first)} is ablated. Of its clean direct effects, without any ablation, the top 1% carry "
        f"{percentage(first, EFFECT)}. By intervals that do not overlap, the change is the more concentrated of the two in "
        f"{more} of {len(rows)} chosen heads, the less in {less}. Rushing & Nanda 2024 name sparse sets of neurons as a "
        "mechanism of repair."
    ]


def finding(tables: inputs.Tables) -> list[str]:
    """For each head: what the top 1% of neurons carry of the change, of the repair, and of the clean direct effects.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    if (note := note_of(tables)) is not None:
        return find_no_neurons(note)
    table = inputs.table(tables, "neuron_concentration", COLUMNS)
    attrs = tables["neuron_concentration"].attrs
    lines = []
    for _, rows in table[table["neurons"] == attrs["top_percent"]].groupby("rank"):
        row = rows.iloc[0]
        lines.append(
            f"{head_name(row)}, {int(row['n_tokens']):,} top tokens: the top 1% of neurons ({attrs['top_percent']} of "
            f"{attrs['n_neurons']:,}, layer {attrs['neuron_layer']}) carry {percentage(row, CHANGE)} of the absolute change "
            f"of all, and the top 1% by repair {percentage(row, REPAIR)} of all positive changes. Of the clean direct effects, "
            f"in absolute size, the top 1% carry {percentage(row, EFFECT)}. The changes sum to "
            f"{measured(row, 'total_absolute_change', 'logits')} in absolute size, and to "
            f"{measured(row, 'mlp_repair', 'logits')} with their signs."
        )
    lines[-1] += " Rushing & Nanda 2024 name sparse sets of neurons as a mechanism of repair."
    return lines
