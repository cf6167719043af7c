"""The small type under a figure: model, text, counts and settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from selfrepair.figures.style import looks

PHRASES = {
    "top": "means over each head's top {top:g}% of tokens by direct effect",
    "all": "means over all tokens",
    "dots and bands": "dots: heads; lines: layer means; bars and bands: {level:g}% intervals over prompts",
    "top tokens": "each head's top {top:g}% of tokens by direct effect",
    "bands": "bands: {level:g}% intervals over prompts",
    "bars": "bars: {level:g}% intervals over prompts",
}
"""What a figure's footer says of its selection and its marks."""


def footer(figure: Figure, width_mm: float, run: Mapping[str, Any], *what: str, kinds: Sequence[str] = ()) -> str:
    """Write the line of settings under a figure.

    Args:
        figure: The figure.
        width_mm: Its width.
        run: The settings (`inputs.settings`).
        what: Which tokens are shown, and marks to explain; keys of `PHRASES` stand for their text.
        kinds: The ablations, where the figure shows several.

    Returns:
        The text.
    """
    text = wrapped(items(run, *what, kinds=kinds), width_mm - 3, looks.SMALL_SIZE, " · ")
    # A supxlabel, unlike Figure.text, is given room by the layout.
    figure.supxlabel(
        text, x=0.012, ha="left", fontsize=looks.SMALL_SIZE, color=looks.FAINT, linespacing=looks.LINE_SPACING
    )
    return text


def items(run: Mapping[str, Any], *what: str, kinds: Sequence[str] = ()) -> list[str]:
    """What the line of settings says, one after the other; arguments are those of `footer`."""
    kind = ", ".join(kinds or [str(run["ablation"])])
    if int(run["donors"]) > 1:
        kind = kind.replace("resample", f"resample ({run['donors']} donors)")
    told = [
        *_models(run),
        str(run["corpus"]),
        *([f"{kind} ablation"] if kind else []),  # what ablates nothing has none in its settings
        f"n = {int(run['n_tokens']):,} tokens, {int(run['n_prompts']):,} prompts of length {int(run['prompt_length'])}",
        *(
            [f"a first look: {int(run['prompts_of_run']):,} prompts in the whole run"]
            if "prompts_of_run" in run
            else []
        ),
        *(
            PHRASES.get(text, text).format(top=100 * run["top_fraction"], level=100 * run["confidence"])
            for text in what
        ),
    ]
    if "logit_cap" in run:
        cap = run["logit_cap"]
        told.append("logits before a model's cap" if isinstance(cap, list) else f"logits before their cap of {cap:g}")
    if "matrices" in run:
        told.append(f"matrices in {run['matrices']}; crosses: within its noise of zero")
    if int(run["first_position"]) > 0:
        first = int(run["first_position"])
        told.append("position 0 left out" if first == 1 else f"positions below {first} left out")
    return told


def sampled(table: pd.DataFrame) -> list[str]:
    """What the line of settings says of a table of a sample of tokens (`selfrepair.tables.sample`); nothing of others."""
    if "listed" not in table.attrs:
        return []
    return [f"dots: {table.attrs['listed']:,} of {table.attrs['listed_of']:,} tokens a head, at random"]


def _models(run: Mapping[str, Any]) -> list[str]:
    """The model with its weights; where the settings are of several models, each."""
    several = isinstance(run["model"], list)
    names, weights = (run[key] if several else [run[key]] for key in ("model", "weights"))
    return [f"{name} ({of_model})" if of_model else str(name) for name, of_model in zip(names, weights, strict=True)]


def wrapped(items: Sequence[str], width_mm: float, size: float, separator: str) -> str:
    """Join items with a separator, broken into lines no wider than `width_mm` at this text size (points)."""
    font = FontProperties(family="DejaVu Sans")

    def too_wide(text: str) -> bool:
        return bool(TextPath((0, 0), text, size=size, prop=font).get_extents().width > width_mm * looks.POINTS_PER_MM)

    lines: list[str] = []
    for item in items:
        if lines and not too_wide(lines[-1] + separator + item):
            lines[-1] += separator + item
        else:
            lines.append(item)
    return "\n".join(lines)
