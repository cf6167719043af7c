"""Figure: self-repair on tokens chosen in several ways, as a control of choosing them by direct effect."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import measured, percentage, verdict
from selfrepair.quantities import QUANTITIES

BY_LAYER = "self_repair"
OVER_MODEL = ("pooled_repair_fraction", "repair_slope")
SLOPE = "self-repair per removed effect (slope)"

CHOICES = {
    "top": ("direct effect", looks.Look(looks.LOOKS["direct_effect"].colour, "-", "o")),
    "absolute": ("|direct effect|", looks.Look(looks.LOOKS["direct_effect"].colour, (0, (3, 1.2)), "o", hollow=True)),
    "other_donor": ("effect removed by another donor", looks.Look(looks.INK, "-", "D")),
    "removed": ("effect removed by the same donor", looks.Look(looks.INK, (0, (3, 1.2)), "D", hollow=True)),
    "random": ("chance", looks.Look(looks.FAINT, (0, (1.2, 1)), "s")),
}
"""What the tokens are chosen by: its name and look."""


def panels(tables: inputs.Tables) -> Panels:
    """Self-repair by layer, and its share and slope over the model, a line or dot a choice of tokens.

    Args:
        tables: "layers" and "model".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    layers = inputs.table(tables, "layers", ["choice", "relative_depth", *inputs.with_interval(BY_LAYER)])
    model = inputs.table(tables, "model", ["choice", *inputs.with_interval(*OVER_MODEL)])
    run = inputs.settings(tables, "layers", "model")
    what = (
        "means over {top:g}% of tokens, chosen in several ways",
        "bands and bars: {level:g}% intervals over prompts",
    )
    of = {"by_layer": Panel(partial(_by_layer, layers=layers, n_layers=int(run["n_layers"])))}
    of |= {quantity: Panel(partial(_over_model, model=model, quantity=quantity)) for quantity in OVER_MODEL}
    return Panels(of, run, what, legend_title="tokens chosen")


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 84.0)
        grid = figure.add_gridspec(2, 2, width_ratios=[1.25, 1])
        left, *right = (figure.add_subplot(grid[at]) for at in ((slice(None), 0), (0, 1), (1, 1)))
        shown.draw_noted(left, *right)
        for ax, letter in zip((left, *right), "abc", strict=True):
            layout.panel_letter(ax, letter)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, title=shown.legend_title)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _by_layer(ax: Axes, layers: pd.DataFrame, n_layers: int) -> list[str]:
    guides.depth_axis(ax, n_layers)
    guides.zero_line(ax)
    ax.set_ylim(ranges.bulk_range(include=[0.0, layers[inputs.with_interval(BY_LAYER)]]))
    for choice, (name, look) in CHOICES.items():
        marks.layer_line(ax, layers[layers["choice"] == choice], BY_LAYER, look, f"by {name}")
    ax.set_ylabel(guides.axis_label(BY_LAYER))
    return []


def _over_model(ax: Axes, model: pd.DataFrame, quantity: str) -> list[str]:
    """One quantity over the model, a row a choice; what is outside the range is told in words."""
    rows = {str(row["choice"]): row for _, row in model.iterrows()}
    # Effects of both signs cancel in a random choice, and leave its fraction anywhere.
    near = model[model["choice"] != "random"] if quantity == "pooled_repair_fraction" else model
    ax.set_xlim(ranges.bulk_range(include=[0.0, near[inputs.with_interval(quantity)]]))
    guides.upright_zero_line(ax)
    ax.set_xlabel(QUANTITIES[quantity].axis if quantity in QUANTITIES else SLOPE)
    places = list(CHOICES)[::-1]
    ax.set_ylim(-0.6, len(places) - 0.4)
    ax.set_yticks(range(len(places)), [CHOICES[choice][0] for choice in places])
    ax.tick_params(axis="y", length=0)
    left, right = ax.get_xlim()
    for place, choice in enumerate(places):
        look = CHOICES[choice][1]
        value, low, high = (float(rows[choice][quantity + end]) for end in ("", "_low", "_high"))
        if not left <= value <= right:
            text = f"outside: {measured(rows[choice], quantity)}"
            ax.annotate(
                text,
                (0.5, place),
                xycoords=ax.get_yaxis_transform(),
                ha="center",
                va="center",
                color=looks.FAINT,
                fontsize=looks.SMALL_SIZE,
            )
            continue
        ax.hlines(place, low, high, color=look.colour, linewidth=1.0, zorder=2)
        ax.plot(value, place, zorder=3, **{**looks.line_style(look), "linestyle": "none"})
    return []


def in_short(tables: inputs.Tables) -> list[str]:
    """Whether the share repaired hangs on how tokens are chosen; takes "model" and raises what `finding` raises."""
    share = "pooled_repair_fraction"
    model = inputs.table(tables, "model", ["choice", *inputs.with_interval(share, f"{share}_minus_top")])
    rows = {str(choice): row for choice, (_, row) in zip(model["choice"], model.iterrows(), strict=True)}
    other = rows["other_donor"]
    title = {
        "above": "a larger share is repaired",
        "below": "a smaller share is repaired",
        "unclear": "the share repaired is the same, as far as the intervals tell",
    }[verdict(other, f"{share}_minus_top")]
    return [
        f"**On tokens chosen otherwise than by direct effect {title}**: {percentage(other, share)} where the effect that "
        f"another donor removes chooses them, {percentage(rows['top'], share)} by direct effect, a difference of "
        f"{measured(other, f'{share}_minus_top')}. Rushing & Nanda 2024 show no such control."
    ]


def finding(tables: inputs.Tables) -> list[str]:
    """What choosing tokens otherwise changes of self-repair over the model.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    shares = ("self_repair", "pooled_repair_fraction", "repair_slope")
    differences = [f"{name}_minus_top" for name in shares]
    model = inputs.table(tables, "model", ["choice", "n_heads", *inputs.with_interval(*shares, *differences)])
    rows = {str(choice): row for choice, (_, row) in zip(model["choice"], model.iterrows(), strict=True)}
    top, same, other, random = (rows[choice] for choice in ("top", "removed", "other_donor", "random"))
    return [
        f"Means over {int(top['n_heads']):,} heads, each on as many tokens. Chosen by direct effect, self-repair is "
        f"{measured(top, 'self_repair')}, {percentage(top, 'pooled_repair_fraction')} of what is removed; by the size of the "
        f"direct effect, of either sign, {measured(rows['absolute'], 'self_repair')}, "
        f"{percentage(rows['absolute'], 'pooled_repair_fraction')}; at random, {measured(random, 'self_repair')}.",
        "Chosen by the effect that ablation removes, the share repaired is "
        f"{percentage(same, 'pooled_repair_fraction')} where the same donor chooses and measures, and "
        f"{percentage(other, 'pooled_repair_fraction')} where another donor chooses: from the share by direct effect "
        f"they differ by {measured(same, 'pooled_repair_fraction_minus_top')} and "
        f"{measured(other, 'pooled_repair_fraction_minus_top')}. What the first has more than the second is "
        "what choosing and measuring with the same donor adds (regression to the mean).",
        "Self-repair per removed effect, the slope over the chosen tokens: "
        + ", ".join(
            f"{measured(rows[choice], 'repair_slope')} chosen by {name}" for choice, (name, _) in CHOICES.items()
        )
        + ". Rushing & Nanda 2024 choose by direct effect alone and show no such control.",
    ]
