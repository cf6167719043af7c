"""Figure: self-repair against the depth of the ablated head, beside the paper's published models."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import inputs, layout, looks, marks
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import decimal, largest, measured, percentage, signs, smallest, verdict

QUANTITY = "self_repair"
OVERALL = (QUANTITY, "pooled_repair_fraction")


def panels(tables: inputs.Tables) -> Panels:
    """Condensed self-repair by layer.

    Args:
        tables: "heads" and "layers" of this run; and "published" (resources/published/self_repair_by_head.csv), without which
            there are no lines of published models.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["relative_depth", "layer", *inputs.with_interval(QUANTITY)]
    heads = inputs.table(tables, "heads", [*columns, "head"], selection="top")
    layers = inputs.table(tables, "layers", columns, selection="top")
    run = inputs.settings(tables, "heads", "layers")
    means = _layer_means(tables)

    def panel(ax: Axes) -> list[str]:
        colour = looks.LOOKS[QUANTITY].colour
        counts = marks.by_layer_panel(ax, heads, layers, QUANTITY, run, colour=colour, include=[means[QUANTITY]])
        _published_lines(ax, means)
        return counts

    return Panels({"self_repair": Panel(panel)}, run, ("top", "dots and bands"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page one column wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.ONE_COLUMN, 82.0)
        ax = figure.subplots()
        shown.draw_noted(ax)
        _legend(figure, ax)
        shown.footer(figure, looks.ONE_COLUMN)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """How much the model repairs, at what depth it repairs most, and where the published models do.

    Takes the tables of `panels` and "model", and raises what `panels` raises. Gives lines of Markdown.
    """
    columns = ["n_heads", *inputs.with_interval(QUANTITY, "pooled_repair_fraction")]
    model = inputs.table(tables, "model", columns, selection="top").iloc[0]
    heads = inputs.table(tables, "heads", ["n_tokens", *inputs.with_interval(QUANTITY)], selection="top")
    layers = inputs.table(
        tables, "layers", ["layer", "relative_depth", *inputs.with_interval(QUANTITY)], selection="top"
    )
    best, worst = largest(layers, QUANTITY), smallest(layers, QUANTITY)
    means = _layer_means(tables)
    peaks = [(str(model), largest(rows, QUANTITY)) for model, rows in means.groupby("model", sort=False)]
    told = [
        f"{looks.published_look(model)[0]} {decimal(row[QUANTITY], 2)} at depth {row['relative_depth']:.2f}"
        for model, row in peaks
    ]
    return [
        f"The rest of the model restores {percentage(model, 'pooled_repair_fraction')} of what ablation removes, pooled over "
        f"the {int(heads['n_tokens'].max()):,} top tokens of each of {int(model['n_heads']):,} heads: "
        f"{measured(model, QUANTITY)} a head. The mean over a head's top tokens is {signs(heads, QUANTITY, 'heads')}. "
        "Rushing & Nanda 2024 find self-repair in every model family that they test, imperfect and varying by head.",
        f"The layer means are {signs(layers, QUANTITY, 'layers')}. Largest: layer {int(best['layer'])} (relative depth "
        f"{best['relative_depth']:.2f}), {measured(best, QUANTITY)}. Smallest: layer {int(worst['layer'])} "
        f"({worst['relative_depth']:.2f}), {measured(worst, QUANTITY)}.",
        *([f"Largest layer means published, in logits: {', '.join(told)}."] if told else []),
    ]


SIGNS = {
    "above": "The model repairs itself",
    "below": "The model breaks further",
    "unclear": "Whether the model repairs itself is not told by this run",
}


def in_short(tables: inputs.Tables) -> list[str]:
    """Whether the model repairs itself, and where; takes the tables of `finding` and raises what it raises."""
    model = inputs.table(tables, "model", ["n_heads", *inputs.with_interval(*OVERALL)], selection="top").iloc[0]
    heads = inputs.table(tables, "heads", inputs.with_interval(QUANTITY), selection="top")
    layers = inputs.table(
        tables, "layers", ["layer", "relative_depth", *inputs.with_interval(QUANTITY)], selection="top"
    )
    sign = verdict(model, QUANTITY)
    share = f"{percentage(model, 'pooled_repair_fraction')} of what ablating a head removes"
    does = {
        "above": f"restores {share}",
        "below": f"takes more away, restoring {share}",
        "unclear": f"restores {share}, with zero in the interval of the mean",
    }[sign]
    best, worst = largest(layers, QUANTITY), smallest(layers, QUANTITY)
    where = {
        "above": f"It repairs most in layer {int(best['layer'])}",
        "below": f"No layer repairs, and layer {int(best['layer'])} breaks the least",
        "unclear": f"Its largest layer mean, in layer {int(best['layer'])}, is not told from zero",
    }[verdict(best, QUANTITY)]
    peaks = [largest(rows, QUANTITY)["relative_depth"] for _, rows in _layer_means(tables).groupby("model")]
    theirs = (
        f" Layer means that Rushing & Nanda 2024 publish peak at depths {min(peaks):.2f} to {max(peaks):.2f}."
        if peaks
        else ""
    )
    return [
        f"**{SIGNS[sign]}**: on each head's top tokens, the rest of the model {does}, {measured(model, QUANTITY)} a head. The "
        f"heads' means are {signs(heads, QUANTITY, 'heads')}. Rushing & Nanda 2024 find self-repair in every model family that "
        "they test, imperfect and varying by head.",
        f"**{where}** (relative depth {best['relative_depth']:.2f}, where 0 is the first layer and 1 the last): "
        f"{measured(best, QUANTITY)}, the largest of {len(layers)} layer means. They are "
        f"{signs(layers, QUANTITY, 'layers')}; the smallest is layer {int(worst['layer'])} with {measured(worst, QUANTITY)}."
        f"{theirs}",
    ]


def _layer_means(tables: inputs.Tables) -> pd.DataFrame:
    """Mean over the heads of each published (model, layer), with the layer's relative depth; no rows without any."""
    if "published" not in tables:
        return pd.DataFrame({"model": [], "layer": [], QUANTITY: [], "relative_depth": []})
    published = inputs.table(tables, "published", ["model", "layer", QUANTITY])
    means = published.groupby(["model", "layer"], sort=False, as_index=False)[QUANTITY].mean()
    last = means.groupby("model")["layer"].transform("max").clip(lower=1)
    return means.assign(relative_depth=means["layer"] / last)


def _published_lines(ax: Axes, means: pd.DataFrame) -> None:
    for model, rows in means.groupby("model", sort=False):
        name, look = looks.published_look(str(model))
        ax.plot(
            rows["relative_depth"],
            rows[QUANTITY],
            label=f"{name}, published",
            zorder=2.5,
            linewidth=0.8,
            markersize=2.2,
            **looks.line_style(look),
        )


def _legend(figure: Figure, ax: Axes) -> None:
    """This run in the first row, the published models below."""
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    ours = [label for label in handles if label.startswith("this run")]
    rest = [label for label in handles if label not in ours]
    half = (len(rest) + 1) // 2
    order = [*ours[1:], *rest[:half], *ours[:1], *rest[half:]]
    figure.legend([handles[label] for label in order], order, loc="outside upper center", ncols=2)
