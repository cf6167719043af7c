"""Figure: which heads and MLPs repair which ablated heads: by layer, for the chosen heads in full, and the strongest pairs."""

from collections.abc import Mapping
from functools import partial
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks
from selfrepair.figures.style.panels import Panel, Panels, coloured
from selfrepair.figures.wording import decimal, head_name, largest, measured, signs, wide

LEGIBLE = 6
"""Later layers of a chosen head, at most, for which every cell has its number written in it."""
COVERAGE = 0.98
LABEL = "repair (logits)"
HALF = "prompts_of_half"
BY = {"head": "heads", "mlp": "MLPs"}
NO_PAIRS = "No head or MLP repairs or breaks any ablated head"
NO_READER = "all are of the last layer, whose MLP runs beside its attention"
"""Why nothing reads what the ablated heads write, where nothing does."""


def panels(tables: inputs.Tables) -> Panels:
    """The matrices of repair and the strongest pairs.

    Args:
        tables: "layers", "rows" and "pairs".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    layers, rows, pairs = _tables(tables)
    run = inputs.settings(tables, "layers", "rows", "pairs")
    heads = [(int(layer), int(head)) for layer, head in rows[["layer", "head"]].drop_duplicates().to_numpy()]
    of = {}
    note = _why_nothing(layers, pairs)
    limit = _limit(layers["repair"])
    for by, name in zip(("heads", "mlp"), BY.values(), strict=True):
        scale = looks.Scale("mean over the layer's heads\nof their repair (logits)", extend="both")
        matrix = partial(_by_layer, layers=layers[layers["by"] == by], name=name, run=run, limit=limit, note=note)
        of[f"by_{name.lower()}"] = Panel(matrix, f"repair by later layers' {name}", "layer of the ablated head", scale)
    limit = _limit(rows.loc[rows["by"].isin(BY), "repair"], coverage=1.0)
    for layer, head in heads:
        of_head = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        name = f"L{layer}H{head}"
        full = partial(_in_full, rows=of_head, layer=layer, run=run, limit=limit, note=note)
        of[name] = Panel(full, f"repair of {name}", "head, or MLP", looks.Scale(LABEL))
    for by, name in BY.items():
        strongest = partial(_pairs, pairs=pairs[pairs["by"] == by], name=name, note=note)
        of[f"pairs_{name.lower()}"] = Panel(strongest, f"strongest pairs, repair by {name}")
    return Panels(of, run, ("top", "bars"))


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    n_heads = len(shown.of) - 2 * len(BY)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 178.0)
        above, middle, below = figure.subfigures(  # type: ignore[misc]
            3, 1, height_ratios=(1.28, 1.02, 0.72), hspace=0.02
        )
        rows = [
            above.subplots(1, 2, sharey=True),
            middle.subplots(1, n_heads, squeeze=False)[0],
            below.subplots(1, 2),
        ]
        axes = [ax for row in rows for ax in row]
        shown.draw(*axes)
        for ax, title in zip(axes, shown.titles(), strict=True):
            ax.set_title(title)
        for ax, letter in zip(axes, "abcdefgh", strict=False):
            layout.panel_letter(ax, letter)
        of = dict(zip(axes, shown.of.values(), strict=True))
        for part, row in ((above, rows[0]), (middle, rows[1])):
            row[0].set_ylabel(of[row[0]].ylabel)
            scale = of[row[0]].scale
            part.colorbar(coloured(row[-1]), ax=row, extend=scale.extend, label=scale.label, aspect=30)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _tables(tables: inputs.Tables) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    repair = inputs.with_interval("repair")
    keys = ["layer", "head", "by", "n_tokens"]
    layers = inputs.table(tables, "layers", ["layer", "by", "by_layer", *repair], may_be_empty=True)
    rows = inputs.table(tables, "rows", [*keys, *repair])
    pairs = inputs.table(tables, "pairs", [*keys, "by_layer", "rank", *repair], may_be_empty=True)
    return layers, rows, pairs


def _why_nothing(layers: pd.DataFrame, pairs: pd.DataFrame) -> str:
    """Why there is nothing to draw: no component reads what the heads write, or none changes; empty where some does."""
    if not pairs.empty:
        return ""
    return f"{NO_PAIRS}: {NO_READER}." if layers.empty else f"{NO_PAIRS}."


def _limit(values: pd.Series, coverage: float = COVERAGE) -> float:
    """A symmetric range that holds this share of the values that are not zero."""
    size = values.abs()
    size = size[size > 0]
    return float(size.quantile(coverage)) if len(size) else 1.0


def _say(ax: Axes, note: str) -> None:
    """Write why a panel is empty across it."""
    ax.text(
        0.5, 0.5, "\n".join(wrap(note, 26)), transform=ax.transAxes, ha="center", va="center",
        fontsize=looks.SMALL_SIZE, color=looks.INK, bbox={"facecolor": ax.get_facecolor(), "linewidth": 0},
    )  # fmt: skip


def _heat_map(ax: Axes, matrix: np.ndarray, extent: tuple[float, float, float, float], limit: float) -> None:
    ax.set_facecolor("#E6E6E6")
    ax.imshow(
        np.ma.masked_invalid(matrix), cmap=looks.DIVERGING, norm=Normalize(-limit, limit), extent=extent,
        origin="lower", aspect="auto", interpolation="none",
    )  # fmt: skip


def _by_layer(ax: Axes, layers: pd.DataFrame, name: str, run: Mapping[str, Any], limit: float, note: str) -> list[str]:
    n_layers = int(run["n_layers"])
    matrix = np.full((n_layers, n_layers), np.nan)
    # A table without rows has no types.
    matrix[layers["layer"].astype(int), layers["by_layer"].astype(int)] = layers["repair"]
    _heat_map(ax, matrix, (-0.5, n_layers - 0.5, -0.5, n_layers - 0.5), limit)
    unsure = layers[(layers["repair_low"] <= 0) & (layers["repair_high"] >= 0)]
    ax.scatter(
        unsure["by_layer"], unsure["layer"], s=2.2, marker="x", color=looks.FAINT, linewidth=0.35, label="_unsure"
    )
    notes = [f"×: {len(unsure):,} of {len(layers):,} with zero\nin the interval"] if len(unsure) else []
    beyond = layers[layers["repair"].abs() > limit]
    ax.scatter(beyond["by_layer"], beyond["layer"], s=1.2, color="white", linewidth=0, label="_beyond")
    if len(beyond):
        notes.append(f"dots: {len(beyond):,} beyond ±{limit:.2g},\nup to ±{beyond['repair'].abs().max():.2g}")
    # No component of an earlier layer changes, so that nothing is drawn there.
    ax.text(0.03, 0.97, "\n".join(notes), transform=ax.transAxes, va="top", fontsize=looks.SMALL_SIZE, color=looks.INK)
    if layers.empty and note:
        _say(ax, note)
    ax.locator_params(nbins=7, integer=True)
    ax.set_xlabel(f"layer of the {name} that change")
    return []


def _in_full(ax: Axes, rows: pd.DataFrame, layer: int, run: Mapping[str, Any], limit: float, note: str) -> list[str]:
    """Every head (by its number) and the MLP (above them) of the head's own layer and the later ones."""
    n_layers, n_heads = int(run["n_layers"]), int(run["n_heads"])
    matrix = np.full((n_heads + 1, n_layers - layer), np.nan)
    components = rows[rows["by"].isin(BY)]
    place = components["by_head"].fillna(n_heads).astype(int)
    matrix[place, components["by_layer"].astype(int) - layer] = components["repair"]
    _heat_map(ax, matrix, (layer - 0.5, n_layers - 0.5, -0.5, n_heads + 0.5), limit)
    ax.axhline(n_heads - 0.5, color="white", linewidth=1.2)
    if n_layers - layer <= LEGIBLE and n_heads <= 2 * LEGIBLE:
        for at, later, value in zip(place, components["by_layer"], components["repair"], strict=True):
            ax.text(
                later, at, decimal(value, 2), ha="center", va="center",
                fontsize=5.0, color="white" if abs(value) > 0.6 * limit else looks.INK,
            )  # fmt: skip
    if components.empty and note:
        _say(ax, "Nothing that follows can repair it but the final norm.")
    step = max(1, -(-n_heads // 10))
    shown = list(range(0, n_heads, step))
    ax.set_yticks([*shown, n_heads], [*(str(head) for head in shown), "MLP"])
    ax.locator_params(axis="x", nbins=5, integer=True)
    ax.set_xlabel("layer that changes")
    return []


def _pairs(ax: Axes, pairs: pd.DataFrame, name: str, note: str) -> list[str]:
    pairs = pairs.sort_values("rank")
    y = -np.arange(len(pairs))
    colour = looks.LOOKS["self_repair_from_heads" if name == "heads" else "self_repair_from_mlps"].colour
    guides.upright_zero_line(ax)
    ax.hlines(y, pairs["repair_low"], pairs["repair_high"], color=colour, linewidth=1.0)
    ax.plot(pairs["repair"], y, linestyle="none", marker="o", color=colour, markersize=3.2, label="_pairs")
    ax.set_yticks(y, [_pair_name(pair) for _, pair in pairs.iterrows()])
    ax.set_ylim(-len(pairs) + 0.4, 0.6)
    if note:
        _say(ax, note)
    ax.set_xlabel(LABEL)
    return []


def _pair_name(pair: pd.Series) -> str:
    by = f"MLP {int(pair['by_layer'])}" if pair["by"] == "mlp" else f"L{int(pair['by_layer'])}H{int(pair['by_head'])}"
    return f"{head_name(pair)} \N{RIGHTWARDS ARROW} {by}"


def in_short(tables: inputs.Tables) -> list[str]:
    """The strongest pairs, and whether a few prompts carry them; takes "pairs" and raises what `finding` raises."""
    layers, _, pairs = _tables(tables)
    if pairs.empty:
        return [f"**{NO_PAIRS}**{f': {NO_READER}' if layers.empty else ''}."]
    unsure = [pair for _, pair in pairs.iterrows() if wide(pair, "repair")]
    few = HALF in pairs and all(int(pair[HALF]) <= max(int(pair["n_prompts"]) / 10, 1) for pair in unsure)
    first = [rows.sort_values("rank").iloc[0] for _, rows in pairs.groupby("by", sort=False)]
    listed = "; ".join(f"{_pair_name(pair)}: {measured(pair, 'repair', 'logits')}{_carried(pair)}" for pair in first)
    title = (
        f"Of the {len(pairs)} strongest pairs of a head and what repairs or breaks it, {len(unsure)} have an interval that "
        f"holds zero or spans an order of magnitude{': a few tokens carry them' if few else ''}"
        if unsure
        else f"The {len(pairs)} strongest pairs of a head and what repairs or breaks it are told from zero"
    )
    return [
        f"**{title}.** The strongest, chosen for their size on the same tokens: {listed}. Rushing & Nanda 2024 sum over "
        "components and name no pairs."
    ]


def _carried(pair: pd.Series) -> str:
    """How few prompts carry a pair whose interval is wide; empty for others."""
    if not wide(pair, "repair"):
        return ""
    if HALF not in pair.index:
        return ""
    half, of = int(pair[HALF]), int(pair["n_prompts"])
    return f", half of it in {half} of {of:,} prompts"


def finding(tables: inputs.Tables) -> list[str]:
    """How many layers repair which, the strongest pairs, and what repairs the chosen heads most.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown.
    """
    layers, rows, pairs = _tables(tables)
    lines = [_why_nothing(layers, pairs)] if layers.empty else []
    kinds = {name: layers[layers["by"] == by] for by, name in (("heads", "heads"), ("mlp", "MLPs"))}
    counted = [f"by {name} {signs(of, 'repair', 'pairs of layers')}" for name, of in kinds.items() if len(of)]
    if counted:
        lines.append(
            f"Repair of a layer (mean over its heads) by one that follows: {'; '.join(counted)} (95% intervals over prompts; "
            "about 5% of pairs would be either if nothing were repaired)."
        )
    for by, name in BY.items():
        strongest = pairs[pairs["by"] == by].sort_values("rank").head(3)
        if strongest.empty:
            lines.append(f"No {name} repair or break any ablated head.")
            continue
        listed = "; ".join(
            f"{_pair_name(pair)}: {measured(pair, 'repair', 'logits')}{_carried(pair)}"
            for _, pair in strongest.iterrows()
        )
        lines.append(
            f"Strongest pairs, of all ablated heads, where {name} change (ablated head \N{RIGHTWARDS ARROW} what changes; "
            f"below zero is breakage; means over {int(strongest['n_tokens'].max()):,} top tokens, chosen for their size on "
            f"the same tokens): {listed}."
        )
    for (_, _), head in rows.groupby(["layer", "head"], sort=False):
        parts = head[head["by"].isin(BY)]
        total = head[head["by"] == "all"].iloc[0]
        if parts.empty:
            lines.append(f"Nothing that follows {head_name(total)} can repair it but the final norm.")
            continue
        best = largest(parts, "repair")
        lines.append(
            f"{head_name(total)}, condensed self-repair {measured(total, 'repair', 'logits')}: its strongest repairer is "
            f"{_pair_name(best).split(' ', 2)[2]}, with {measured(best, 'repair', 'logits')}."
        )
    lines[-1] += (
        " Rushing & Nanda 2024 sum over components and name no pairs; the first backup heads were found in the indirect object "
        "circuit of GPT-2 small (Wang et al. 2022, arXiv 2211.00593)."
    )
    return lines
