"""The curve over budgets."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.figures import draw_band, empty_figure, save
from medseg_attack.runs.stored_specs import ball_spec, budget_of, norm_of, sizeless
from medseg_attack.threat.budgets import parse_budget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = ("model", "attack", "loss", "ball", "data", "split", "cases_id")  # what the runs of a line have in common
WINDOW = "1/255 of the intensity window"
AXES = {"raw": "stored values", "sigma": "standard deviations of the image's own noise"}  # of budgets in these units
BANDS = 2  # lines of one plot whose bands can still be told apart


def curve(summary: pd.DataFrame, file: Path) -> None:
    """Mean Dice over the budget, a line per model, attack, loss, ball and set of cases with its interval.

    Intervals of up to `BANDS` lines are bands. Those of more would hide each other: they are bars, side by side.
    Controls are dashed. Budgets in another unit have axes of their own.
    """
    runs = on_axes(summary)
    panels = list(runs.groupby("axis", sort=False))
    names = list(dict.fromkeys(_label(line.iloc[0], runs) for _, line in runs.groupby(list(LINE), sort=False)))
    figure = empty_figure(7 * len(panels), 4.5 + 0.2 * len(names))
    for axes, (axis, of_axis) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines = of_axis.groupby(list(LINE), sort=False)
        places = _places(of_axis["eps"], lines.ngroups)
        for place, (_, line) in zip(places, lines, strict=True):
            name, line = _label(line.iloc[0], runs), line.sort_values("eps")
            colour = f"C{names.index(name)}"  # the same on every axis
            _draw(axes, line, name, colour)
            if lines.ngroups > BANDS:
                axes.vlines(line["eps"] + place, line["low"], line["high"], color=colour, alpha=0.6, lw=1.5)
            else:
                draw_band(axes, "eps", line, colour, 0.12)
        axes.set(xlabel=figure_text(str(axis)), ylabel="mean Dice", ylim=(0, 1))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    drawn = [axes.get_legend_handles_labels() for axes in figure.axes]
    by_name = {name: handle for handles, texts in drawn for handle, name in zip(handles, texts, strict=True)}
    figure.legend(by_name.values(), by_name.keys(), fontsize=8, loc="outside lower left")
    save(figure, file)


def on_axes(summary: pd.DataFrame) -> pd.DataFrame:
    """The runs with their ball less its size, the name of their `axis`, and their `eps` on it.

    A budget that was typed in HU, stored values or noise is another fraction of the window for each scan: it stands on
    an axis of its unit. One in per cent of the window is the same fraction for all.
    """
    places = [_place(str(ball), eps, unit) for ball, eps, unit in zip(*_sizes(summary), strict=True)]
    return summary.assign(
        ball=summary["ball"].map(lambda ball: str(sizeless(ball_spec(str(ball))))),
        axis=[axis for axis, _ in places],
        eps=[eps for _, eps in places],
    )


def _sizes(summary: pd.DataFrame) -> "tuple[pd.Series[str], pd.Series[float], pd.Series[str]]":
    units = summary["eps_unit"].fillna("") if "eps_unit" in summary else pd.Series("", summary.index)
    return summary["ball"], summary["eps"].astype(float), units


def _place(ball: str, eps: float, unit: str) -> tuple[str, float]:
    """The axis of a run and its place on it.

    >>> _place("linf(eps=5HU)", 0.0125, ""), _place("linf(eps=10%window)", 0.1, ""), _place("displacement", 3.0, "mm")
    (('eps in HU', 5.0), ('eps in 1/255 of the intensity window', 25.5), ('eps in mm', 3.0))
    """
    typed = budget_of(ball_spec(ball))
    budget = parse_budget(typed) if typed else None
    if budget and budget.unit != "%window":
        return f"eps in {AXES.get(budget.unit, budget.unit)}", budget.value
    return (f"eps in {unit}", eps) if unit else (f"eps in {WINDOW}", eps * 255)


def _places(budgets: "pd.Series[float]", n_lines: int) -> list[float]:
    """How far beside its budget the bar of each line stands: together they take up half of the least gap, and no more
    than a twentieth of the axis.
    """
    marks = sorted({0.0, *budgets})
    gap = min((high - low for low, high in pairwise(marks)), default=1.0)
    gap = min(gap, marks[-1] / 10) if marks[-1] else gap
    return [gap / 2 * (place / max(n_lines - 1, 1) - 0.5) for place in range(n_lines)]


def _label(run: "pd.Series[float]", runs: pd.DataFrame) -> str:
    """The name of a line: its attack, and what else differs between lines."""
    several = {name for name in LINE if runs[name].nunique() > 1}
    words = [str(run["model"]) if "model" in several else "", str(run["attack"]), str(run["loss"])]
    norms = runs["ball"].map(lambda ball: norm_of(ball_spec(ball))).nunique() > 1
    words += [norm_of(ball_spec(str(run["ball"]))) if norms else ""]
    words += [str(run[name]) for name in ("data", "split") if name in several]
    words += [f"cases {run['cases_id']}" if "cases_id" in several else ""]
    return " ".join(filter(None, words))


def _draw(axes: "Axes", line: pd.DataFrame, label: str, colour: str) -> None:
    is_control = line["role"].iloc[0] == "control"
    start = pd.DataFrame({"eps": [0.0], "mean_adv": line["mean_clean"].head(1).to_numpy()})
    points = pd.concat([start, line[["eps", "mean_adv"]]])
    axes.plot(
        points["eps"],
        points["mean_adv"],
        "--" if is_control else "-",
        marker="o",
        ms=3,
        label=figure_text(label),
        color=colour,
    )
