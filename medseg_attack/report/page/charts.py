"""The charts of a page as Vega-Lite: the browser draws them from data that the page holds, and asks no network.

Altair builds them and checks them against Vega-Lite's schema. `vl_convert` packs Vega, Vega-Lite and vega-embed into
one script of 0.9 MB, which stands in the page. With `ast`, vega-embed interprets expressions instead of compiling
them, so that the content security policy need not allow `eval`. Plotly's script is five times as large.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair
import vl_convert

from medseg_attack.report.colours import COLOURS, NEUTRAL
from medseg_attack.stats.scores import MEAN

# named in this package's own script, which draws the charts
LIBRARY = "window.vegaEmbed = vegaEmbed;"
Layers: TypeAlias = altair.LayerChart | altair.FacetChart
DASHES = [[1, 0], [7, 3], [2, 2], [9, 3, 2, 3], [4, 6]]  # of models
DICE = altair.Scale(domain=[0, 1])
SHAPES = ["circle", "circle", "square", "triangle-up"]  # of the twin, which is hollow, and of defended models


@functools.cache
def library() -> str:
    """The script of the charting library, whose own names stay its own."""
    return f"(() => {{\n{vl_convert.javascript_bundle(LIBRARY)}\n}})();"


def charts(colours: Mapping[str, str], models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The charts by name, without data.

    `curve`, `paired` and `profile` are of runs; `certified`, `alarms` and `worth` of what stands beside them.

    Args:
        colours: of each organ.
        models: their names; lines of several have dashes of their own, which the page names.
    """
    colour = altair.Color(
        "organ:N", title=None, scale=altair.Scale(domain=[MEAN, *colours], range=[NEUTRAL, *colours.values()])
    )
    each = {
        "curve": (_curve(colour, models), 210),
        "paired": (_paired(colour), 210),
        "profile": (_profile(colour), 260),
        "certified": (_certified(colour), 260),
        "alarms": (_alarms(), 260),
        "worth": (_worth(), 260),
    }
    return {name: _configured(chart.properties(height=height)) for name, (chart, height) in each.items()}


def _configured(chart: Layers) -> dict[str, Any]:
    chart = chart.properties(width="container")
    chart = chart.configure(background="transparent", font="system-ui, sans-serif", aria=False)
    chart = chart.configure_view(stroke=None).configure_axis(labelFontSize=11, titleFontSize=11, titleFontWeight=400)
    return dict(chart.to_dict())


def _named() -> altair.NamedData:
    return altair.NamedData(name="points")


def _curve(colour: altair.Color, models: Sequence[str]) -> Layers:
    """Dice over the budget: the chosen lines in the organ's colour with their band, the others thin and grey."""
    chart = altair.Chart(_named()).encode(
        x=altair.X("x:Q", title=None, scale=altair.Scale(zero=True, nice=False, padding=4)),
        detail=altair.Detail(["model:N", "line:N"]),
    )
    is_chosen, is_control = "datum.chosen", "datum.role === 'control'"
    dash = altair.StrokeDash("model:N", scale=altair.Scale(domain=list(models), range=DASHES), legend=None)
    tooltip = [
        altair.Tooltip("model:N"),
        altair.Tooltip("line:N", title="attack"),
        altair.Tooltip("eps:N"),
        altair.Tooltip("adv:Q", title="Dice", format=".3f"),
        altair.Tooltip("low:Q", title="95 % from", format=".3f"),
        altair.Tooltip("high:Q", title="95 % to", format=".3f"),
    ]
    dice = altair.Y("adv:Q", title="Dice", scale=DICE)
    chosen = chart.transform_filter(is_chosen)
    interval = {"y": altair.Y("low:Q", title="Dice", scale=DICE), "y2": "high:Q", "color": colour.legend(None)}
    band = chosen.mark_area(opacity=0.2).encode(**interval)
    bars = chosen.mark_rule(opacity=0.6, strokeWidth=1.5).encode(**interval)  # an area of one budget has no width
    others = chart.transform_filter(f"!{is_chosen} && !({is_control})")
    controls = chart.transform_filter(f"!{is_chosen} && {is_control}")
    layers = (
        band,
        bars,
        others.mark_line(color=NEUTRAL, opacity=0.45, strokeWidth=1).encode(y=dice),
        controls.mark_line(color=NEUTRAL, strokeWidth=1.5, strokeDash=[2, 3]).encode(y=dice),
        chosen.mark_line(strokeWidth=2.5).encode(y=dice, color=colour.legend(None), strokeDash=dash),
        chart.mark_point(filled=True, size=120, opacity=0).encode(y=dice, tooltip=tooltip),
        chosen.mark_point(filled=True, size=28, opacity=1).encode(y=dice, color=colour.legend(None), tooltip=tooltip),
    )
    return altair.layer(*layers)


def _paired(colour: altair.Color) -> Layers:
    """One line per patient from the clean to the attacked image."""
    chart = altair.Chart(_named()).encode(
        x=altair.X(
            "when:N",
            title=None,
            scale=altair.Scale(domain=["clean", "attacked"], padding=0.35),
            axis=altair.Axis(labelAngle=0),
        ),
        y=altair.Y("dice:Q", title="Dice", scale=DICE),
        detail="patient:N",
        color=colour.legend(None),
        tooltip=[
            altair.Tooltip("patient:N"),
            altair.Tooltip("when:N", title="image"),
            altair.Tooltip("dice:Q", title="Dice", format=".3f"),
            altair.Tooltip("change:Q", title="change", format="+.3f"),
        ],
    )
    hover = altair.selection_point(name="hover", fields=["patient"], on="pointerover", clear="pointerout", empty=False)
    line = chart.mark_line().encode(
        strokeWidth=altair.condition(hover, altair.value(4), altair.value(1.2)),
        opacity=altair.condition(hover, altair.value(1), altair.value(0.55)),
    )
    return altair.layer(line.add_params(hover), chart.mark_point(filled=True, size=45, opacity=0.9))


def _profile(colour: altair.Color) -> Layers:
    """The share of patients whose Dice is at least t, for every t, on clean and on attacked images."""
    chart = altair.Chart(_named()).encode(
        x=altair.X("t:Q", title="Dice of at least", scale=DICE, axis=altair.Axis(tickCount=6, format=".1f")),
        y=altair.Y("share:Q", title="share of patients", scale=DICE, axis=altair.Axis(format="%")),
    )
    dash = altair.StrokeDash(
        "when:N", scale=altair.Scale(domain=["attacked", "clean"], range=[[1, 0], [4, 3]]), legend=None
    )
    line = chart.mark_line(interpolate="step-before", strokeWidth=2).encode(
        color=colour.legend(None), strokeDash=dash, order=altair.Order("t:Q")
    )
    tooltip = [
        altair.Tooltip("organ:N"),
        altair.Tooltip("when:N", title="image"),
        altair.Tooltip("t:Q", title="Dice of at least", format=".3f"),
        altair.Tooltip("share:Q", title="patients", format=".0%"),
    ]
    points = chart.mark_point(filled=True, opacity=0, size=80).encode(tooltip=tooltip, detail=["organ:N", "when:N"])
    return altair.layer(line, points)


def _certified(colour: altair.Color) -> Layers:
    """Certified bounds of each organ over the radius."""
    chart = altair.Chart(_named()).encode(
        x=altair.X("radius:Q", title="radius", scale=altair.Scale(zero=True, nice=False, padding=4)),
        color=colour.legend(None),
        detail="end:N",
    )
    tooltip = [
        altair.Tooltip("organ:N"),
        altair.Tooltip("radius:Q", format=".4~g"),
        altair.Tooltip("bound:Q", title="certified", format=".3f"),
        altair.Tooltip("bottom:Q", title="from", format=".3f"),
        altair.Tooltip("top:Q", title="to", format=".3f"),
    ]
    bound = altair.Y("bound:Q", title="certified", scale=altair.Scale(zero=True))
    lower = chart.transform_filter("datum.end === 'low'")
    interval = {"y": altair.Y("bottom:Q", title="certified"), "y2": "top:Q"}
    return altair.layer(
        lower.mark_area(opacity=0.2).encode(**interval),
        lower.mark_rule(opacity=0.6, strokeWidth=1.5).encode(**interval),
        chart.mark_line(strokeWidth=2).encode(y=bound),
        chart.mark_point(filled=True, size=45, opacity=1).encode(y=bound, tooltip=tooltip),
    )


def _alarms() -> Layers:
    """The share of patients with an alarm, a row for clean images and for each attack."""
    names = altair.Y("name:N", title=None, sort=None, axis=altair.Axis(labelLimit=150))
    chart = altair.Chart(_named()).encode(y=names)
    share = altair.X("share:Q", title="patients with an alarm", scale=DICE, axis=altair.Axis(format="%", tickCount=5))
    tooltip = [
        altair.Tooltip("name:N", title="scored on"),
        altair.Tooltip("kind:N"),
        altair.Tooltip("share:Q", title="with an alarm", format=".1%"),
        altair.Tooltip("auroc:Q", title="AUROC", format=".3f"),
    ]
    is_attack = "datum.kind === 'attack' || datum.kind === 'adaptive'"
    points = chart.mark_point(filled=True, size=80, opacity=1).encode(
        x=share, tooltip=tooltip, color=altair.condition(is_attack, altair.value(COLOURS[4]), altair.value(NEUTRAL))
    )
    return altair.layer(chart.mark_bar(color=NEUTRAL, opacity=0.5, size=3).encode(x=share), points)


def _worth() -> Layers:
    """The Dice that each kind of attack leaves of the undefended twin (hollow) and of defended models."""
    levels = altair.Y("level:N", title=None, sort=None, axis=altair.Axis(labelLimit=200))
    chart = altair.Chart(_named()).encode(y=levels, yOffset=altair.YOffset("mark:N"))
    dice = altair.X("dice:Q", title="Dice", scale=DICE, axis=altair.Axis(tickCount=5))
    tooltip = [
        altair.Tooltip("model:N"),
        altair.Tooltip("level:N", title="under"),
        altair.Tooltip("dice:Q", title="Dice", format=".3f"),
        altair.Tooltip("low:Q", title="95 % from", format=".3f"),
        altair.Tooltip("high:Q", title="95 % to", format=".3f"),
    ]
    shape = altair.Shape("mark:N", scale=altair.Scale(domain=list("0123"), range=SHAPES), legend=None)
    fill = altair.condition("datum.mark === '0'", altair.value("transparent"), altair.value(NEUTRAL))
    return altair.layer(
        chart.mark_rule(color=NEUTRAL).encode(x=altair.X("low:Q", scale=DICE), x2="high:Q"),
        chart.mark_point(size=70, opacity=1, stroke=NEUTRAL).encode(x=dice, shape=shape, fill=fill, tooltip=tooltip),
    )
