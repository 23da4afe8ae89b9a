"""The content of a page: the answer in a sentence, the table of runs and organs, curves, and every patient's Dice.

All numbers come from the functions that `medattack compare` prints: `stats.scores.summary`, `stats.clinical.deltas`.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from medseg_attack.errors import listed, plural
from medseg_attack.escaping import distinct_without_folders, without_folders
from medseg_attack.metrics.empty import Empty
from medseg_attack.report.clinical import delta_sheet
from medseg_attack.report.curve import LINE, on_axes
from medseg_attack.report.sheet import Sheet, between, number
from medseg_attack.report.tables.captions import caption
from medseg_attack.report.tables.summaries import budget, organs, several, with_knowledge
from medseg_attack.runs.grid import safe
from medseg_attack.runs.rows import HEADER
from medseg_attack.runs.stored_specs import ball_spec, budget_of, norm_of
from medseg_attack.stats.clinical import delta_summary, deltas
from medseg_attack.stats.scores import MEAN, Unit, pooled, scored, summary

NAMED = ("model", "attack", "loss")  # columns that may hold paths
DIGITS = 6  # of a patient's Dice in the data of the charts
# columns of a summary that are stated over all organs, their heads, and whether they are a share
OVERALL = {
    "relative_drop": ("rel. drop", True),
    "below_half": ("< half", True),
    "missed": ("missed", True),
    "success": ("success", True),
    "goal_dice": ("goal Dice", False),
    "least": ("least", False),
}


class Tables(NamedTuple):
    """The tables made of rows, computed once for all parts of a page.

    Attributes:
        rows: from `runs.reading.read_runs`.
        cases: Dice of each case, from `stats.scores.scored`.
        summary: a row per run, from `stats.scores.summary`; `stored_attack` has the folders that `attack` lacks.
    """

    rows: pd.DataFrame
    cases: pd.DataFrame
    summary: pd.DataFrame
    unit: Unit
    empty: Empty


def tables(rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> Tables:
    """The tables of a page; models, attacks and losses are named without the folders of the machine."""
    stored = rows.drop_duplicates("run").set_index("run")["attack"]
    rows = _without_folders(rows)
    table = with_knowledge(summary(rows, unit=unit, empty=empty, header=HEADER))
    table = table.assign(stored_attack=table["run"].map(stored))
    return Tables(rows, scored(pooled(rows, unit), empty), table, unit, empty)


def _without_folders(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose models, attacks, losses and ids hold no folder of the machine."""
    runs = rows.drop_duplicates("run").set_index("run")
    ids = pd.DataFrame([_ids(run, name) for name, run in runs.iterrows()], index=runs.index)
    named = {name: rows[name].map(distinct_without_folders(rows[name])) for name in NAMED}
    by_run = {name: rows["run"].map(ids[name]) for name in ids.columns}
    is_id = rows["model"] == rows["model_id"]  # where models of one name are called by their ids
    return rows.assign(**named, **by_run).assign(model=named["model"].where(~is_id, by_run["model_id"]))


def _ids(run: "pd.Series[Any]", folder: Hashable) -> dict[str, str]:
    """The ids of a run and of its model; a name in them that holds folders is that without them."""
    model_id, name = str(run["model_id"]), Path(str(folder)).name
    label, attack = str(run["label"]), " ".join(filter(None, [str(run["attack"]), str(run["loss"])]))
    if without_folders(label) != label:
        model_id = f"{safe(without_folders(label))[:80]}-{model_id.rpartition('-')[2]}"
    if without_folders(attack) != attack:
        name = f"{name.partition('_')[0]}_{safe(without_folders(attack))[:50]}"
    return {"model_id": model_id, "run_id": f"{model_id}/{name}"}


@dataclass(frozen=True)
class Line:
    """A row of the table: an organ, or the mean over organs, in one run.

    Attributes:
        overall: the numbers of `OVERALL` that the runs have, and the measures of scans; None where the row is an organ.
        flags: codes of what makes the run's numbers doubtful.
    """

    run: int
    model: str
    attack: str
    loss: str
    eps: str
    size: float
    organ: str
    patients: int
    clean: float
    adv: float
    low: float
    high: float
    drop: float
    overall: Mapping[str, float | None]
    flags: Sequence[str]

    @property
    def interval(self) -> str:
        return between(self.low, self.high)


def lines(table: pd.DataFrame, flags: Mapping[str, Sequence[str]]) -> Iterator[Line]:
    """The rows of the table, run by run, the mean over organs first.

    Args:
        table: of `stats.scores.summary`.
        flags: codes by the folder of a run.
    """
    extra = overall_columns(table)
    for n, (_, run) in enumerate(table.iterrows()):
        for organ in (MEAN, *organs(table)):
            is_mean = organ == MEAN
            clean, adv = float(run[f"{organ}_clean"]), float(run[f"{organ}_adv"])
            yield Line(
                run=n,
                model=str(run["model"]),
                attack=str(run["attack"]),
                loss=str(run["loss"]),
                eps=budget(run),
                size=float(run["eps"]),
                organ=organ,
                patients=int(run["patients"]),
                clean=clean,
                adv=adv,
                low=float(run["low" if is_mean else f"{organ}_low"]),
                high=float(run["high" if is_mean else f"{organ}_high"]),
                drop=float(run["drop"]) if is_mean else clean - adv,
                overall={name: float(run[name]) if is_mean else None for name in extra},
                flags=flags.get(str(run["run"]), ()),
            )


def overall_columns(table: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """The columns that are stated over all organs and that some run has: head, and whether it is a share."""
    result = {name: facts for name, facts in OVERALL.items() if name in table and table[name].notna().any()}
    measured = [name for name in table.columns if name.startswith("adv_") and f"clean_{name[4:]}" in table]
    return result | {name: (name.removeprefix("adv_"), False) for name in measured}


def answer(of: Tables, intensity_unit: str = "") -> str:
    """The answer of a page in one sentence: the models, the budget and what came of it.

    Args:
        intensity_unit: of the scans, such as "HU"; "" where it is not known.
    """
    table = of.summary
    attacks = table[table["role"] == "attack"]
    patients = several(table["patients"], "patient")
    data = " and ".join(dict.fromkeys(f"{row['data']} ({row['split']} split)" for _, row in table.iterrows()))
    models = list(dict.fromkeys(table["model"]))
    subject = f"{models[0]} was" if len(models) == 1 else f"{len(models)} models ({listed(models)}) were"
    if attacks.empty:
        return f"{subject} scored on {patients} of {data}; no attack was run."
    names = list(dict.fromkeys(attacks["attack"]))
    worst = attacks.iloc[int(attacks["mean_adv"].fillna(2.0).to_numpy().argmin())]
    organ = min(organs(table), key=lambda name: _or_one(worst[f"{name}_adv"]))
    rows = of.rows[of.rows["run"] == worst["run"]]
    whom = "the mean Dice" if len(models) == 1 else f"the mean Dice of {worst['model']}"
    what = " with ".join(filter(None, [str(worst["attack"]), str(worst["loss"])]))
    return (
        f"{subject} attacked on {patients} of {data} with {plural(len(names), 'attack')} ({listed(names)}), and the "
        f"worst, {what} within {native_budget(worst, rows, intensity_unit)}, took {whom} from "
        f"{number(worst['mean_clean'])} to {number(worst['mean_adv'])} ({_interval_text(worst)}), and that of "
        f"{organ} from {number(worst[f'{organ}_clean'])} to {number(worst[f'{organ}_adv'])}."
    )


def _or_one(value: float) -> float:
    return 1.0 if value != value else value


def _interval_text(run: "pd.Series[float]") -> str:
    return f"95 % interval {between(run['low'], run['high'])}" if run["low"] == run["low"] else "one patient"


def native_budget(run: "pd.Series[float]", rows: pd.DataFrame, intensity_unit: str = "") -> str:
    """The budget of a run in the units of its scans: intensities, stored values and noise, medians over cases.

    Args:
        rows: of the run.
    """
    text = budget(run)
    if unit := str(run.get("eps_unit") or ""):
        return f"{text} {unit}"
    cases = rows.drop_duplicates("case")
    sizes = {
        intensity_unit or "of the scans' own units": cases["budget"] * cases["width"],
        "stored values": cases["budget"] / cases["level"].where(cases["level"] > 0),
        "times the image's noise": cases["budget"] / cases["noise"].where(cases["noise"] > 0),
    }
    if budget_of(ball_spec(str(run["ball"]))):  # the text names its unit
        sizes.pop(intensity_unit, None)
        share = ""
    else:
        share = " of the intensity window"
    known = ", ".join(f"{size.median():.3g} {name}" for name, size in sizes.items() if size.notna().any())
    median = "medians: " if any(size.nunique() > 1 for size in sizes.values()) else ""
    return f"{text}{share}" + (f" ({median}{known})" if known else "")


def explanation(of: Tables) -> str:
    """The meaning of the table's numbers, as below the tables of the terminal."""
    return caption(of.summary, unit=of.unit, empty=of.empty)


@dataclass(frozen=True)
class Panel:
    """The curves of one unit of budgets: their axis, and points by run and organ.

    Attributes:
        points: dicts with run, line, model, role, organ, x, eps, adv, low and high; x is 0 for clean images.
    """

    axis: str
    points: Sequence[Mapping[str, Any]]


def panels(table: pd.DataFrame) -> list[Panel]:
    """The curves over budgets, a panel for each unit of budgets; of lines that have a budget."""
    runs = table[table["eps"].notna() & (table["role"] != "clean")].reset_index(names="number")
    runs = on_axes(runs.assign(budget=[budget(run) for _, run in runs.iterrows()]))
    result = []
    for axis, of_axis in runs.groupby("axis", sort=False):
        points: list[dict[str, Any]] = []
        for _, line in of_axis.groupby(list(LINE), sort=False):
            points += _points(line.sort_values("eps"), line_name(line.iloc[0], runs))
        result.append(Panel(str(axis), points))
    return result


def line_name(run: "pd.Series[float]", runs: pd.DataFrame) -> str:
    """The attack of a line, with what else tells it from the other lines of its model."""
    differing = {name for name in LINE if runs[name].nunique() > 1}
    words = [str(run["attack"]), str(run["loss"])]
    words += [norm_of(ball_spec(str(run["ball"])))] if runs["ball"].map(_norm).nunique() > 1 else []
    words += [str(run[name]) for name in ("data", "split") if name in differing]
    words += [f"cases {run['cases_id']}" if "cases_id" in differing else ""]
    return " ".join(filter(None, words))


def _norm(ball: str) -> str:
    return norm_of(ball_spec(ball))


def _points(line: pd.DataFrame, name: str) -> Iterator[dict[str, Any]]:
    """The points of one line, at clean images first."""
    first = line.iloc[0]
    facts = {"line": name, "model": str(first["model"]), "role": str(first["role"])}
    for organ in (MEAN, *organs(line)):
        low, high = ("low", "high") if organ == MEAN else (f"{organ}_low", f"{organ}_high")
        of_organ = facts | {"organ": organ}
        clean = {"adv": first[f"{organ}_clean"], "low": math.nan, "high": math.nan}
        yield of_organ | {"run": int(first["number"]), "x": 0.0, "eps": "clean"} | clean
        for _, run in line.iterrows():
            dice = {"adv": run[f"{organ}_adv"], "low": run[low], "high": run[high]}
            yield of_organ | {"run": int(run["number"]), "x": float(run["eps"]), "eps": run["budget"]} | dice


def patients(of: Tables) -> dict[str, Any]:
    """The Dice of every patient in every run: the mean over their cases, per organ and over organs.

    Returns:
        patients: their names; runs: for each run, by organ, places of two lists in `lists`, clean and attacked, of
        numbers in the order of `patients` (None: not in this run). Lists that repeat are stored once.
    """
    means = of.cases.groupby(["run", "cls", "group"], sort=False)[["dice_clean", "dice_adv"]].mean()
    by_organ = {str(organ): table.droplevel("cls") for organ, table in means.groupby("cls", sort=False)}
    by_organ = {MEAN: means.groupby(["run", "group"], sort=False).mean()} | by_organ
    by_run = {organ: dict(iter(table.groupby("run", sort=False))) for organ, table in by_organ.items()}
    names = list(dict.fromkeys(of.cases["group"]))
    lists: dict[tuple[float | None, ...], int] = {}

    def place(values: "pd.Series[float]") -> int:
        rounded = [None if value != value else round(value, DIGITS) for value in values.reindex(names)]
        return lists.setdefault(tuple(rounded), len(lists))

    def places(table: pd.DataFrame) -> list[int]:
        return [place(table[f"dice_{when}"].droplevel("run")) for when in ("clean", "adv")]

    runs = [{organ: places(table[run]) for organ, table in by_run.items() if run in table} for run in of.summary["run"]]
    return {"patients": names, "runs": runs, "lists": list(lists)}


def clinical(of: Tables) -> Sheet | None:
    """The table of volumes, distances and lost organs; None where no scan has a volume."""
    table = deltas(of.rows, empty=of.empty)
    if table["volume_ml_clean"].isna().all():
        return None
    header = of.rows.drop_duplicates("run").set_index("run")[["model", "attack", "loss", "eps", "ball"]]
    return delta_sheet(delta_summary(table), header)
