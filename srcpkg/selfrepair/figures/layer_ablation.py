"""Figure: what later components make up for when a layer's whole attention or whole MLP is ablated (the Hydra effect)."""

from collections.abc import Iterable, Sequence
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import largest, measured, signs
from selfrepair.quantities import POSTNORMS

COMPONENTS = {
    "attention": ("attention", looks.LOOKS["self_repair_from_heads"]),
    "mlp": ("MLP", looks.LOOKS["self_repair_from_mlps"]),
}
SLOPE, R_SQUARED = "slope_compensation", "r_squared_compensation"
NO_LATER = "No later component changes when a whole"
MEANS = {
    "removed": ("removed direct effect", looks.LOOKS["direct_effect"]),
    "compensation": ("compensation", looks.LOOKS["self_repair"]),
    "self_repair_from_layernorm": ("final LayerNorm's part", looks.LOOKS["self_repair_from_layernorm"]),
}


def panels(tables: inputs.Tables) -> Panels:
    """Slope and R^2 of the compensation by depth, and the means that it is made of.

    Args:
        tables: "layers".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    columns = ["component", "relative_depth", *inputs.with_interval(SLOPE, R_SQUARED, *MEANS)]
    table, nothing = _table(tables, columns)
    run = inputs.settings(tables, "layers")
    n_layers = int(run["n_layers"])
    rows = {key: table[table["component"] == key] for key in COMPONENTS}

    def regression(ax: Axes, name: str, label: str) -> list[str]:
        limits = ranges.bulk_range(table[name], include=[0.0, 1.0])
        ax.set_ylabel(label)
        if nothing:
            ax.text(
                0.5, 0.5, f"{NO_LATER}\nattention or MLP is ablated", transform=ax.transAxes,
                ha="center", va="center", color=looks.FAINT,
            )  # fmt: skip
        return _lines(ax, n_layers, limits, ((rows[key], name, *of) for key, of in COMPONENTS.items()))

    def slope(ax: Axes) -> list[str]:
        counts = regression(ax, SLOPE, "slope of compensation\non removed direct effect")
        ax.axhline(1, color=looks.FAINT, linewidth=0.6, linestyle=(0, (4, 2)), zorder=0.6, label="_whole")
        ax.annotate(
            "all made up for", (1, 1), (-2, 2), xycoords=ax.get_yaxis_transform(), textcoords="offset points",
            ha="right", va="bottom", color=looks.FAINT, fontsize=looks.SMALL_SIZE,
        )  # fmt: skip
        return counts

    def means(ax: Axes, key: str) -> list[str]:
        limits = ranges.bulk_range(table[list(MEANS)], include=[0.0])
        ax.set_ylabel(f"mean over all tokens,\n{COMPONENTS[key][0]} ablated (logits)")
        return _lines(ax, n_layers, limits, ((rows[key], column, *of) for column, of in MEANS.items()))

    of = {
        "slope": Panel(slope),
        "r_squared": Panel(partial(regression, name=R_SQUARED, label="R² of that regression")),
        **{key: Panel(partial(means, key=key)) for key in COMPONENTS},
    }
    return Panels(of, run, ("all", "bands"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 118.0)
        axes = figure.subplots(2, 2).ravel()
        shown.draw_noted(*axes)
        entries = layout.legend_entries(axes[0], axes[2])
        figure.legend(*entries, loc="outside upper center", ncols=5, columnspacing=1.2)
        for ax, letter in zip(axes, "abcd", strict=True):
            layout.panel_letter(ax, letter)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _table(tables: inputs.Tables, columns: Sequence[str]) -> tuple[pd.DataFrame, bool]:
    """The table, checked for these columns, and whether nothing follows any layer, so that no slope has a value."""
    compensation = inputs.table(tables, "layers", ["compensation"])["compensation"]
    nothing = bool((compensation == 0).all())
    may_lack = inputs.with_interval(SLOPE, R_SQUARED) if nothing else []
    return inputs.table(tables, "layers", columns, may_lack=may_lack), nothing


def _lines(
    ax: Axes,
    n_layers: int,
    limits: tuple[float, float],
    lines: Iterable[tuple[pd.DataFrame, str, str, looks.Look]],
) -> list[str]:
    ax.set_ylim(limits)
    guides.depth_axis(ax, n_layers)
    guides.zero_line(ax)
    counts: list[str] = []
    for rows, name, label, look in lines:
        marks.layer_line(ax, rows, name, look, label)
        counts += ranges.mark_outside(ax, rows["relative_depth"], rows[name], look.colour, noun=label)
    return counts


def _removed(rows: pd.DataFrame) -> str:
    """What is told of a component that nothing makes up for: why, and the largest mean that its ablation removes."""
    best = largest(rows, "removed")
    return (
        " Nothing reads what it writes but the final norm, so that there is no slope and no R². Mean removed direct effect in "
        f"layer {int(best['layer'])}, over all {int(best['n_tokens']):,} tokens: {measured(best, 'removed', 'logits')}; the "
        f"final LayerNorm's slope is {measured(best, 'slope_layernorm')}."
    )


def finding(tables: inputs.Tables) -> list[str]:
    """Where the compensation follows the removed effect most closely, for attention and for MLPs.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a component.
    """
    names = inputs.with_interval(SLOPE, R_SQUARED, "slope_layernorm", "removed", "compensation")
    table, nothing = _table(tables, ["component", "layer", "n_tokens", *names])
    lines = []
    who = "later heads, MLPs and post-norms" if POSTNORMS in table else "later heads and MLPs"
    for key, (name, _) in COMPONENTS.items():
        of_key = table[table["component"] == key]
        rows = of_key[of_key[R_SQUARED].notna()]
        if rows.empty:
            lines.append(f"{NO_LATER} {name} is ablated.{_removed(of_key) if nothing else ''}")
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
