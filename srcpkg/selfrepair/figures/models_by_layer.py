"""Figure: self-repair of all models of the run against the depth of the ablated head."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared import models
from selfrepair.figures.shared.parts import told
from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import largest, measured, percentage, signs, smallest, verdict
from selfrepair.quantities import PARTS, held

QUANTITY, SHARE = "self_repair", "pooled_repair_fraction"


def panels(tables: inputs.Tables) -> Panels:
    """Condensed self-repair by layer, a dot a head and a line a model.

    Args:
        tables: "heads" and "layers" of all models (`selfrepair.tables.all_models`).

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["model", "relative_depth", "layer", *inputs.with_interval(QUANTITY)]
    heads = inputs.table(tables, "heads", [*columns, "head"], selection="top")
    layers = inputs.table(tables, "layers", columns, selection="top")
    run = inputs.settings(tables, "heads", "layers")

    def panel(ax: Axes) -> list[str]:
        ax.set_ylim(ranges.bulk_range(heads[QUANTITY], include=[0.0, layers[inputs.with_interval(QUANTITY)]]))
        guides.depth_axis(ax, min(run["n_layers"]))
        guides.zero_line(ax)
        ax.set_ylabel(guides.axis_label(QUANTITY))
        outside: list[str] = []
        for model, look in models.model_looks(run).items():
            of_heads, of_layers = heads[heads["model"] == model], layers[layers["model"] == model]
            n_layers, n_heads = (models.setting(run, name, model) for name in ("n_layers", "n_heads"))
            x = marks.head_dots(ax, of_heads, QUANTITY, look.colour, n_layers, n_heads)
            marks.layer_line(ax, of_layers, QUANTITY, look, model)
            outside += ranges.mark_outside(ax, x, of_heads[QUANTITY], look.colour, noun=f"of {model}")
        return outside

    return Panels({"self_repair": Panel(panel)}, run, ("top", "dots and bands"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide, each line named at its right end."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 92.0)
        ax = figure.subplots()
        shown.draw_noted(ax)
        of_models = models.model_looks(shown.run)
        ends = {str(line.get_label()): float(np.asarray(line.get_ydata())[-1]) for line in ax.lines}
        _names(ax, [(ends[model], model, look.colour) for model, look in of_models.items()])
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _names(ax: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Each model's name at the right end of its line, apart from the others."""
    low, high = ax.get_ylim()
    step = 0.045 * (high - low)
    # From below, each as high as its line's end or just above the one before.
    place = low - step
    for y, name, colour in sorted(ends):
        place = max(y, place + step)
        ax.annotate(
            name,
            (1, y),
            (guides.NAME_OFFSET, place),
            textcoords=("axes fraction", "data"),
            va="center",
            ha="left",
            color=colour,
            fontsize=looks.TEXT_SIZE,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkA": 1, "shrinkB": 2},
        )


def in_short(tables: inputs.Tables) -> list[str]:
    """Which models repair themselves, where and by what; takes the tables of `finding` and raises what it raises."""
    parts = held(PARTS, tables["model"].columns) if "model" in tables else PARTS
    means = inputs.table(tables, "model", ["model", *inputs.with_interval(QUANTITY, SHARE, *parts)], selection="top")
    layers = inputs.table(
        tables, "layers", ["model", "layer", "relative_depth", *inputs.with_interval(QUANTITY)], selection="top"
    )
    rows = [row for _, row in means.iterrows()]
    number = {sign: sum(verdict(row, QUANTITY) == sign for row in rows) for sign in ("above", "below", "unclear")}
    themselves = f"{number['above']} of {len(rows)} models repair themselves"
    each = [f"{row['model']}: {told(row, parts)}" for row in rows]
    others = [
        *([f"{number['below']} break further"] if number["below"] else []),
        *([f"of {number['unclear']} it is not told"] if number["unclear"] else []),
    ]
    shares = "; ".join(f"{row['model']} {percentage(row, SHARE)}, {measured(row, QUANTITY)} a head" for row in rows)
    most, least = largest(means, SHARE), smallest(means, SHARE)
    apart = most[f"{SHARE}_low"] > least[f"{SHARE}_high"]
    best = [largest(layers[layers["model"] == row["model"]], QUANTITY) for row in rows]
    where = "; ".join(
        f"{layer['model']} in layer {int(layer['layer'])} (relative depth {layer['relative_depth']:.2f}), "
        f"{measured(layer, QUANTITY)}"
        for layer in best
    )
    return [
        f"**{', '.join([themselves, *others])}**: of what ablating a head "
        f"removes, the rest of the model restores, on each head's top tokens, {shares}. Rushing & Nanda 2024 find self-repair "
        "in every model family that they test.",
        f"**{most['model']} restores the largest share and {least['model']} the smallest; their intervals "
        f"{'do not overlap' if apart else 'overlap'}.** Each model is measured on tokens of its own: they cut the same text "
        "apart in other ways.",
        f"**Where the largest layer mean is**: {where}.",
        f"**What repairs**: {'; '.join(each)}. Rushing & Nanda 2024 name LayerNorm scaling and sparse MLP neurons.",
    ]


def finding(tables: inputs.Tables) -> list[str]:
    """How much each model repairs, at what depth most, and by what there.

    Takes the tables of `panels` and "model", and raises what `panels` raises. Gives lines of Markdown.
    """
    columns = ["model", "n_heads", *inputs.with_interval(QUANTITY, "pooled_repair_fraction")]
    means = inputs.table(tables, "model", columns, selection="top").set_index("model")
    parts = held(PARTS, tables["layers"].columns) if "layers" in tables else PARTS
    columns = ["model", "layer", "relative_depth", *inputs.with_interval(QUANTITY, *parts)]
    layers = inputs.table(tables, "layers", columns, selection="top")
    lines = []
    for model in inputs.settings(tables, "layers", "model")["model"]:
        row, of_layers = means.loc[model], layers[layers["model"] == model]
        best = largest(of_layers, QUANTITY)
        lines.append(
            f"{model}: the rest of the model restores {percentage(row, 'pooled_repair_fraction')} of what ablation removes, "
            f"{measured(row, QUANTITY)} a head over {int(row['n_heads']):,} heads. The layer means are "
            f"{signs(of_layers, QUANTITY, 'layers')}; largest: layer {int(best['layer'])} (relative depth "
            f"{best['relative_depth']:.2f}), {measured(best, QUANTITY)}, of which {told(best, parts)}."
        )
    lines[-1] += " Rushing & Nanda 2024 find self-repair in every model family that they test."
    return lines
