"""Figures for papers: curves over the budget, robustness profiles, robust against clean Dice, and matrices.

Every number is that of `stats.scores.summary`, which `medattack compare` prints; a function returns a figure, which
`report.figures.save` writes. Widths are in mm; text has 7 points whatever the width.
"""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from medseg_attack.errors import InputError
from medseg_attack.escaping import figure as figure_text
from medseg_attack.report.colours import COLOURS, NEUTRAL, organ_colours
from medseg_attack.report.curve import on_axes
from medseg_attack.report.figures import draw_band, empty_figure
from medseg_attack.report.page.content import Tables, panels, patients
from medseg_attack.report.tables.summaries import budget, organs
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.stored_specs import attack_spec
from medseg_attack.stats.scores import MEAN
from medseg_attack.stats.visible_changes import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

Drawing: TypeAlias = Callable[[Tables, float], "Figure"]
MM = 25.4  # of an inch
POINTS = 7
MOST_ORGANS = 4  # panels beside that of the mean: the organs that lose most
MARKERS = "osD^vP*X<>"


@contextmanager
def paper_style() -> Iterator[None]:
    """The style of figures for papers: small text, thin lines, and fonts inside the file."""
    from matplotlib import rc_context

    style: dict[Any, Any] = {
        "font.size": POINTS,
        "axes.titlesize": POINTS,
        "legend.fontsize": POINTS - 1,
        "axes.linewidth": 0.5,
    }
    style |= {"xtick.labelsize": POINTS - 1, "ytick.labelsize": POINTS - 1, "lines.linewidth": 1.0}
    style |= {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path"}
    with rc_context(style):
        yield


def curves(of: Tables, width: float) -> "Figure":
    """Dice over the budget: a row per model, a panel per organ; the worst attack in colour with its band.

    Budgets in another unit have rows of their own below.

    Raises:
        InputError: no run has a budget.
    """
    units = panels(of.summary)
    if not units:
        raise InputError("expected a run with a budget to draw, got none; give runs of attacks")
    shown = [MEAN, *_most_harmed(of.summary)]
    colours = organ_colours(organs(of.summary)) | {MEAN: NEUTRAL}
    height = 8 + 0.85 * width / len(shown)  # of a row, in mm
    points = [pd.DataFrame(unit.points) for unit in units]
    rows = [each["model"].nunique() for each in points]
    figure = empty_figure(width / MM, height * sum(rows) / MM + 0.3 * len(units))
    parts = figure.subfigures(len(units), 1, squeeze=False, height_ratios=rows).flatten()
    for part, unit, of_unit in zip(parts, units, points, strict=True):
        _draw_unit(part, of_unit, shown, colours, height)
        part.supxlabel(figure_text(unit.axis), fontsize=POINTS)
    return figure


def _draw_unit(
    figure: "SubFigure", points: pd.DataFrame, shown: Sequence[str], colours: Mapping[str, str], height: float
) -> None:
    """The curves over budgets of one unit."""
    models = list(dict.fromkeys(points["model"]))
    grid = figure.subplots(len(models), len(shown), squeeze=False, sharex=True, sharey=True)
    for axes, organ in zip(grid[0], shown, strict=True):
        axes.set_title(figure_text(organ))
    for row, model in zip(grid, models, strict=True):
        of_model = points[points["model"] == model]
        worst = _worst_line(of_model)
        for axes, organ in zip(row, shown, strict=True):
            _draw_lines(axes, of_model[of_model["organ"] == organ], worst, colours[organ])
        row[0].set_ylabel(f"{_in_lines(model, height)}\nDice")
        beside = row[-1].twinx()  # outside of the panel, where no line can meet the name
        beside.set_yticks([])
        beside.set_ylabel(_in_lines(worst, height), rotation=270, va="bottom", fontsize=POINTS - 1)


def _most_harmed(table: pd.DataFrame) -> list[str]:
    drops = {organ: (table[f"{organ}_clean"] - table[f"{organ}_adv"]).max() for organ in organs(table)}
    kept = sorted(drops, key=lambda organ: -drops[organ])[:MOST_ORGANS]
    return [organ for organ in drops if organ in kept]


def _worst_line(points: pd.DataFrame) -> str:
    """The line of a model that leaves least mean Dice anywhere; of the attacks, if there are any."""
    of_mean = points[points["organ"] == MEAN]
    attacks = of_mean[of_mean["role"] == "attack"]
    least = (of_mean if attacks.empty else attacks).groupby("line", sort=False)["adv"].min()
    return str(least.index[int(least.to_numpy().argmin())])


def _draw_lines(axes: "Axes", points: pd.DataFrame, worst: str, colour: str) -> None:
    for line, of_line in points.groupby("line", sort=False):
        x, dice = of_line["x"].to_numpy(float), of_line["adv"].to_numpy(float)
        if line == worst:
            draw_band(axes, "x", of_line, colour, 0.2)
            axes.plot(x, dice, color=colour, marker="o", ms=2, lw=1.4, zorder=3)
        else:
            is_control = of_line["role"].iloc[0] == "control"
            axes.plot(x, dice, color=NEUTRAL, lw=0.7, ls=":" if is_control else "-", alpha=1 if is_control else 0.5)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3, lw=0.4)


def profile(of: Tables, width: float) -> "Figure":
    """The share of patients whose Dice is at least t: a panel per model, under its worst attack and clean (dashed)."""
    table, each = of.summary.reset_index(drop=True), patients(of)
    models = list(dict.fromkeys(table["model"]))
    colours = {MEAN: NEUTRAL} | organ_colours(organs(table))
    columns = min(len(models), 2)
    n_rows = -(-len(models) // columns)
    figure = empty_figure(width / MM, (0.7 * width / columns) * n_rows / MM + 0.4)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharey=True).flatten()
    for axes in grid[len(models) :]:
        axes.set_axis_off()
    for axes, model in zip(grid, models, strict=False):
        run = _worst_run(table[table["model"] == model])
        for organ, places in each["runs"][run].items():
            for place, style in zip(places, ("--", "-"), strict=True):
                values = [value for value in each["lists"][place] if value is not None]
                label = figure_text(organ) if style == "-" else None
                axes.step(*survival(values), where="pre", color=colours[organ], ls=style, lw=1, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Dice of at least")
        axes.set_title(_in_lines(_run_name(table.iloc[run]), 0.75 * width / columns))
        axes.grid(alpha=0.3, lw=0.4)
    grid[0].set_ylabel("share of patients")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def survival(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The share of values that are at least t, as the corners of steps (t, share).

    >>> survival([0.2, 0.8])
    ([0.0, 0.2, 0.8, 0.8, 1.0], [1.0, 1.0, 0.5, 0.0, 0.0])
    """
    ordered = sorted(values)
    shares = [sum(value >= t for value in ordered) / len(ordered) for t in ordered]
    return [0.0, *ordered, ordered[-1], 1.0], [1.0, *shares, 0.0, 0.0]


def _worst_run(table: pd.DataFrame) -> int:
    """The place in the whole table of the run that leaves least; of the attacks, if there are any."""
    attacks = table[table["role"] == "attack"]
    rows = table if attacks.empty else attacks
    return int(rows.index.to_numpy()[rows["mean_adv"].fillna(2.0).to_numpy().argmin()])


def _run_name(run: "pd.Series[float]") -> str:
    return " ".join(filter(None, [f"{run['model']}:", str(run["attack"]), str(run["loss"]), budget(run)]))


def tradeoff(of: Tables, width: float) -> "Figure":
    """Dice under each model's worst attack over its clean Dice, a marker per model, with the interval over patients."""
    table = of.summary.reset_index(drop=True)
    figure = empty_figure(width / MM, 0.75 * width / MM + 0.3)
    axes = figure.subplots()
    for n, model in enumerate(dict.fromkeys(table["model"])):
        run = table.iloc[_worst_run(table[table["model"] == model])]
        left = float(run["mean_adv"])
        low, high = (left if run[end] != run[end] else float(run[end]) for end in ("low", "high"))
        axes.errorbar(
            float(run["mean_clean"]),
            left,
            yerr=[[max(0.0, left - low)], [max(0.0, high - left)]],
            fmt=MARKERS[n % len(MARKERS)],
            color=COLOURS[n % len(COLOURS)],
            ms=4,
            lw=0.8,
            capsize=2,
            label=_in_lines(_run_name(run), 0.75 * width),
        )
    axes.plot([0, 1], [0, 1], color=NEUTRAL, lw=0.5, ls=":")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="mean Dice, clean", ylabel="mean Dice, worst attack")
    axes.grid(alpha=0.3, lw=0.4)
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def visibility(of: Tables, width: float) -> "Figure":
    """The mean Dice that each attack takes over 1 - SSIM in the body, a line per model and attack over its budgets.

    Controls are dotted. Up and to the left is an attack that harms and is not seen.

    Raises:
        InputError: the rows of no run say how visible its changes are.
    """
    table = of.summary.merge(visible(of.rows), on="run")
    table = table[table["role"] != "clean"].assign(unlike=1 - table["ssim_body"])
    figure = empty_figure(width / MM, 0.75 * width / MM + 0.3)
    axes = figure.subplots()
    several = table["model"].nunique() > 1
    for n, ((model, attack, loss), line) in enumerate(table.groupby(["model", "attack", "loss"], sort=False)):
        line = line.sort_values("unlike")
        is_control = line["role"].iloc[0] == "control"
        axes.plot(
            line["unlike"],
            line["drop"],
            marker=MARKERS[n % len(MARKERS)],
            color=NEUTRAL if is_control else COLOURS[n % len(COLOURS)],
            ls=":" if is_control else "-",
            ms=3,
            lw=0.8,
            label=_in_lines(
                " ".join(filter(None, [f"{model}:" if several else "", str(attack), str(loss)])), 0.75 * width
            ),
        )
    axes.set(xlabel="1 - SSIM in the body", ylabel="drop of mean Dice")
    axes.grid(alpha=0.3, lw=0.4)
    figure.legend(loc="outside lower left", frameon=False)
    return figure


def heatmap(of: Tables, width: float) -> "Figure":
    """Dice that each attack leaves of each organ at its largest budget, a row per model and attack."""
    table = of.summary
    keys = ["model", "attack", "loss", "ball_kind", "axis"]  # budgets in unlike units have no largest one
    kinds = table.assign(ball_kind=table["ball"].str.partition("(")[0], axis=on_axes(table)["axis"])
    largest = kinds.sort_values("eps", kind="stable")
    rows = largest.groupby(keys, sort=False).tail(1).sort_index()
    columns = [MEAN, *organs(table)]
    values = rows[[f"{organ}_adv" for organ in columns]].to_numpy(float)
    several = rows["model"].nunique() > 1
    names = [_run_name(row) if several else _run_name(row).partition(": ")[2] for _, row in rows.iterrows()]
    return _matrix(values, names, columns, "Dice", width)


def transfer(of: Tables, width: float) -> "Figure":
    """Mean Dice that images made for one model (rows) leave of another (columns); the worst at the largest budget.

    Raises:
        InputError: no run transfers or replays images.
    """
    table = of.summary
    source = [_source(row, set(table["model"])) for _, row in table.iterrows()]
    pairs = table.assign(source=source)
    if not ((pairs["source"] != "") & (pairs["source"] != pairs["model"])).any():
        raise InputError(
            "expected runs of images that were made for another model, got none; attack with "
            "--attack \"transfer(surrogate='MODEL')\", or score with evaluate --images"
        )
    pairs = pairs[pairs["source"] != ""]
    sized = on_axes(pairs).fillna({"eps": 0.0})  # budgets in unlike units have no largest one
    pairs = pairs[sized["eps"] == sized.groupby("axis")["eps"].transform("max")]
    worst = pairs.groupby(["source", "model"])["mean_adv"].min().unstack()
    return _matrix(worst.to_numpy(float), list(worst.index), list(worst.columns), "mean Dice", width)


def _source(run: "pd.Series[float]", models: set[str]) -> str:
    """The model that a run's images were made for; "" of a control."""
    spec = attack_spec(str(run["stored_attack"]).removesuffix(" non_adaptive"))
    fields = {name: str(node).strip("'\"") for name, node in spec.keywords}
    if spec.name == "transfer":
        name = fields.get("surrogate", "surrogate").rstrip("/").rpartition("/")[2]
        return next((model for model in models if model == name), name)
    if spec.name == "replay":
        return _model_of(fields.get("run", ""))
    return str(run["model"]) if str(run["role"]) == "attack" else ""


def _model_of(run: str) -> str:
    """The model of the run whose images were replayed: its folder's name, less the hash of weights."""
    return ids_of(Path(run))["model_id"].rpartition("-")[0]


def _matrix(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], what: str, width: float) -> "Figure":
    """A matrix of numbers on colours from 0 to 1, dark where little is left."""
    rows, columns = ([_wrapped(name, width) for name in names] for names in (rows, columns))
    lines = sum(name.count("\n") for name in rows)
    figure = empty_figure(width / MM, (5.5 * len(rows) + 2.5 * lines + 22) / MM)
    axes = figure.subplots()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = "-" if value != value else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=POINTS - 1, color="w" if value < 0.5 else "k")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    figure.colorbar(image, ax=axes, shrink=0.9, label=what)
    return figure


def _wrapped(name: str, width: float) -> str:
    """A name in lines that take a third of the figure at most."""
    return "\n".join(textwrap.wrap(figure_text(name), max(12, round(0.3 * width))))


def _in_lines(name: str, length: float) -> str:
    """A name in lines of at most that many mm, by the mean width of a letter."""
    return "\n".join(map(figure_text, textwrap.wrap(name, max(8, round(length / (0.2 * POINTS))))))


DRAWINGS: dict[str, Drawing] = {
    "curves": curves,
    "heatmap": heatmap,
    "profile": profile,
    "tradeoff": tradeoff,
    "transfer": transfer,
    "visibility": visibility,
}
