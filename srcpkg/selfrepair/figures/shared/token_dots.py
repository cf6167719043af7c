"""Direct effect against logit change of single tokens, a head's top tokens before the others."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import looks, ranges

X, Y = "direct_effect", "logit_change"


def token_range(tokens: pd.DataFrame) -> tuple[float, float]:
    """A range for square panels (`ranges.square_range`) that shows the bulk of all tokens and of the top tokens.

    Args:
        tokens: A row a token, with both quantities in logits and whether it is `selected`.
    """
    top = tokens[tokens["selected"].astype(bool)]
    # The top tokens are the tail of direct effect: the bulk of all tokens alone would leave them out.
    clouds = [(tokens, 0.995), *([(top, 0.98)] if len(top) else [])]
    ends = [ranges.square_range(rows[X], rows[Y], coverage=share) for rows, share in clouds]
    return min(low for low, _ in ends), max(high for _, high in ends)


def draw_tokens(ax: Axes, tokens: pd.DataFrame, label: str) -> None:
    """Draw a dot a token.

    Args:
        ax: The axes.
        tokens: As for `token_range`.
        label: What the legend calls the top tokens.
    """
    top = tokens["selected"].astype(bool)
    common: dict[str, Any] = {"linewidth": 0, "rasterized": len(tokens) > looks.RASTERISE_ABOVE}
    rest, tops = tokens[~top], tokens[top]
    ax.scatter(rest[X], rest[Y], s=1.0, color=looks.PALE, alpha=0.4, zorder=1.5, label="other tokens", **common)
    colour = looks.LOOKS[X].colour
    ax.scatter(tops[X], tops[Y], s=2.5, color=colour, alpha=0.8, zorder=2, label=label, **common)


def token_legend(figure: Figure, ax: Axes, **options: Any) -> None:
    """The legend of a panel in the figure's corner, its dots opaque.

    Args:
        figure: The figure.
        ax: The panel.
        options: Keywords of `Figure.legend`.
    """
    legend = figure.legend(*ax.get_legend_handles_labels(), loc="upper left", handletextpad=0.1, **options)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
