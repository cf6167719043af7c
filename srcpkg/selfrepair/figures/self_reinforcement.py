"""Figure: how a head answers to its own output in its input, against controls of equal length."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.notes import draw_note, note_of, noted_panels
from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, largest, measured, smallest

CHANGE = "change"
LABELS = {
    "reinforcing": looks.Look(looks.LOOKS["direct_effect"].colour, marker="^"),
    "repressing": looks.Look(looks.LOOKS["self_repair_from_heads"].colour, marker="v"),
    "neither": looks.Look("#9A9A9A", marker="o", hollow=True),
}
ADDED = {
    CHANGE: ("its own output", looks.LOOKS["direct_effect"]),
    "change_with_other": (
        "another head's output",
        looks.Look(looks.LOOKS["self_repair_from_heads"].colour, (0, (4, 1.2)), "s"),
    ),
    "change_with_random": ("a random direction", looks.Look(looks.FAINT, (0, (1.2, 1)), "o", hollow=True)),
}
N_SHOWN = 2
"""Heads whose direct effect rises most, and heads whose falls most, that have a panel each."""

COLUMNS = [
    "layer",
    "head",
    "relative_depth",
    "scale",
    "n_tokens",
    "label",
    *inputs.with_interval("direct_effect", CHANGE),
]


def panels(tables: inputs.Tables) -> Panels:
    """Every head's change at the smallest scale by depth, and the largest changes against the scale.

    Args:
        tables: "reinforcement".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    if (note := note_of(tables)) is not None:
        return noted_panels(tables, note, ["self-reinforcement"])
    table = inputs.table(tables, "reinforcement", [*COLUMNS, *inputs.with_interval("change_with_random")])
    run = inputs.settings(tables, "reinforcement")
    first = table[table["scale"] == table["scale"].min()]
    falling = first.nsmallest(N_SHOWN, CHANGE)
    rising = first.drop(falling.index).nlargest(N_SHOWN, CHANGE)
    shown = [*rising.iterrows(), *falling[::-1].iterrows()]
    of = {"heads": Panel(partial(_heads, heads=first, run=run))}
    for _, head in shown:
        rows = table[(table["layer"] == head["layer"]) & (table["head"] == head["head"])]
        name = head_name(head)
        of[name] = Panel(partial(_scales, rows=rows), name, "change of direct effect (logits)")
    return Panels(of, run, ("top", "bars and bands: {level:g}% intervals over prompts"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    if shown.note is not None:
        return draw_note(shown)
    _, *of_heads = shown.of.values()
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 112.0)
        grid = figure.add_gridspec(2, max(len(of_heads), 1), height_ratios=(1.15, 1))
        top = figure.add_subplot(grid[0, :])
        below: list[Axes] = []
        for number in range(len(of_heads)):
            below.append(figure.add_subplot(grid[1, number], sharey=below[0] if below else None))
        shown.draw_noted(top, *below)
        top.legend(loc="upper left", ncols=3, handletextpad=0.1)
        for letter, ax in zip("abcde", (top, *below), strict=False):
            layout.panel_letter(ax, letter)
        for ax, panel in zip(below, of_heads, strict=True):
            ax.set_title(panel.title)
            ax.tick_params(labelleft=ax is below[0])
        if below:
            below[0].set_ylabel(of_heads[0].ylabel)
            below[0].legend(loc="best")
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _heads(ax: Axes, heads: pd.DataFrame, run: Mapping[str, Any]) -> list[str]:
    n_layers, n_heads = int(run["n_layers"]), int(run["n_heads"])
    ax.set_ylim(ranges.bulk_range(heads[CHANGE], include=[0.0], coverage=0.995))
    guides.depth_axis(ax, n_layers)
    guides.zero_line(ax)
    counts = []
    for label, look in LABELS.items():
        rows = heads[heads["label"] == label]
        x = marks.head_places(rows, n_layers, n_heads)
        ax.vlines(
            x, rows[f"{CHANGE}_low"], rows[f"{CHANGE}_high"], color=look.colour, alpha=0.5, linewidth=0.5, label="_bars"
        )
        ax.scatter(
            x,
            rows[CHANGE],
            s=9,
            marker=look.marker,
            facecolor="white" if look.hollow else look.colour,
            edgecolor=look.colour,
            linewidth=0.6,
            zorder=1.9 if look.hollow else 2,
            label=f"{label}: {len(rows):,}",
        )
        counts += ranges.mark_outside(ax, x, rows[CHANGE], look.colour, noun=label)
    scale = heads["scale"].min() if len(heads) else 1
    times = "once" if scale == 1 else f"{scale:g} times"
    ax.set_ylabel(f"change of direct effect with\nits own output added {times} (logits)")
    return counts


def _scales(ax: Axes, rows: pd.DataFrame) -> list[str]:
    rows = rows.sort_values("scale")
    guides.zero_line(ax)
    x = [0.0, *rows["scale"]]
    for name, (label, look) in ADDED.items():
        if rows[name].isna().all():
            continue
        mean, low, high = ([0.0, *rows[name + end]] for end in ("", "_low", "_high"))
        ax.plot(x, mean, label=label, zorder=3, **looks.line_style(look))
        ax.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=1.8, label="_band")
    ax.set_xticks(x, [f"{scale:g}" for scale in x])
    ax.set_xlabel("times added")
    return []


def finding(tables: inputs.Tables) -> list[str]:
    """How many heads reinforce and repress themselves at each scale, and which do so most.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    if (note := note_of(tables)) is not None:
        return [f"Self-reinforcement is not measured: {note}."]
    table = inputs.table(tables, "reinforcement", COLUMNS)
    level = 100 * float(inputs.settings(tables, "reinforcement")["confidence"])
    n_heads = len(table.drop_duplicates(["layer", "head"]))
    counts = []
    for scale, rows in table.groupby("scale"):
        number = rows["label"].value_counts()
        counts.append(
            f"{number.get('reinforcing', 0):,} reinforce and {number.get('repressing', 0):,} repress themselves with it added "
            f"{'once' if scale == 1 else f'{scale:g} times'}"
        )
    at_every = {
        label: int((table["label"] == label).groupby([table["layer"], table["head"]]).all().sum()) for label in LABELS
    }
    first = table[table["scale"] == table["scale"].min()]
    rises, falls = largest(first, CHANGE), smallest(first, CHANGE)
    return [
        f"Of {n_heads:,} heads with their own output added to their input at their top tokens, {'; '.join(counts)}: their "
        f"direct effect rises, or falls, and does so beyond both controls, each by a {level:g}% interval. The same at every "
        f"scale: {at_every['reinforcing']:,} reinforcing, {at_every['repressing']:,} repressing. "
        "Intervals are a head's own; nothing is done about their number.",
        f"Largest changes at the smallest scale: {measured(rises, CHANGE, 'logits')} in {head_name(rises)}, from "
        f"a direct effect of {measured(rises, 'direct_effect')}, and {measured(falls, CHANGE, 'logits')} in "
        f"{head_name(falls)}, from {measured(falls, 'direct_effect')}; n = "
        f"{int(rises['n_tokens']):,} top tokens each. Rushing & Nanda 2024 do this at scales 1, 3 and 5 in their supplementary "
        "code, as evidence on Iterative Inference; no value of theirs stands beside it here.",
    ]
