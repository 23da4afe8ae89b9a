"""The curve over budgets."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.figures import empty_figure, save
from medseg_attack.runs.stored_specs import ball_spec, norm_of, sizeless

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = ("model", "attack", "loss", "ball", "data", "split", "cases_id")  # what the runs of a line have in common
WINDOW = "1/255 of the intensity window"
BANDS = 2  # lines of one plot whose bands can still be told apart


def curve(summary: pd.DataFrame, file: Path) -> None:
    """Mean Dice over the budget, a line per model, attack, loss, ball and set of cases with its interval.

    Intervals of up to `BANDS` lines are bands. Those of more would hide each other: they are bars, side by side.
    Controls are dashed. Budgets in another unit have axes of their own.
    """
    runs = summary.assign(ball=summary["ball"].map(lambda ball: str(sizeless(ball_spec(ball)))))
    runs = runs.assign(eps_unit=runs["eps_unit"].fillna("") if "eps_unit" in runs else "")
    panels = list(runs.groupby("eps_unit", sort=False))
    n_lines = len(runs[list(LINE)].drop_duplicates())
    figure = empty_figure(7 * len(panels), 4.5 + 0.2 * n_lines)
    for axes, (unit, of_unit) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines, scale = of_unit.groupby(list(LINE), sort=False), 1 if unit else 255
        places = _places(of_unit["eps"] * scale, lines.ngroups)
        for place, (_, line) in zip(places, lines, strict=True):
            colour = f"C{sum(len(drawn.lines) for drawn in figure.axes)}"
            line = line.assign(eps=line["eps"] * scale).sort_values("eps")
            _draw(axes, line, _label(line.iloc[0], runs), colour)
            if lines.ngroups > BANDS:
                axes.vlines(line["eps"] + place, line["low"], line["high"], color=colour, alpha=0.6, lw=1.5)
            else:
                axes.fill_between(line["eps"], line["low"], line["high"], alpha=0.12, color=colour, lw=0)
        axes.set(xlabel=f"eps in {figure_text(str(unit)) or WINDOW}", ylabel="mean Dice", ylim=(0, 1))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower left")
    save(figure, file)


def _places(budgets: "pd.Series[float]", n_lines: int) -> list[float]:
    """How far beside its budget the bar of each line stands: together they take up half of the least gap."""
    marks = sorted({0.0, *budgets})
    gap = min((high - low for low, high in pairwise(marks)), default=1.0)
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
