"""Figures in axes of the user's own, as a notebook wants them: the panels of a page, without the page.

One convention holds for all figures. `ax` is one matplotlib axes for a figure of one panel, and an array of as many axes as
there are panels for the others (`panel_names`), in any shape, filled row by row; or one axes with `panel`, which names one of
them. Without `ax` a figure of fitting size is made. What is given comes back. Labels have their units, a legend stands in the
axes where there is one, and the title has the settings and counts what lies outside the axes' limits.
"""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from selfrepair.figures import module_of
from selfrepair.figures.style import footers, inputs, looks
from selfrepair.figures.style.panels import Panel, Panels, coloured

DPI = 150
"""At which text is as large in a notebook as the notebook's own."""
ROW_MM = 64.0
SEPARATOR = " · "
ROOM = 4
"""Lines of a legend that one of several panels has room for."""


def panel_names(name: str, tables: inputs.Tables) -> list[str]:
    """Names of a figure's panels, in their order; they depend on the run's heads and kinds of ablation.

    Args:
        name: Name of the figure.
        tables: The figure's tables.

    Raises:
        ValueError: No such figure, or a table, a column or a setting is missing.
    """
    return list(module_of(name).panels(tables).of)


def plot_figure(name: str, tables: inputs.Tables, ax: Any = None, panel: str | None = None) -> Any:
    """Draw a figure's panels into axes.

    matplotlib's settings are the project's while it draws, and the caller's own before and after.

    Args:
        name: Name of the figure.
        tables: The figure's tables.
        ax: Axes for its panel, or as many as it has panels; None makes a figure.
        panel: The one panel to draw.

    Returns:
        `ax`; without it the axes that were made: one for one panel, else an array of them.

    Raises:
        ValueError: As `panel_names`; a panel that it has not, or another number of axes.
    """
    with looks.context():
        shown = module_of(name).panels(tables)
        of = _chosen(name, shown, panel)
        axes = _made(len(of)) if ax is None else _given(name, ax, list(of))
        on_page = ax is None
        if on_page:
            width = looks.ONE_COLUMN if len(axes) == 1 else looks.TWO_COLUMNS
            text = footers.wrapped(_settings(shown), width, looks.SMALL_SIZE, SEPARATOR)
            axes[0].figure.suptitle(text, fontsize=looks.SMALL_SIZE, color=looks.FAINT)
        for number, (one, drawn) in enumerate(zip(axes, of.values(), strict=True)):
            counts = drawn.draw(one)
            if drawn.ylabel:
                one.set_ylabel(drawn.ylabel)
            first = number == 0 and not on_page
            _head(one, [drawn.title.split("\n"), _settings(shown) if first else [], counts])
            if shown.note is not None:
                _write(one, shown.note)
        _legends(axes, shown.legend_title, on_page)
        _colour_bars(dict(zip(axes, of.values(), strict=True)))
    if ax is not None:
        return ax
    return axes[0] if len(axes) == 1 else np.array(axes, object)


def _chosen(name: str, shown: Panels, panel: str | None) -> Mapping[str, Panel]:
    if panel is None:
        return shown.of
    if panel not in shown.of:
        raise ValueError(f"{name} has no panel {panel!r}: choose one of {', '.join(shown.of)}")
    return {panel: shown.of[panel]}


def _given(name: str, ax: Any, wanted: list[str]) -> list[Axes]:
    axes = list(np.array(ax, object).ravel())
    if other := next((one for one in axes if not isinstance(one, Axes)), None):
        raise ValueError(f"ax holds {type(other).__name__}, wanted matplotlib axes: make some with plt.subplots()")
    if len(axes) != len(wanted):
        one_panel = "" if len(wanted) == 1 else ", or one and panel=, the name of one of them"
        raise ValueError(
            f"{name} has {len(wanted)} panel{'s' * (len(wanted) > 1)} here ({', '.join(wanted)}) and got {len(axes)} axes: "
            f"give {len(wanted)}{one_panel}"
        )
    return axes


def _made(n: int) -> list[Axes]:
    columns = 3 if n > 3 and n % 3 == 0 else min(n, 2)
    rows = math.ceil(n / columns)
    width = looks.ONE_COLUMN if n == 1 else looks.TWO_COLUMNS
    size = (width / 25.4, rows * ROW_MM / 25.4)
    figure, grid = plt.subplots(rows, columns, figsize=size, dpi=DPI, layout="constrained", squeeze=False)
    for spare in grid.ravel()[n:]:
        figure.delaxes(spare)
    return list(grid.ravel()[:n])


def _settings(shown: Panels) -> list[str]:
    """The settings that a reader of the axes needs; the line under a published figure has the others too."""
    run = shown.run
    models = run["model"] if isinstance(run["model"], list) else [run["model"]]
    phrases = [footers.PHRASES.get(text, text) for text in shown.what]
    return [
        *([str(model) for model in models] if len(models) == 1 else []),  # several are in the legend
        *([f"{run['ablation']} ablation"] if run["ablation"] and not shown.kinds else []),  # kinds head their panels
        f"n = {int(run['n_tokens']):,} tokens",
        *(phrase.format(top=100 * run["top_fraction"]) for phrase in phrases if "{level" not in phrase),
        *([f"{100 * run['confidence']:g}% intervals"] if any("{level" in phrase for phrase in phrases) else []),
    ]


def _head(ax: Axes, parts: list[list[str]]) -> None:
    """Write the title, broken where the axes end: between items, or within one that is longer."""
    width = _width_mm(ax)
    lines = [
        footers.wrapped(line.split(" "), width, looks.SMALL_SIZE, " ")
        for items in parts
        for line in footers.wrapped(items, width, looks.SMALL_SIZE, SEPARATOR).split("\n")
        if line.strip()
    ]
    ax.set_title("\n".join(lines), fontsize=looks.SMALL_SIZE, linespacing=looks.LINE_SPACING)


def _width_mm(ax: Axes) -> float:
    return float(ax.get_window_extent().width / ax.figure.dpi * 25.4)


def _write(ax: Axes, note: str) -> None:
    text = footers.wrapped(note.split(" "), 0.8 * _width_mm(ax), looks.TEXT_SIZE, " ")
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=looks.FAINT)


def _legends(axes: list[Axes], title: str | None, on_page: bool) -> None:
    """A legend in every axes that shows what no one before it does; a long one of a page of ours stands below the panels."""
    told: set[str] = set()
    for ax in axes:
        shown: dict[str, Any] = {}
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            shown.setdefault(label, handle)
        if set(shown) <= told:
            continue
        told |= set(shown)
        outside = on_page and len(axes) > 1 and len(shown) > ROOM
        place: Any = {"loc": "outside lower center", "ncols": 3} if outside else {"loc": "best"}
        legend = (ax.figure if outside else ax).legend(
            shown.values(), shown.keys(), **place, title=title, fontsize=looks.SMALL_SIZE, title_fontsize=looks.SMALL_SIZE,
            frameon=True, framealpha=0.8, edgecolor="none",
        )  # fmt: skip
        for drawn in legend.legend_handles:
            if drawn is not None:
                drawn.set_alpha(1)
            if isinstance(drawn, PathCollection):
                drawn.set_sizes([max(12.0, *drawn.get_sizes())])


def _colour_bars(drawn: Mapping[Axes, Panel]) -> None:
    """A scale beside the axes that share one."""
    groups: dict[tuple[Any, ...], list[Axes]] = {}
    for ax, panel in drawn.items():
        if panel.scale.label:
            groups.setdefault((panel.scale, coloured(ax).get_clim(), id(ax.figure)), []).append(ax)
    for (scale, *_), axes in groups.items():
        bar = axes[0].figure.colorbar(coloured(axes[-1]), ax=axes, ticks=scale.ticks, extend=scale.extend)
        bar.set_label(scale.label, fontsize=looks.SMALL_SIZE)
        bar.ax.tick_params(labelsize=looks.SMALL_SIZE)
        bar.outline.set_linewidth(0.4)
