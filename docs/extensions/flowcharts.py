"""Flowcharts, drawn as SVG when the site is built.

A forge draws the blocks ``mermaid`` of docs/architecture.md by Mermaid, three megabytes of JavaScript that the site does
without: the nodes and arrows are laid out here, in layers, and take the theme's colours.
"""

import re
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

Edge = tuple[str, str]

FONT, ADVANCE, LINE = 12, 6.4, 16
"""Size of the text, width of a character, distance of lines; in pixels."""
PAD, GAP, AISLE = 8, 10, 46
"""Around text in a box; between boxes of a layer; between layers."""
SWEEPS = 12
"""Times that layers are ordered, and boxes moved, by what they are joined to."""


class Chart(NamedTuple):
    """A flowchart.

    Attributes:
        down: Layers follow one another downward, or to the right.
        labels: The lines of each node's text.
        edges: From one node to another.
    """

    down: bool
    labels: dict[str, list[str]]
    edges: list[Edge]


def parse(text: str) -> Chart:
    """Read a flowchart as docs/draw_architecture.py writes it.

    Raises:
        ValueError: A line of another kind.
    """
    first, *lines = [line.strip() for line in text.splitlines() if line.strip()]
    if first not in ("flowchart TD", "flowchart LR"):
        raise ValueError(f"the block begins with {first!r}; wanted 'flowchart TD' or 'flowchart LR'")
    labels: dict[str, list[str]] = {}
    edges: list[Edge] = []
    for line in lines:
        if node := re.fullmatch(r'(\w+)\["?(.*?)"?\]', line):
            labels[node[1]] = node[2].split("<br/>")
        elif edge := re.fullmatch(r"(\w+) --> (\w+)", line):
            edges.append((edge[1], edge[2]))
        else:
            raise ValueError(f"{line!r} is neither a node nor an arrow between two")
    return Chart(first.endswith("TD"), labels, edges)


def layers_of(names: list[str], edges: list[Edge]) -> dict[str, int]:
    """Each node one layer after the last of those before it; what comes first stands just before what needs it."""
    at = dict.fromkeys(names, 0)
    for _ in names:
        for start, end in edges:
            at[end] = max(at[end], at[start] + 1)
    after = {name: [at[end] for start, end in edges if start == name] for name in names}
    begins = set(names) - {end for _, end in edges}
    return {name: min(after[name]) - 1 if name in begins and after[name] else at[name] for name in names}


def spaced(wanted: list[float], sizes: list[float]) -> list[float]:
    """Middles nearest to those that are wanted, in that order and without overlap (pool adjacent violators)."""
    offsets = [0.0]
    for one, other in pairwise(sizes):
        offsets.append(offsets[-1] + (one + other) / 2 + GAP)
    blocks: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        blocks.append((want - offset, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (one, n), (other, m) = blocks[-2:]
            blocks[-2:] = [((one * n + other * m) / (n + m), n + m)]
    starts = [value for value, count in blocks for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def place(chart: Chart) -> tuple[dict[str, tuple[float, float, float, float]], list[list[tuple[float, float]]]]:
    """Boxes (left, top, width, height) by node, and the points that each arrow goes through."""
    widths = {name: max(map(len, lines)) * ADVANCE + 2 * PAD for name, lines in chart.labels.items()}
    heights = {name: len(lines) * LINE + PAD for name, lines in chart.labels.items()}
    layer = layers_of([*chart.labels], chart.edges)
    # A long arrow goes through a place of its own in each layer between.
    ways, hops = [], []
    for start, end in chart.edges:
        between = [f"{start}>{end}>{at}" for at in range(layer[start] + 1, layer[end])]
        layer |= {name: layer[start] + 1 + at for at, name in enumerate(between)}
        widths |= dict.fromkeys(between, 2.0)
        heights |= dict.fromkeys(between, 2.0)
        ways.append([start, *between, end])
        hops += pairwise(ways[-1])
    rows = [[name for name in layer if layer[name] == at] for at in range(max(layer.values()) + 1)]
    across, along = (widths, heights) if chart.down else (heights, widths)
    middle = {name: float(at) for row in rows for at, name in enumerate(row)}
    before = {name: [start for start, end in hops if end == name] for name in layer}
    after = {name: [end for start, end in hops if start == name] for name in layer}
    for sweep in range(2 * SWEEPS):
        joined = before if sweep % 2 == 0 else after
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            want = {name: _mean([middle[other] for other in joined[name]], middle[name]) for name in row}
            row.sort(key=want.__getitem__)
            middle |= {name: float(at) for at, name in enumerate(row)}
    for row in rows:
        middle |= dict(zip(row, spaced([0.0] * len(row), [across[name] for name in row]), strict=True))
    for sweep in range(2 * SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            want = [_mean([middle[other] for other in (*before[name], *after[name])], middle[name]) for name in row]
            middle |= dict(zip(row, spaced(want, [across[name] for name in row]), strict=True))
    low = min(middle[name] - across[name] / 2 for name in layer)
    starts = [0.0]
    for row in rows:
        starts.append(starts[-1] + max(along[name] for name in row) + AISLE)
    corners = {name: (middle[name] - low - across[name] / 2, starts[layer[name]]) for name in layer}
    if not chart.down:
        corners = {name: (y, x) for name, (x, y) in corners.items()}
    boxes = {name: (*corners[name], widths[name], heights[name]) for name in layer}
    return {name: boxes[name] for name in chart.labels}, [
        _through([boxes[name] for name in way], chart.down) for way in ways
    ]


def _mean(values: list[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _through(boxes: list[tuple[float, float, float, float]], down: bool) -> list[tuple[float, float]]:
    points = []
    for at, (left, top, width, height) in enumerate(boxes):
        enters = (left + width / 2, top) if down else (left, top + height / 2)
        leaves = (left + width / 2, top + height) if down else (left + width, top + height / 2)
        points += [enters] * (at > 0) + [leaves] * (at < len(boxes) - 1)
    return points


def draw(chart: Chart) -> str:
    """The chart as an SVG element; its colours are those of site.css."""
    boxes, ways = place(chart)
    width = max(left + w for left, _, w, _ in boxes.values()) + 2
    height = max(top + h for _, top, _, h in boxes.values()) + 2
    names = ", ".join(lines[0] for lines in chart.labels.values())
    parts = [
        f'<div class="flowchart" tabindex="0" role="region" aria-label="Flowchart"><svg role="img" width="{width:.0f}" '
        f'height="{height:.0f}" viewBox="-1 -1 {width:.0f} {height:.0f}" font-size="{FONT}">',
        f"<title>Arrows between {escape(names)}</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
    ]
    for points in ways:
        path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
        for at, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
            if at % 2:
                path += f" L{x1:.1f} {y1:.1f}"
            elif chart.down:
                path += f" C{x0:.1f} {(y0 + y1) / 2:.1f} {x1:.1f} {(y0 + y1) / 2:.1f} {x1:.1f} {y1:.1f}"
            else:
                path += f" C{(x0 + x1) / 2:.1f} {y0:.1f} {(x0 + x1) / 2:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
        parts.append(f'<path class="way" fill="none" d="{path}" marker-end="url(#arrow)"/>')
    for name, (left, top, w, h) in boxes.items():
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" width="{w:.1f}" height="{h:.1f}" rx="4"/>')
        for at, line in enumerate(chart.labels[name]):
            kind = ' class="detail"' if at else ""
            y = top + PAD / 2 + LINE * (at + 0.75)
            parts.append(f'<text x="{left + w / 2:.1f}" y="{y:.1f}" text-anchor="middle"{kind}>{escape(line)}</text>')
    return "".join([*parts, "</svg></div>"])


class Flowchart(Directive):
    """A fenced block ``mermaid`` that holds a flowchart."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Its drawing."""
        return [nodes.raw("", draw(parse("\n".join(self.content))), format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("mermaid", Flowchart)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
