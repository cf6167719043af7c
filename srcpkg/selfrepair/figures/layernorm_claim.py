"""Figure: whether the final LayerNorm repairs about 30% of the direct effect, by what is meant, and with its scale frozen."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import decimal, head_name, largest, measured, percentage

FRACTION = "fraction"
THIS_RUN = "this run"
CLAIM = 0.3
"""About what the final LayerNorm repairs of a head's direct effect, as Rushing & Nanda (2024) put it."""
FULL, CLOSED, REALLY = "logit_change", "frozen_layernorm_logit_change", "really_frozen_logit_change"


def panels(tables: inputs.Tables) -> Panels:
    """Every reading of the share, beside the published values; and what freezing the scale does to the logit.

    Args:
        tables: "claim" and "frozen".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    claim, frozen = _claim(tables), _frozen(tables)
    run = inputs.settings(tables, "claim", "frozen")
    of = {"readings": Panel(partial(_readings, claim=claim)), "frozen": Panel(partial(_freezing, frozen=frozen))}
    return Panels(of, run, ("each head's top {top:g}% of tokens by direct effect", "bars"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 88.0)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        shown.draw_noted(left, right)
        layout.panel_letter(left, "a")
        layout.panel_letter(right, "b")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=5, handletextpad=0.2)
        right.legend(loc="lower left", handletextpad=0.2)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """Each reading of the share with its interval, which of them hold the claim, and how well freezing agrees.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    claim, frozen = _claim(tables), _frozen(tables)
    lines = []
    for layers, rows in claim.groupby("layers", sort=False):
        own = rows[rows["source"] == THIS_RUN]
        if own.empty:
            continue
        first = own.iloc[0]
        where = _where(layers, first["layer"])
        each = "; ".join(f"{row['reading']}: {percentage(row, FRACTION)}" for _, row in own.iterrows())
        holding = own[own["fraction_low"].le(CLAIM) & own["fraction_high"].ge(CLAIM)]["reading"]
        verdict = f"30% lies in the interval of: {', '.join(holding)}" if len(holding) else "no interval holds 30%"
        others = rows[rows["source"] != THIS_RUN]
        published = "; ".join(
            f"{reading}: {', '.join(decimal(100 * value, 0) for value in of[FRACTION])}%"
            for reading, of in others.groupby("reading", sort=False)
        )
        names = ", ".join(looks.published_look(name)[0] for name in others["source"].unique())
        lines.append(
            f"LayerNorm part as a share of the direct effect, {where}, {int(first['n_heads'])} heads on their top tokens: "
            f"{each}; {verdict}. Rushing & Nanda 2024 put it at about 30%; the same readings of their published results "
            f"({names}): {published}."
        )
    left = frozen["layernorm_part_left"].max()
    worst = largest(frozen, "largest_difference")
    heads = "; ".join(
        f"{head_name(row)} {measured(row, REALLY, 'logits')} frozen, {measured(row, FULL)} as it is"
        for _, row in frozen.iterrows()
    )
    lines.append(
        "Mean logit change on top tokens with the final scale really frozen in the model, and as it is: "
        f"{heads}. The closed form is off from that by {worst['largest_difference']:.1e} logits at most on any token, where "
        f"rounding explains {worst['allowed_difference']:.1e}; of the LayerNorm part {left:.1e} logits are left at most. "
        "Rushing & Nanda 2024 take as this part what heads and MLPs leave over."
    )
    return lines


def in_short(tables: inputs.Tables) -> list[str]:
    """Which readings of the share hold the paper's value; takes "claim" and raises what `finding` raises."""
    claim = _claim(tables)
    own = claim[claim["source"] == THIS_RUN]
    if own.empty:
        return []
    holding = own["fraction_low"].le(CLAIM) & own["fraction_high"].ge(CLAIM)
    first = own[own["layers"] == own["layers"].iloc[0]]
    each = "; ".join(f"{row['reading']} {percentage(row, FRACTION)}" for _, row in first.iterrows())
    none = "none" if not holding.any() else f"{int(holding.sum())}"
    return [
        f"**LayerNorm's share of the direct effect is 30% in {none} of {len(own)} readings**, by their intervals. Over "
        f"{_where(first['layers'].iloc[0], first['layer'].iloc[0])}: {each}. Rushing & Nanda 2024 put it at about 30%."
    ]


def _claim(tables: inputs.Tables) -> pd.DataFrame:
    columns = ["source", "layers", "layer", "reading", *inputs.with_interval(FRACTION), "n_heads"]
    return inputs.table(tables, "claim", columns)


def _frozen(tables: inputs.Tables) -> pd.DataFrame:
    columns = ["layer", "head", *inputs.with_interval(FULL, CLOSED, REALLY)]
    return inputs.table(tables, "frozen", [*columns, "largest_difference", "allowed_difference", "layernorm_part_left"])


def _where(layers: Any, layer: Any) -> str:
    return "all layers" if pd.isna(layer) else f"{layers} layer"


def _readings(ax: Axes, claim: pd.DataFrame) -> list[str]:
    """A row a reading, the sets of layers under each other; the sources of a row a little apart."""
    places: dict[tuple[str, str], float] = {}
    ticks: list[tuple[float, str, str]] = []
    y = 0.0
    for layers, rows in claim.groupby("layers", sort=False):
        ticks.append((y, _where(layers, rows["layer"].iloc[0]), "bold"))
        for reading in rows["reading"].unique():
            y += 1
            places[str(layers), reading] = y
            ticks.append((y, reading, "normal"))
        y += 1.2
    named = {
        source: looks.published_look(source) if source != THIS_RUN else (THIS_RUN, looks.Look(looks.INK, "-", "D"))
        for source in claim["source"].unique()
    }
    middle = (len(named) - 1) / 2
    for number, (source, (name, look)) in reversed([*enumerate(named.items())]):
        rows = claim[claim["source"] == source]
        apart = 0.15 * (number - middle)
        at = [places[key] + apart for key in zip(rows["layers"], rows["reading"], strict=True)]
        ax.hlines(at, rows["fraction_low"], rows["fraction_high"], color=look.colour, linewidth=1.0, zorder=2.9)
        label = name if source == THIS_RUN else f"{name}, published"
        ax.plot(rows[FRACTION], at, **{**looks.line_style(look), "linestyle": "none"}, label=label, zorder=3)
    guides.upright_zero_line(ax)
    ax.axvline(CLAIM, color=looks.INK, linewidth=0.8, dashes=(5, 2), zorder=0.8, label="_claim")
    ax.annotate(
        "about 30%",
        (CLAIM, 1),
        (0, 2),
        xycoords=ax.get_xaxis_transform(),
        textcoords="offset points",
        ha="center",
        fontsize=looks.SMALL_SIZE,
    )
    ax.set_yticks([place for place, _, _ in ticks], [text for _, text, _ in ticks])
    for label, (_, _, weight) in zip(ax.get_yticklabels(), ticks, strict=True):
        label.set_fontweight(weight)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(y - 0.5, -0.6)
    ax.set_xlabel("LayerNorm part as a share of direct effect")
    return []


def _freezing(ax: Axes, frozen: pd.DataFrame) -> list[str]:
    """A row a head: the logit change as it is, and with the scale frozen, by formula and in the model."""
    y = np.arange(len(frozen))
    green = looks.LOOKS["self_repair_from_layernorm"].colour
    pink = looks.LOOKS[FULL].colour
    for name, label, colour, marker, size, face in (
        (FULL, "as it is", pink, "v", 4.0, pink),
        (CLOSED, "scale frozen: closed form", green, "o", 6.0, "none"),
        (REALLY, "scale frozen: in the model", green, ".", 4.0, green),
    ):
        at = y + (0.12 if name == FULL else 0)
        if name != CLOSED:
            ax.hlines(at, frozen[f"{name}_low"], frozen[f"{name}_high"], color=colour, linewidth=0.8, zorder=2)
        ax.plot(
            frozen[name],
            at,
            linestyle="none",
            marker=marker,
            markersize=size,
            color=colour,
            markerfacecolor=face,
            label=label,
        )
    guides.upright_zero_line(ax)
    ax.set_yticks(y, [head_name(row) for _, row in frozen.iterrows()])
    ax.tick_params(axis="y", length=0)
    # Room for the legend under the last head.
    ax.set_ylim(len(frozen) + 0.6, -0.5)
    ax.set_xlabel("mean logit change (logits)")
    return []
