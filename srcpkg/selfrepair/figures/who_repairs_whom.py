"""Figure: which heads and MLPs repair which ablated heads: by layer, for the chosen heads in full, and the strongest pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from selfrepair.figures.style import footers, guides, inputs, layout, looks
from selfrepair.figures.wording import decimal, head_name, largest, measured, signs

LEGIBLE = 6
"""Later layers of a chosen head, at most, for which every cell has its number written in it."""
COVERAGE = 0.98
LABEL = "repair (logits)"
BY = {"head": "heads", "mlp": "MLPs"}


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw the matrices of repair and the strongest pairs.

    Args:
        tables: "layers", "rows" and "pairs".

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    layers, rows, pairs = _tables(tables)
    run = inputs.settings(tables, "layers", "rows", "pairs")
    heads = [(int(layer), int(head)) for layer, head in rows[["layer", "head"]].drop_duplicates().to_numpy()]
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 178.0)
        above, middle, below = figure.subfigures(  # type: ignore[misc]
            3, 1, height_ratios=(1.28, 1.02, 0.72), hspace=0.02
        )
        letters = iter("abcdefgh")
        panels = above.subplots(1, 2, sharey=True)
        limit = _limit(layers["repair"])
        for ax, by, name in zip(panels, ("heads", "mlp"), BY.values(), strict=True):
            image = _by_layer(ax, layers[layers["by"] == by], run, limit)
            ax.set_xlabel(f"layer of the {name} that change")
            ax.set_title(f"repair by later layers' {name}")
            layout.panel_letter(ax, next(letters))
        panels[0].set_ylabel("layer of the ablated head")
        above.colorbar(
            image, ax=panels, extend="both", label="mean over the layer's heads\nof their repair (logits)", aspect=30
        )
        limit = _limit(rows.loc[rows["by"].isin(BY), "repair"], coverage=1.0)
        panels = middle.subplots(1, len(heads), squeeze=False)[0]
        for ax, (layer, head) in zip(panels, heads, strict=True):
            image = _in_full(ax, rows[(rows["layer"] == layer) & (rows["head"] == head)], layer, run, limit)
            ax.set_title(f"repair of L{layer}H{head}")
            layout.panel_letter(ax, next(letters))
        panels[0].set_ylabel("head, or MLP")
        middle.colorbar(image, ax=panels, label=LABEL, aspect=30)
        for ax, (by, name) in zip(below.subplots(1, 2), BY.items(), strict=True):
            _pairs(ax, pairs[pairs["by"] == by], name)
            layout.panel_letter(ax, next(letters))
        footers.footer(figure, looks.TWO_COLUMNS, run, "top", "bars")
    return figure


def _tables(tables: dict[str, pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    repair = inputs.with_interval("repair")
    keys = ["layer", "head", "by", "n_tokens"]
    layers = inputs.table(tables, "layers", ["layer", "by", "by_layer", *repair])
    rows = inputs.table(tables, "rows", [*keys, *repair])
    return layers, rows, inputs.table(tables, "pairs", [*keys, "by_layer", "rank", *repair])


def _limit(values: pd.Series, coverage: float = COVERAGE) -> float:
    """A symmetric range that holds this share of the values that are not zero."""
    size = values.abs()
    size = size[size > 0]
    return float(size.quantile(coverage)) if len(size) else 1.0


def _heat_map(ax: Axes, matrix: np.ndarray, extent: tuple[float, float, float, float], limit: float) -> AxesImage:
    ax.set_facecolor("#E6E6E6")
    return ax.imshow(
        np.ma.masked_invalid(matrix), cmap=looks.DIVERGING, norm=Normalize(-limit, limit), extent=extent,
        origin="lower", aspect="auto", interpolation="none",
    )  # fmt: skip


def _by_layer(ax: Axes, layers: pd.DataFrame, run: Mapping[str, Any], limit: float) -> AxesImage:
    n_layers = int(run["n_layers"])
    matrix = np.full((n_layers, n_layers), np.nan)
    matrix[layers["layer"], layers["by_layer"]] = layers["repair"]
    image = _heat_map(ax, matrix, (-0.5, n_layers - 0.5, -0.5, n_layers - 0.5), limit)
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
    ax.locator_params(nbins=7, integer=True)
    return image


def _in_full(ax: Axes, rows: pd.DataFrame, layer: int, run: Mapping[str, Any], limit: float) -> AxesImage:
    """Every head (by its number) and the MLP (above them) of the head's own layer and the later ones."""
    n_layers, n_heads = int(run["n_layers"]), int(run["n_heads"])
    matrix = np.full((n_heads + 1, n_layers - layer), np.nan)
    components = rows[rows["by"].isin(BY)]
    place = components["by_head"].fillna(n_heads).astype(int)
    matrix[place, components["by_layer"].astype(int) - layer] = components["repair"]
    image = _heat_map(ax, matrix, (layer - 0.5, n_layers - 0.5, -0.5, n_heads + 0.5), limit)
    ax.axhline(n_heads - 0.5, color="white", linewidth=1.2)
    if n_layers - layer <= LEGIBLE and n_heads <= 2 * LEGIBLE:
        for at, later, value in zip(place, components["by_layer"], components["repair"], strict=True):
            ax.text(
                later, at, decimal(value, 2), ha="center", va="center",
                fontsize=5.0, color="white" if abs(value) > 0.6 * limit else looks.INK,
            )  # fmt: skip
    step = max(1, -(-n_heads // 10))
    shown = list(range(0, n_heads, step))
    ax.set_yticks([*shown, n_heads], [*(str(head) for head in shown), "MLP"])
    ax.locator_params(axis="x", nbins=5, integer=True)
    ax.set_xlabel("layer that changes")
    return image


def _pairs(ax: Axes, pairs: pd.DataFrame, name: str) -> None:
    pairs = pairs.sort_values("rank")
    y = -np.arange(len(pairs))
    colour = looks.LOOKS["self_repair_from_heads" if name == "heads" else "self_repair_from_mlps"].colour
    guides.upright_zero_line(ax)
    ax.hlines(y, pairs["repair_low"], pairs["repair_high"], color=colour, linewidth=1.0)
    ax.plot(pairs["repair"], y, linestyle="none", marker="o", color=colour, markersize=3.2, label="_pairs")
    ax.set_yticks(y, [_pair_name(pair) for _, pair in pairs.iterrows()])
    ax.set_ylim(-len(pairs) + 0.4, 0.6)
    ax.set_xlabel(LABEL)
    ax.set_title(f"strongest pairs, repair by {name}")


def _pair_name(pair: pd.Series) -> str:
    by = f"MLP {int(pair['by_layer'])}" if pair["by"] == "mlp" else f"L{int(pair['by_layer'])}H{int(pair['by_head'])}"
    return f"{head_name(pair)} \N{RIGHTWARDS ARROW} {by}"


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """How many layers repair which, the strongest pairs, and what repairs the chosen heads most.

    Takes the tables of `draw` and raises what it raises. Gives lines of Markdown.
    """
    layers, rows, pairs = _tables(tables)
    lines = []
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
            f"{_pair_name(pair)} {measured(pair, 'repair', 'logits')}" for _, pair in strongest.iterrows()
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
