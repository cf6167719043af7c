"""Figure: self-repair of each top token with several donors, against its spread over tokens, for the chosen heads."""

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import footers, guides, inputs, layout, looks, ranges
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import head_name, measured, percentage

Y = "self_repair"
OF_SEVERAL_TOKENS = ("donor_share", "averaged_donor_share", "token_variance")
"""What one token has not."""


def panels(tables: inputs.Tables) -> Panels:
    """Every top token with each donor, tokens in the order of their mean over donors, a panel a head.

    Args:
        tables: "heads" and "tokens".

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    heads = _heads(tables, "rank", "n_donors", *inputs.with_interval("donor_share"))
    tokens = inputs.table(tables, "tokens", ["rank", "prompt", "pos", "donor", Y])
    run = inputs.settings(tables, "heads", "tokens")
    limits = ranges.bulk_range(tokens[Y], include=[0.0], coverage=0.995)
    of = {
        (name := head_name(head)): Panel(
            partial(_panel, tokens=tokens[tokens["rank"] == head["rank"]], limits=limits),
            f"{name}: {_share(head)}",
            guides.axis_label(Y),
        )
        for _, head in heads.iterrows()
    }
    donors = int(heads["n_donors"].max())
    what = (
        f"each head's top {{top:g}}% of tokens by direct effect, {donors} donors a prompt, one at a time",
        "brackets: {level:g}% intervals over prompts",
        *footers.sampled(tables["tokens"]),
    )
    return Panels(of, run, what)


def draw(tables: inputs.Tables) -> Figure:
    """Draw `panels` on a page two columns wide."""
    shown = panels(tables)
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 66.0)
        axes = figure.subplots(1, len(shown.of), sharey=True, squeeze=False)[0]
        for ax, title, counts in zip(axes, shown.titles(), shown.draw(*axes), strict=True):
            ax.set_title("\n".join([title, *counts]))
        axes[0].set_ylabel(guides.axis_label(Y))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, handletextpad=0.3)
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def _heads(tables: inputs.Tables, *columns: str) -> pd.DataFrame:
    """Table "heads", checked. Where each head has one top token, nothing that tokens' variance is part of has a value."""
    one_token = bool((inputs.table(tables, "heads", ["n_tokens"])["n_tokens"] == 1).all())
    may_lack = inputs.with_interval(*OF_SEVERAL_TOKENS) if one_token else []
    return inputs.table(tables, "heads", ["layer", "head", "n_tokens", *columns], may_lack=may_lack)


def _share(head: pd.Series) -> str:
    """What donors make up, in the two lines of a panel's title."""
    if int(head["n_tokens"]) == 1:
        return "one top token,\nno variance over tokens"
    return f"donors {percentage(head, 'donor_share')}\nof the variance"


def _panel(ax: Axes, tokens: pd.DataFrame, limits: tuple[float, float]) -> list[str]:
    """Draw one head's tokens and return the counts of what lies outside."""
    ax.set_ylim(limits)
    of_token = tokens.groupby(["prompt", "pos"])[Y]
    mean = of_token.transform("mean").to_numpy(float)
    x = pd.Series(mean).rank(method="dense").to_numpy(float)
    y = tokens[Y].to_numpy(float)
    guides.zero_line(ax)
    raster = len(tokens) > looks.RASTERISE_ABOVE
    look = looks.LOOKS[Y]
    ax.scatter(x, y, s=3.0, color=looks.SINGLE, linewidth=0, alpha=0.6, zorder=2, label="one donor", rasterized=raster)
    order = np.argsort(x, kind="stable")
    ax.plot(x[order], mean[order], color=look.colour, linewidth=1.2, zorder=3, label="mean over donors")
    ax.set_xlim(0, x.max() + 1)
    ax.locator_params(axis="x", nbins=4)
    ax.set_xlabel("top tokens, by their mean")
    return ranges.mark_outside(ax, x, y, looks.INK)


def _of_variance(head: pd.Series) -> str:
    """A finding's first sentence: what donors make up of the variance, or why that has no value."""
    name, donors = head_name(head), int(head["n_donors"])
    over_donors = measured(head, "donor_variance", "logits²")
    if int(head["n_tokens"]) == 1:
        return (
            f"{name}, one top token with {donors} donors: {over_donors} of variance over donors; one token has no variance "
            "over tokens to hold it against, so that there is no share"
        )
    return (
        f"{name}, {int(head['n_tokens']):,} top tokens with {donors} donors each: donors make up "
        f"{percentage(head, 'donor_share')} of the variance of self-repair with one donor ({over_donors} over donors, "
        f"{measured(head, 'token_variance', 'logits²')} over tokens), and {percentage(head, 'averaged_donor_share')} of the "
        "variance of the donors' mean"
    )


def finding(tables: inputs.Tables) -> list[str]:
    """For each head, what donors make up of the variance of self-repair, and what averaging over donors gives.

    Takes the tables of `panels` and raises what it raises. Gives lines of Markdown, one a head.
    """
    shown = ("donor_share", "averaged_donor_share", "donor_variance", "token_variance", "mean", "one_donor_mean")
    heads = _heads(tables, "n_donors", *inputs.with_interval(*shown))
    lines = [
        f"{_of_variance(head)}. Mean self-repair: {measured(head, 'one_donor_mean', 'logits')} with the first donor, "
        f"{measured(head, 'mean', 'logits')} over all."
        for _, head in heads.iterrows()
    ]
    lines[-1] += " Rushing & Nanda 2024 call self-repair noisy, and do not tell donors from tokens."
    return lines
