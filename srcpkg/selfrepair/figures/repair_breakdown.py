"""Figure: what repairs - heads, MLPs or the final LayerNorm - by layer of the ablated head."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.parts import SOURCES, told
from selfrepair.figures.style import guides, inputs, layout, looks, marks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import largest, listing, measured, signs, verdict
from selfrepair.quantities import CHOSEN_EXPERTS, OWN_POSTNORM, PARTS, POSTNORMS, QUANTITIES, held

YLABEL = "mean over the layer's heads (logits)"
EFFECTS = ("direct_effect", "ablated_direct_effect", "logit_change")


def panels(tables: inputs.Tables) -> Panels:
    """The parts of condensed self-repair by layer, and the effects they are to be compared with.

    Args:
        tables: "layers".

    Raises:
        ValueError: The table, a column or a setting is missing.
    """
    parts = _parts(tables)
    names = ("self_repair", *parts, *EFFECTS)
    layers = inputs.table(tables, "layers", ["relative_depth", *inputs.with_interval(*names)], selection="top")
    layers = layers.sort_values("relative_depth")
    run = inputs.settings(tables, "layers")
    limits = ranges.bulk_range(include=[0.0, layers[inputs.with_interval(*names)]])

    def of_parts(ax: Axes) -> list[str]:
        _panel(ax, layers, (*parts, "self_repair"), int(run["n_layers"]), limits)
        ax.plot(
            layers["relative_depth"],
            layers[list(parts)].sum(axis=1, skipna=False),
            linestyle="none",
            marker="o",
            markersize=4.5,
            markerfacecolor="none",
            markeredgecolor=looks.INK,
            label="sum of the parts",
            zorder=3.5,
        )
        return []

    def of_effects(ax: Axes) -> list[str]:
        _panel(ax, layers, EFFECTS, int(run["n_layers"]), limits)
        return []

    of = {name: Panel(of, ylabel=YLABEL) for name, of in (("parts", of_parts), ("effects", of_effects))}
    return Panels(of, run, ("top", "bands"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 78.0)
        left, right = figure.subplots(1, 2, sharey=True)
        shown.draw_noted(left, right)
        left.set_ylabel(YLABEL)
        for ax, letter in ((left, "a"), (right, "b")):
            layout.panel_letter(ax, letter)
            ax.legend(loc="lower left", bbox_to_anchor=(0.05, 1.0), ncols=2, columnspacing=0.8)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """What repairs in the layer of largest self-repair and in the last one, and in how many layers each part repairs.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    parts = _parts(tables)
    own = (OWN_POSTNORM,) if POSTNORMS in parts else ()
    names = ("self_repair", *parts, *own, *EFFECTS)
    layers = inputs.table(tables, "layers", ["layer", "n_heads", *inputs.with_interval(*names)], selection="top")
    best, last = largest(layers, "self_repair"), largest(layers, "layer")
    lines = [_of_layer(best, "of largest self-repair", parts)]
    if int(last["layer"]) != int(best["layer"]):
        lines.append(_of_layer(last, "last", parts))
    signs_of = "; ".join(f"from {SOURCES[part]}, {signs(layers, part, 'layers')}" for part in parts)
    return [
        *lines,
        f"Layer means of self-repair: {signs_of}. Rushing & Nanda 2024 name LayerNorm scaling and sparse MLP neurons as "
        "mechanisms of repair.",
    ]


def in_short(tables: inputs.Tables) -> list[str]:
    """Which parts repair over the model; takes "model" and raises what `finding` raises."""
    columns = tables["model"].columns if "model" in tables else ()
    parts = [part for part in PARTS if part in columns or part != POSTNORMS]
    names = (*parts, *held([CHOSEN_EXPERTS], columns))
    row = inputs.table(tables, "model", inputs.with_interval(*names), selection="top").iloc[0]
    by_sign: dict[str, list[str]] = {"above": [], "below": [], "unclear": []}
    for part in parts:
        by_sign[verdict(row, part)].append(SOURCES[part])
    heads = {
        "above": f"{listing(by_sign['above'])} repair",
        "below": f"{listing(by_sign['below'])} break{'s' * (by_sign['below'] == ['LayerNorm'])} further",
        "unclear": f"of {listing(by_sign['unclear'])} it is not told",
    }
    title = ", ".join(heads[sign] for sign, sources in by_sign.items() if sources)
    if not by_sign["above"] and not by_sign["below"]:
        title = "no part is told to repair or to break"
    experts = (
        f" Of the MLPs' part, {measured(row, CHOSEN_EXPERTS)} follow from a change of the chosen experts."
        if CHOSEN_EXPERTS in names
        else ""
    )
    return [
        f"**On average {title}**: {told(row, tuple(parts))}; together they are the self-repair, exactly.{experts} "
        "Rushing & Nanda 2024 name LayerNorm scaling and sparse MLP neurons as mechanisms of repair."
    ]


def _parts(tables: inputs.Tables) -> tuple[str, ...]:
    """The parts that the model has; the one of post-norms it may not have."""
    return held(PARTS, tables["layers"].columns) if "layers" in tables else PARTS


def _of_layer(row: pd.Series, which: str, parts: tuple[str, ...]) -> str:
    return (
        f"Layer {int(row['layer'])}, {which}, mean over {int(row['n_heads'])} heads: self-repair "
        f"{measured(row, 'self_repair')}, of which {told(row, parts)}. Direct effect {measured(row, 'direct_effect')}, "
        f"{measured(row, 'ablated_direct_effect')} when ablated; logit change {measured(row, 'logit_change')}."
    )


def _panel(ax: Axes, layers: pd.DataFrame, names: tuple[str, ...], n_layers: int, limits: tuple[float, float]) -> None:
    ax.set_ylim(limits)
    guides.depth_axis(ax, n_layers)
    guides.zero_line(ax)
    for name in names:
        marks.layer_line(ax, layers, name, looks.LOOKS[name], QUANTITIES[name].label, marker=name != "self_repair")
