"""Figure: what later components make up for when a layer's whole attention or whole MLP is ablated (the Hydra effect)."""

from collections.abc import Iterable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.wording import largest, measured, signs
from selfrepair.quantities import POSTNORMS

COMPONENTS = {
    "attention": ("attention", looks.LOOKS["self_repair_from_heads"]),
    "mlp": ("MLP", looks.LOOKS["self_repair_from_mlps"]),
}
SLOPE, R_SQUARED = "slope_compensation", "r_squared_compensation"
MEANS = {
    "removed": ("removed direct effect", looks.LOOKS["direct_effect"]),
    "compensation": ("compensation", looks.LOOKS["self_repair"]),
    "self_repair_from_layernorm": ("final LayerNorm's part", looks.LOOKS["self_repair_from_layernorm"]),
}


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw slope and R^2 of the compensation by depth, and the means that it is made of.

    Args:
        tables: "layers".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    columns = ["component", "relative_depth", *inputs.with_interval(SLOPE, R_SQUARED, *MEANS)]
    table = inputs.table(tables, "layers", columns)
    run = inputs.settings(tables, "layers")
    n_layers = int(run["n_layers"])
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 118.0)
        (slope, r_squared), below = figure.subplots(2, 2)
        for ax, name, label, ends in (
            (slope, SLOPE, "slope of compensation\non removed direct effect", (0.0, 1.0)),
            (r_squared, R_SQUARED, "R² of that regression", (0.0, 1.0)),
        ):
            ax.set_ylim(ranges.bulk_range(table[name], include=ends))
            guides.depth_axis(ax, n_layers)
            guides.zero_line(ax)
            _lines(ax, ((table[table["component"] == key], name, *of) for key, of in COMPONENTS.items()))
            ax.set_ylabel(label)
        slope.axhline(1, color=looks.FAINT, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0.6, label="_whole")
        slope.annotate(
            "all made up for", (1, 1), (-2, 2), xycoords=slope.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="bottom", color=looks.FAINT, fontsize=looks.SMALL_SIZE,
        )  # fmt: skip
        limits = ranges.bulk_range(table[list(MEANS)], include=[0.0])
        for ax, (key, (name, _)) in zip(below, COMPONENTS.items(), strict=True):
            ax.set_ylim(limits)
            guides.depth_axis(ax, n_layers)
            guides.zero_line(ax)
            rows = table[table["component"] == key]
            _lines(ax, ((rows, column, *of) for column, of in MEANS.items()))
            ax.set_ylabel(f"mean over all tokens,\n{name} ablated (logits)")
        figure.legend(*layout.legend_entries(slope, below[0]), loc="outside upper center", ncols=5, columnspacing=1.2)
        for ax, letter in zip((slope, r_squared, *below), "abcd", strict=True):
            layout.panel_letter(ax, letter)
        footers.footer(figure, looks.TWO_COLUMNS, run, "all", "bands")
    return figure


def _lines(ax: Axes, lines: Iterable[tuple[pd.DataFrame, str, str, looks.Look]]) -> None:
    counts = []
    for rows, name, label, look in lines:
        marks.layer_line(ax, rows, name, look, label)
        counts += ranges.mark_outside(ax, rows["relative_depth"], rows[name], look.colour, noun=label)
    ranges.outside_note(ax, counts)


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """Where the compensation follows the removed effect most closely, for attention and for MLPs.

    Takes the tables of `draw` and raises what it raises. Gives lines of Markdown, one a component.
    """
    names = inputs.with_interval(SLOPE, R_SQUARED, "slope_layernorm", "removed", "compensation")
    table = inputs.table(tables, "layers", ["component", "layer", "n_tokens", *names])
    lines = []
    who = "later heads, MLPs and post-norms" if POSTNORMS in table else "later heads and MLPs"
    for key, (name, _) in COMPONENTS.items():
        rows = table[(table["component"] == key) & table[R_SQUARED].notna()]
        if rows.empty:
            lines.append(f"No later component changes when a whole {name} is ablated.")
            continue
        best = largest(rows, R_SQUARED)
        lines.append(
            f"A whole {name} ablated by resampling, over all {int(best['n_tokens']):,} tokens: what {who} "
            f"make up follows the removed direct effect most closely in layer {int(best['layer'])}, with R² "
            f"{measured(best, R_SQUARED)} and slope {measured(best, SLOPE)}; the final LayerNorm's slope is "
            f"{measured(best, 'slope_layernorm')}. Mean removed there: {measured(best, 'removed', 'logits')}, mean "
            f"compensation {measured(best, 'compensation', 'logits')}. Slopes are {signs(rows, SLOPE, 'layers')}."
        )
    lines[0] += (
        " McGrath et al. 2023 (arXiv 2307.15771) call this the Hydra effect: when one attention layer is "
        "ablated, another layer compensates."
    )
    return lines
