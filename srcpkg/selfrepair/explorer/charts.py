"""Charts of the page: Vega-Lite specifications by Altair, whose data, titles and colours the page fills in.

Text in braces, as ``{y}``, and colours in dollars, as ``$ink``, are what the page puts in (static/charts.js). Data have names:
``rows``, what is shown; ``line``, a line that guides the eye; ``cursor``, what the keyboard has reached.
"""

from typing import Any

import altair as alt

Spec = dict[str, Any]
Layered = alt.LayerChart | alt.FacetChart

POINT_SIZE = 16


def specifications() -> dict[str, Spec]:
    """Every chart of the page by name."""
    made = {
        "heads": heads(),
        "layers": layers(),
        "tokens": tokens(),
        "bars": bars(),
        "scales": scales(),
        "reinforcement": reinforcement(),
    }
    return {name: _bare(chart.to_dict()) for name, chart in made.items()}


def heads() -> Layered:
    """A cell a head, by layer and head, coloured by a value around its middle."""
    place = {
        "x": alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        "y": alt.Y("head:O", title="head"),
    }
    cells = (
        alt.Chart(alt.NamedData("rows"))
        .mark_rect(cursor="pointer")
        .encode(
            **place,
            color=alt.Color(
                "shown:Q",
                title="{value}",
                scale=alt.Scale(domain=["{low}", "{high}"], range=["$map"], clamp=True),
                legend=alt.Legend(
                    orient="top",
                    gradientLength=180,
                    gradientThickness=10,
                    titleLimit=300,
                    titleOrient="left",
                    format="~g",
                ),
            ),
            tooltip=[alt.Tooltip("name:N", title="head"), alt.Tooltip("told:N", title="{value}")],
        )
    )
    return alt.layer(cells, _cursor(place))


def layers() -> Layered:
    """A line a model through its layers' means by relative depth, with bands of their intervals."""
    x = alt.X(
        "depth:Q", title="relative depth of the layer", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(tickCount=6)
    )
    scale, value = alt.Scale(domain=["{reach}"], nice=True), "{value}"
    scale_of = alt.Scale(domain=["{models}"], range=["{colours}"])
    colour = alt.Color(
        "model:N",
        title=None,
        scale=scale_of,
        legend=alt.Legend(
            orient="top", columns=3, labelLimit=260, symbolType="stroke", symbolSize=500, symbolOpacity=1
        ),
    )
    dash = alt.StrokeDash("model:N", title=None, scale=alt.Scale(domain=["{models}"], range=["{dashes}"]))
    base = alt.Chart(alt.NamedData("rows"))
    band = base.mark_area(opacity=0.2).encode(
        x=x, y=alt.Y("low:Q", title=value, scale=scale), y2="high:Q", color=colour
    )
    y = alt.Y("value:Q", title=value, scale=scale)
    line = base.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=colour, strokeDash=dash)
    dots = base.mark_point(size=24, filled=True, opacity=1).encode(
        x=x,
        y=y,
        color=colour,
        tooltip=[alt.Tooltip("model:N"), alt.Tooltip("layer:Q"), alt.Tooltip("told:N", title=value)],
    )
    return alt.layer(_zero("y"), band, line, dots)


def tokens() -> Layered:
    """A dot a token: one quantity against another, top tokens in front, and the line where nothing is repaired."""
    place = {
        "x": alt.X("x:Q", title="{x}", scale=alt.Scale(domain=["{reach_x}"], nice=True)),
        "y": alt.Y("y:Q", title="{y}", scale=alt.Scale(domain=["{reach_y}"], nice=True)),
    }
    groups = ["other tokens", "top tokens"]
    dots = (
        alt.Chart(alt.NamedData("rows"))
        .mark_point(filled=True, size=POINT_SIZE, cursor="pointer", opacity=0.75)
        .encode(
            **place,
            color=alt.Color(
                "group:N",
                title=None,
                scale=alt.Scale(domain=groups, range=["$pale", "{colour}"]),
                legend=alt.Legend(orient="top", symbolSize=60, symbolOpacity=1),
            ),
            tooltip=[
                alt.Tooltip("token:N", title="token"),
                alt.Tooltip("correct:N", title="correct next"),
                alt.Tooltip("place:N", title="prompt, position"),
                alt.Tooltip("x:Q", title="{x}", format=".3f"),
                alt.Tooltip("y:Q", title="{y}", format=".3f"),
            ],
        )
    )
    guides = alt.Chart(alt.NamedData("line"))
    guide = guides.mark_line(strokeDash=[5, 4], color="$faint", clip=True).encode(x="x:Q", y="y:Q", order="x:Q")
    told = (
        guides.transform_filter("datum.label != null")
        .mark_text(align="right", dx=-8, dy=4, color="$faint", fontSize=11)
        .encode(x="x:Q", y="y:Q", text="label:N")
    )
    return alt.layer(_zero("x"), _zero("y"), dots, guide, told, _cursor(place, mark="point"))


def bars() -> Layered:
    """A bar a thing, with its interval."""
    y = alt.Y("label:N", title=None, sort=None, axis=alt.Axis(labelLimit=240, domain=False, ticks=False))
    scale = alt.Scale(domain=["{reach}"], nice=True)
    base = alt.Chart(alt.NamedData("rows"))
    bar = base.mark_bar(height={"band": 0.62}).encode(
        x=alt.X("value:Q", title="{value}", scale=scale, axis=alt.Axis(tickCount=7)),
        y=y,
        color=alt.Color("colour:N", scale=None),
        tooltip=[alt.Tooltip("label:N", title="what"), alt.Tooltip("told:N", title="{value}")],
    )
    interval = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=1.6, color="$ink")
        .encode(x=alt.X("low:Q", title="{value}", scale=scale), x2="high:Q", y=y)
    )
    return alt.layer(bar, interval, _zero("x"))


def scales() -> Layered:
    """How a number is spread over tokens: shares by bin, top tokens and all."""
    steps = (
        alt.Chart(alt.NamedData("rows"))
        .mark_rect(opacity=0.6)
        .encode(
            x=alt.X("low:Q", title="{x}", scale=alt.Scale(domain=["{reach}"], nice=False), axis=alt.Axis(tickCount=7)),
            x2="high:Q",
            y=alt.Y("share:Q", title="share of tokens", scale=alt.Scale(zero=True), axis=alt.Axis(format="~%")),
            y2=alt.Y2Datum(0),
            color=alt.Color(
                "group:N",
                title=None,
                scale=alt.Scale(domain=["all tokens", "top tokens"], range=["$pale", "{colour}"]),
                legend=alt.Legend(orient="top", symbolSize=60),
            ),
            tooltip=[
                alt.Tooltip("group:N", title="of"),
                alt.Tooltip("bin:N", title="{x}"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )
    one = alt.Chart(alt.NamedData("line")).mark_rule(strokeDash=[5, 4], color="$ink").encode(x="x:Q")
    return alt.layer(steps, one)


def reinforcement() -> Layered:
    """A head's direct effect with its own output added to its input, beside controls, by the times it is added."""
    base = alt.Chart(alt.NamedData("rows"))
    scale = alt.Scale(domain=["{reach}"], nice=True)
    x = alt.X(
        "scale:Q",
        title="times the output is added to the input",
        scale=alt.Scale(domain=["{ends}"]),
        axis=alt.Axis(values=["{scales}"], format="~g"),
    )
    colour = alt.Color(
        "added:N",
        title=None,
        scale=alt.Scale(
            domain=["own output", "random direction", "another head's output"],
            range=["$direct_effect", "$faint", "$self_repair_from_heads"],
        ),
        legend=alt.Legend(orient="top", columns=3, labelLimit=200),
    )
    line = base.mark_line(point=alt.OverlayMarkDef(filled=True, size=34)).encode(
        x=x,
        y=alt.Y("value:Q", title="direct effect (logits)", scale=scale),
        color=colour,
        tooltip=[
            alt.Tooltip("added:N"),
            alt.Tooltip("scale:Q", title="times"),
            alt.Tooltip("told:N", title="direct effect (logits)"),
        ],
    )
    interval = base.mark_rule().encode(
        x=x, y=alt.Y("low:Q", title="direct effect (logits)", scale=scale), y2="high:Q", color=colour
    )
    clean = alt.Chart(alt.NamedData("line")).mark_rule(strokeDash=[5, 4], color="$ink").encode(y="y:Q")
    return alt.layer(clean, interval, line)


def _cursor(place: dict[str, Any], mark: str = "rect") -> alt.Chart:
    """What the keyboard has reached, or what is shown: a frame around it."""
    chart = alt.Chart(alt.NamedData("cursor"))
    if mark == "rect":
        return chart.mark_rect(filled=False, stroke="$focus", strokeWidth=2.5).encode(**place)
    return chart.mark_point(filled=False, stroke="$focus", strokeWidth=2.5, size=160).encode(**place)


def _zero(axis: str) -> alt.Chart:
    """The line of zero across an axis."""
    rule = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="$faint", strokeWidth=0.8)
    return rule.encode(**{axis: "zero:Q"})


def _bare(spec: Spec) -> Spec:
    """A specification without what the page sets itself."""
    return {key: value for key, value in spec.items() if key not in ("config", "datasets")}
