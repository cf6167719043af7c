"""Figure: what the kinds of ablation do to one head: the logit of each token, and the length of the final residual."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.shared.kinds import given_kinds
from selfrepair.figures.shared.token_dots import X, Y, draw_tokens, token_legend, token_range
from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, measured

NORM, REPAIR = "residual_norm_ratio", "self_repair"
NAMES = {"top": "the {:,} top tokens", "all": "all {:,} tokens"}


def panels(tables: inputs.Tables) -> Panels:
    """Direct effect against logit change, a dot a token and a panel a kind, and the ratio of final residual norms.

    Args:
        tables: "tokens_KIND" and "means_KIND" of each kind of ablation.

    Raises:
        ValueError: No table of an ablation, a column or a setting is missing, or the tables are of several runs.
    """
    kinds = given_kinds(tables, "tokens")
    tokens = {kind: inputs.table(tables, f"tokens_{kind}", ["layer", "head", X, Y, NORM, "selected"]) for kind in kinds}
    means = {kind: _means(tables, kind) for kind in kinds}
    run = inputs.settings(
        tables, *(f"{name}_{kind}" for kind in kinds for name in ("tokens", "means")), differing=["ablation"]
    )
    pooled = pd.concat(list(tokens.values()))
    limits = token_range(pooled)
    of = {
        kind: Panel(
            partial(_panel, tokens=rows, means=means[kind], limits=limits), f"{kind} ablation", guides.axis_label(Y)
        )
        for kind, rows in tokens.items()
    }
    of["norms"] = Panel(partial(_norms, tokens=tokens))
    partly = [kind for kind in kinds if not _whole(tokens[kind])]
    head = head_name(pooled.iloc[0])
    what = (
        f"the top {{top:g}}% of tokens of {head}"
        if partly == kinds
        else f"all tokens of {head}, the top {{top:g}}% marked"
    )
    if partly and partly != kinds:
        what += f" (under {' and '.join(partly)} ablation these alone)"
    samples = dict.fromkeys(line for kind in kinds for line in footers.sampled(tables[f"tokens_{kind}"]))
    return Panels(of, run, (f"{what}; boxes: quartiles, whiskers: 95% of tokens", *samples), kinds)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    n = len(shown.kinds)
    with looks.context():
        figure, axes = layout.square_panels(looks.TWO_COLUMNS, n)
        norms = figure.add_axes((0, 0, 1, 1), label="norms")
        counts = shown.draw(*axes, norms)
        axes[0].set_ylabel(guides.axis_label(Y))
        headings = layout.square_headings([*axes, norms], shown.titles(), counts, 34.0)
        token_legend(figure, axes[0], ncols=3)
        below = shown.footer(figure, looks.TWO_COLUMNS)
        room = 13.0
        slots = max(n + 1, 4)
        layout.lay_out_squares(figure, [*axes, norms], below, headings, slots=slots, right_mm=2.0 + room, top_mm=5.0)
        place = norms.get_position()
        # To the right, where its own axis has room for its label.
        norms.set_position((place.x0 + room / looks.TWO_COLUMNS, place.y0, place.width, place.height))
    return figure


def finding(tables: inputs.Tables) -> list[str]:
    """For each ablation: what it does to the head's logits on average, and to the final residual.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one an ablation.
    """
    lines = []
    for kind in given_kinds(tables, "tokens"):
        means = _means(tables, kind)
        parts = [
            f"over {NAMES[row['selection']].format(int(row['n_tokens']))}, direct effect {measured(row, X)}, logit change "
            f"{measured(row, Y)}, self-repair {measured(row, REPAIR)}, ratio of final residual norms {measured(row, NORM)}"
            for _, row in means.iterrows()
        ]
        lines.append(f"{head_name(means.iloc[0])} under {kind} ablation: {'; '.join(parts)}.")
    lines[-1] += " Rushing & Nanda 2024 compare the three kinds for Pythia-160M L11H0, and resample everywhere else."
    return lines


def _whole(tokens: pd.DataFrame) -> bool:
    """Whether all tokens were computed, and not the head's top tokens alone."""
    return not tokens["selected"].astype(bool).all()


def _means(tables: inputs.Tables, kind: str) -> pd.DataFrame:
    columns = ["layer", "head", "selection", "n_tokens", *inputs.with_interval(X, Y, REPAIR, NORM)]
    return inputs.table(tables, f"means_{kind}", columns)


def _panel(ax: Axes, tokens: pd.DataFrame, means: pd.DataFrame, limits: tuple[float, float]) -> list[str]:
    """Draw one ablation's tokens and their mean, and return the counts of what lies outside."""
    layout.square(ax, limits, layout.mirrored(limits))
    ax.set_xlabel(guides.axis_label(X))
    guides.zero_line(ax)
    draw_tokens(ax, tokens, "the head's top tokens")
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
        of_all = (rows[NORM], -0.19, looks.PALE) if _whole(rows) else None
        for values, apart, colour in filter(None, (of_all, (chosen, 0.19, looks.LOOKS[X].colour))):
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
