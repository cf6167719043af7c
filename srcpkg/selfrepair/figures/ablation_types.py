"""Figure: what the kinds of ablation do to one head: the logit of each token, and the length of the final residual."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.wording import head_name, measured
from selfrepair.quantities import ABLATION_KINDS

X, Y, NORM = "direct_effect", "logit_change", "residual_norm_ratio"
REPAIR = "self_repair"
OTHERS = "#B0B0B0"
NAMES = {"top": "the {:,} top tokens", "all": "all {:,} tokens"}


def draw(tables: dict[str, pd.DataFrame]) -> Figure:
    """Draw direct effect against logit change, a dot a token and a panel a kind, and the ratio of final residual norms.

    Args:
        tables: "tokens_KIND" and "means_KIND" of each kind of ablation.

    Returns:
        The figure, two columns wide.

    Raises:
        ValueError: No table of an ablation, a column or a setting is missing, or the tables are of several runs.
    """
    kinds = _kinds(tables)
    tokens = {kind: inputs.table(tables, f"tokens_{kind}", ["layer", "head", X, Y, NORM, "selected"]) for kind in kinds}
    means = {kind: _means(tables, kind) for kind in kinds}
    run = inputs.settings(
        tables, *(f"{name}_{kind}" for kind in kinds for name in ("tokens", "means")), differing=["ablation"]
    )
    with looks.context():
        pooled = pd.concat(list(tokens.values()))
        top = pooled[pooled["selected"].astype(bool)]
        # The top tokens are the tail of direct effect: the bulk of all tokens alone would leave them out.
        ends = [ranges.square_range(rows[X], rows[Y], coverage=share) for rows, share in ((pooled, 0.995), (top, 0.98))]
        limits = min(low for low, _ in ends), max(high for _, high in ends)
        figure, axes = layout.square_panels(looks.TWO_COLUMNS, limits, len(kinds))
        counts = [_panel(ax, tokens[kind], means[kind]) for ax, kind in zip(axes, kinds, strict=True)]
        axes[0].set_ylabel(guides.axis_label(Y))
        norms = figure.add_axes((0, 0, 1, 1), label="norms")
        counts.append(_norms(norms, tokens))
        names = [*(f"{kind} ablation" for kind in kinds), ""]
        headings = layout.square_headings([*axes, norms], names, counts, 34.0)
        legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=3, handletextpad=0.1)
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)
        head = head_name(pooled.iloc[0])
        below = footers.footer(
            figure,
            looks.TWO_COLUMNS,
            run,
            f"all tokens of {head}, the top {{top:g}}% marked; boxes: quartiles, whiskers: 95% of tokens",
            kinds=kinds,
        )
        room = 13.0
        slots = max(len(kinds) + 1, 4)
        layout.lay_out_squares(figure, [*axes, norms], below, headings, slots=slots, right_mm=2.0 + room, top_mm=5.0)
        place = norms.get_position()
        # To the right, where its own axis has room for its label.
        norms.set_position((place.x0 + room / looks.TWO_COLUMNS, place.y0, place.width, place.height))
    return figure


def finding(tables: dict[str, pd.DataFrame]) -> list[str]:
    """For each ablation: what it does to the head's logits on average, and to the final residual.

    Args:
        tables: As for `draw`.

    Returns:
        Lines of Markdown, one an ablation.

    Raises:
        ValueError: As `draw`.
    """
    lines = []
    for kind in _kinds(tables):
        means = _means(tables, kind)
        parts = [
            f"over {NAMES[row['selection']].format(int(row['n_tokens']))}, direct effect {measured(row, X)}, logit change "
            f"{measured(row, Y)}, self-repair {measured(row, REPAIR)}, ratio of final residual norms {measured(row, NORM)}"
            for _, row in means.iterrows()
        ]
        lines.append(f"{head_name(means.iloc[0])} under {kind} ablation: {'; '.join(parts)}.")
    lines[-1] += " Rushing & Nanda 2024 compare the three kinds for Pythia-160M L11H0, and resample everywhere else."
    return lines


def _kinds(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    kinds = [kind for kind in ABLATION_KINDS if f"tokens_{kind}" in tables]
    if not kinds:
        wanted = ", ".join(f"tokens_{kind}" for kind in ABLATION_KINDS)
        raise ValueError(f"no table of an ablation (got {sorted(tables)}): give at least one of {wanted}")
    return kinds


def _means(tables: dict[str, pd.DataFrame], kind: str) -> pd.DataFrame:
    columns = ["layer", "head", "selection", "n_tokens", *inputs.with_interval(X, Y, REPAIR, NORM)]
    return inputs.table(tables, f"means_{kind}", columns)


def _panel(ax: Axes, tokens: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Draw one ablation's tokens and their mean, and return the counts of what lies outside."""
    ax.set_xlabel(guides.axis_label(X))
    guides.zero_line(ax)
    top = tokens["selected"].astype(bool)
    common: dict[str, Any] = {"linewidth": 0, "rasterized": len(tokens) > looks.RASTERISE_ABOVE}
    rest, chosen = tokens[~top], tokens[top]
    ax.scatter(rest[X], rest[Y], s=1.0, color=OTHERS, alpha=0.4, zorder=1.5, label="other tokens", **common)
    colour = looks.LOOKS[X].colour
    ax.scatter(chosen[X], chosen[Y], s=2.5, color=colour, alpha=0.8, zorder=2, label="the head's top tokens", **common)
    mean = means[means["selection"] == "top"]
    ax.errorbar(
        mean[X],
        mean[Y],
        xerr=[mean[X] - mean[f"{X}_low"], mean[f"{X}_high"] - mean[X]],
        yerr=[mean[Y] - mean[f"{Y}_low"], mean[f"{Y}_high"] - mean[Y]],
        color=looks.INK,
        marker="D",
        linestyle="none",
        elinewidth=1.0,
        zorder=3,
        label="their mean, 95% interval over prompts",
    )
    guides.minus_x_line(ax, tokens[X], tokens[Y])
    return ranges.mark_outside(ax, tokens[X], tokens[Y], looks.INK)


def _norms(ax: Axes, tokens: dict[str, pd.DataFrame]) -> list[str]:
    """Boxes of the ratio of norms, top tokens beside all tokens of each kind; gives the counts of what lies outside."""
    top = [rows.loc[rows["selected"].astype(bool), NORM] for rows in tokens.values()]
    quantiles = [values.quantile([0.005, 0.995]) for values in (*(rows[NORM] for rows in tokens.values()), *top)]
    ax.set_ylim(ranges.bulk_range(include=[1.0, *quantiles]))
    ax.axhline(1, color=looks.FAINT, linewidth=0.6, zorder=0.5)
    outside = {"above": 0, "below": 0}
    low, high = ax.get_ylim()
    for place, (rows, chosen) in enumerate(zip(tokens.values(), top, strict=True)):
        for values, apart, colour in ((rows[NORM], -0.19, OTHERS), (chosen, 0.19, looks.LOOKS[X].colour)):
            if values.empty:
                continue
            ax.boxplot(
                [values.to_numpy()],
                positions=[place + apart],
                widths=0.3,
                whis=(2.5, 97.5),
                showfliers=False,
                patch_artist=True,
                boxprops={"facecolor": colour, "linewidth": 0.5},
                medianprops={"color": looks.INK, "linewidth": 1.0},
                whiskerprops={"linewidth": 0.7},
                capprops={"linewidth": 0.7},
                manage_ticks=False,
            )
        outside["above"] += int((rows[NORM] > high).sum())
        outside["below"] += int((rows[NORM] < low).sum())
    ax.set_xticks(range(len(tokens)), list(tokens), rotation=30)
    ax.tick_params(axis="x", length=0)
    ax.set_xlim(-0.55, len(tokens) - 0.45)
    ax.set_ylabel("final residual norm,\nablated / clean")
    limits = {"above": high, "below": low}
    return [f"{count:,} {word} {limits[word]:.3g}" for word, count in outside.items() if count]
