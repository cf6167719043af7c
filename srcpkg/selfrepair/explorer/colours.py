"""Colours of the page, in light and dark: those of the figures, made readable on a dark ground."""

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex, to_rgb

from selfrepair.figures.style.looks import DIVERGING, FAINT, INK, LOOKS, PALE, Look, published_look, run_looks

GROUND = {"light": "#ffffff", "dark": "#16191f"}
"""What charts stand on."""
READABLE, SEEN = 4.6, 3.1
"""Contrast against the ground of text, and of marks (WCAG 2.2, 1.4.3 and 1.4.11, with a little to spare)."""
MAP_COLOURS = 11


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def on_ground(colour: str, theme: str, least: float = SEEN) -> str:
    """A colour, brought towards ink as far as it takes to be seen on the ground of a theme."""
    ink = np.array(to_rgb("#000000" if theme == "light" else "#ffffff"))
    start = np.array(to_rgb(colour))
    for share in np.linspace(0, 1, 51):
        found = to_hex(start + share * (ink - start))
        if contrast(found, GROUND[theme]) >= least:
            return found
    raise ValueError(f"no shade of {colour} has a contrast of {least} on {GROUND[theme]}")


def of_theme(theme: str) -> dict[str, object]:
    """Colours by what they are of; the map of values around a middle as a list, lowest first."""
    ink = INK if theme == "light" else "#e6e8ec"
    marks = {name: ink if look.colour == INK else on_ground(look.colour, theme) for name, look in LOOKS.items()}
    return {
        "ink": ink,
        "faint": on_ground(FAINT, theme, READABLE),
        "pale": PALE if theme == "light" else "#6b7280",
        "ground": GROUND[theme],
        "focus": "#0b57d0" if theme == "light" else "#8ab4f8",
        "map": diverging(theme),
        **marks,
    }


def diverging(theme: str) -> list[str]:
    """The figures' map of values on both sides of zero; on a dark ground its middle is dark too."""
    shades = [to_hex(DIVERGING(at)) for at in np.linspace(0.04, 0.96, MAP_COLOURS)]
    if theme == "light":
        return shades
    ends = [np.array(to_rgb(to_hex(DIVERGING(at)))) for at in (0.18, 0.80)]
    middle = np.array(to_rgb("#2a2e36"))
    return [
        to_hex(middle + abs(at) * (ends[int(at > 0)] * (1 - abs(at) / 3) + abs(at) / 3 - middle))
        for at in np.linspace(-1, 1, MAP_COLOURS)
    ]


def of_models(run: list[str], published: list[str], theme: str) -> dict[str, dict[str, dict[str, object]]]:
    """Colour and dashes of each model's line, those of the run and of the paper apart: both may have a model of one name."""
    return {
        "run": {model: _line(look, theme) for model, look in zip(run, run_looks(len(run)), strict=True)},
        "published": {model: _line(published_look(model)[1], theme) for model in published},
    }


def _line(look: Look, theme: str) -> dict[str, object]:
    """Colour and dashes of a line that has a look of the figures."""
    ink = INK if theme == "light" else "#e6e8ec"
    colour = ink if look.colour == INK else on_ground(look.colour, theme)
    if look.dash == "-":
        return {"colour": colour, "dash": [1, 0]}
    return {"colour": colour, "dash": [4, 3] if look.dash == ":" else [2.2 * part for part in look.dash[1]]}


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
