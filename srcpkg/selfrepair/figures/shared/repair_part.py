"""One part of condensed self-repair, in logits and as a fraction of direct effect, by layer of the ablated head."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from selfrepair.figures.style import guides, inputs, layout, looks, marks
from selfrepair.figures.style.panels import Panel, Panels
from selfrepair.figures.wording import largest, measured, percentage, signs


def panels_of_part(tables: inputs.Tables, logits: str, fraction: str, reference: float | None = None) -> Panels:
    """The part in logits, and its fraction of direct effect.

    Args:
        tables: "heads" and "layers".
        logits: The part, in logits.
        fraction: The same as a clipped fraction of direct effect.
        reference: What the paper says of the fraction.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    columns = ["relative_depth", "layer", *inputs.with_interval(logits, fraction)]
    heads = inputs.table(tables, "heads", [*columns, "head"], selection="top")
    layers = inputs.table(tables, "layers", columns, selection="top")
    run = inputs.settings(tables, "heads", "layers")
    colour = looks.LOOKS[logits].colour

    def of_logits(ax: Axes) -> list[str]:
        return marks.by_layer_panel(ax, heads, layers, logits, run, colour=colour)

    def of_fraction(ax: Axes) -> list[str]:
        # A clipped fraction lies between 0 and 1: the fixed range lets it be compared with other runs and parts.
        counts = marks.by_layer_panel(ax, heads, layers, fraction, run, colour=colour, limits=(-0.02, 1.02))
        if reference is not None:
            guides.reference_line(ax, reference, f"Rushing &\nNanda 2024:\nabout {100 * reference:.0f}%")
        return counts

    return Panels({"logits": Panel(of_logits), "fraction": Panel(of_fraction)}, run, ("top", "dots and bands"))


def draw_part(shown: Panels) -> Figure:
    """Draw both panels on a page two columns wide."""
    with looks.context():
        figure = layout.new_figure(looks.TWO_COLUMNS, 70.0)
        left, right = figure.subplots(1, 2)
        shown.draw_noted(left, right)
        layout.panel_letter(left, "a")
        layout.panel_letter(right, "b")
        shown.footer(figure, looks.TWO_COLUMNS)
    return figure


def finding_of_part(tables: inputs.Tables, logits: str, fraction: str, paper: str) -> list[str]:
    """The part over the model and in the layer where it is largest, and its fraction of direct effect.

    Args:
        tables: As for `panels_of_part`, and "model".
        logits: The part, in logits.
        fraction: The same as a clipped fraction of direct effect.
        paper: What the paper says of it, a sentence.

    Returns:
        Lines of Markdown.

    Raises:
        ValueError: A table, a column or a setting is missing.
    """
    names = inputs.with_interval(logits, fraction)
    model = inputs.table(tables, "model", ["n_heads", *names], selection="top").iloc[0]
    heads = inputs.table(tables, "heads", names, selection="top")
    layers = inputs.table(tables, "layers", ["layer", *names], selection="top")
    best = largest(layers, logits)
    return [
        f"Mean over {int(model['n_heads']):,} heads on their top tokens: {measured(model, logits)}, "
        f"{signs(heads, logits, 'heads')}. Largest layer mean: layer {int(best['layer'])}, {measured(best, logits)}.",
        f"Per token, as a share of the direct effect clipped to 0 to 1, mean over heads: {percentage(model, fraction)}. "
        f"Clipping drops breakage. {paper}",
    ]
