"""Tables in, tables out: scores from counts, and averages. No torch in here.

A *case* below is the unit that is scored (slice, volume or patient): the counts of its slices are added up first.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medseg_attack.errors import InputError
from medseg_attack.metrics.empty import ABSENT_SCORE, Empty
from medseg_attack.runs.reading import each_run, with_distinct_models
from medseg_attack.runs.rows import AXES, DIAGONAL_MM
from medseg_attack.stats.intervals import Array, Interval
from medseg_attack.stats.patients import Places, interval

Unit: TypeAlias = Literal["slice", "volume", "patient"]

UNITS: dict[Unit, str] = {"slice": "case", "volume": "volume", "patient": "group"}
COUNTS = ["n_target", "n_clean", "hit_clean", "n_target_adv", "n_adv", "hit_adv"]
MEAN = "mean"  # over classes
OF_SUCCESS = ("dice_clean", "dice_adv", "n_target", "hit_clean", "n_adv")
TRUTH = {"clean": "n_target", "adv": "n_target_adv"}  # anatomy may move under attack
AT_ONCE = 200_000  # rows; to condense fewer takes longer per row
AIMED = ("success", "success_of_clean", "success_on_truth", "least", "least_mean", "goal_dice")
WITHOUT_AIM = dict.fromkeys(AIMED, math.nan)


def check_unit(unit: Unit, dims: Iterable[float]) -> None:
    """Refuses scores of slices for models that take whole scans, whose rows are of scans.

    Args:
        dims: of the models: 2 takes slices, 3 scans.
    """
    if unit == "slice" and 3 in dims:
        raise InputError(
            "expected --unit volume or patient for a 3-D model, whose rows are of whole scans, got slice; choose one"
        )


def measures(rows: pd.DataFrame) -> list[str]:
    """Names of the measures of a scan beside its counts: hd95_mm, for one, of columns hd95_mm_clean and hd95_mm_adv."""
    known = {*COUNTS, *(f"{axis}_adv" for axis in AXES)}
    return [column.removesuffix("_adv") for column in rows.columns if column.endswith("_adv") and column not in known]


def bounds_of(measure: str, rows: pd.DataFrame) -> Interval:
    """The least and the greatest value of a measure: shares end at 1, distances at the longest diagonal of the scans.

    A distance of rows without diagonals (of runs before they were kept) has no greatest value. Nor has a measure that
    is above 1 somewhere, which is no share, and one below 0 has no least.
    """
    if not measure.partition("(")[0].endswith("_mm"):
        values = rows[[f"{measure}_{when}" for when in TRUTH if f"{measure}_{when}" in rows]].to_numpy(float)
        return -math.inf if (values < 0).any() else 0.0, math.inf if (values > 1).any() else 1.0
    longest = float(rows[DIAGONAL_MM].max()) if DIAGONAL_MM in rows else math.nan
    return 0.0, math.inf if math.isnan(longest) else longest


def pooled(rows: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """One row per run, case and class with the counts of its slices added up."""
    keys = ["run", "group", "unit", "cls"]
    return rows.assign(unit=rows[UNITS[unit]]).groupby(keys, sort=False)[COUNTS].sum().reset_index()


def scored(cases: pd.DataFrame, empty: Empty) -> pd.DataFrame:
    """Adds dice and iou, clean and adversarial, and `touched`: whether the rule for empty masks decided a score.

    >>> row = {"n_target": 4, "n_clean": 4, "hit_clean": 3, "n_target_adv": 4, "n_adv": 0, "hit_adv": 0}
    >>> scored(pd.DataFrame([row]), "one")[["dice_clean", "iou_clean", "dice_adv"]].to_numpy().tolist()
    [[0.75, 0.6, 0.0]]
    """
    result = cases.copy()
    touched = pd.Series(False, index=cases.index)
    for when, truth in TRUTH.items():
        total, hit = cases[truth] + cases[f"n_{when}"], cases[f"hit_{when}"]
        absent, neither = cases[truth] == 0, total == 0
        dice = (2 * hit / total.where(~neither, 1)).where(~neither, ABSENT_SCORE[empty])
        iou = (hit / (total - hit).where(~neither, 1)).where(~neither, ABSENT_SCORE[empty])
        result[f"dice_{when}"] = dice.mask(absent) if empty == "nan" else dice
        result[f"iou_{when}"] = iou.mask(absent) if empty == "nan" else iou
        touched = touched | (absent if empty == "nan" else neither)
    return result.assign(touched=touched)


def scans(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run, scan and class: what is measured of a scan stands on each of its slices, and counts once."""
    return rows.drop_duplicates(["run", "volume", "cls"]).assign(unit=lambda table: table["volume"])


def by_class(cases: pd.DataFrame, scores: Sequence[str]) -> pd.DataFrame:
    """The mean of each score over the cases of a run and class; NaN is left out."""
    return cases.groupby(["run", "cls"], sort=False)[list(scores)].mean()


def by_organ(cases: pd.DataFrame, score: str) -> pd.DataFrame:
    """Mean of a score per run (rows) and class (columns, in order of appearance), and `mean` over the classes."""
    table = by_class(cases, [score])[score].unstack("cls", sort=False)
    return table.assign(**{MEAN: table.mean(axis=1)})


def success(cases: pd.DataFrame) -> dict[str, float]:
    """Three statements of how well an attack did on one run's cases, rates with their interval over patients.

    Returns:
        relative_drop: of the mean Dice over classes. below_half: share of (case, organ) whose Dice is below half of
        its clean Dice, among those whose clean Dice is not 0. missed: share of (case, organ) that the model found
        on the clean image and predicts no pixel of under attack. below_half_low, below_half_high, missed_low and
        missed_high are the 95 % intervals of the two shares.
    """
    return _success({name: cases[name].to_numpy(float) for name in OF_SUCCESS}, Places.of(cases))


def _success(cases: Mapping[str, Array], places: Places) -> dict[str, float]:
    clean, adv, target, hits, n_adv = (cases[name] for name in OF_SUCCESS)
    mean_clean, mean_adv = places.mean(clean), places.mean(adv)
    return (
        {"relative_drop": (mean_clean - mean_adv) / mean_clean if mean_clean > 0 else float("nan")}
        | _rate("below_half", places, (target > 0) & (clean > 0), adv < clean / 2)
        | _rate("missed", places, hits > 0, n_adv == 0)
    )


def _rate(name: str, places: Places, counted: NDArray[np.bool_], events: NDArray[np.bool_]) -> dict[str, float]:
    """The share of events among those rows that are counted, with its interval."""
    low, high = places.of_any_class.interval(np.where(counted, events, np.nan))
    share = float(events[counted].mean()) if counted.any() else float("nan")
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def summary(rows: pd.DataFrame, *, unit: Unit, empty: Empty, header: Sequence[str] = ()) -> pd.DataFrame:
    """One row per run: clean and adversarial Dice per class and on average, intervals, drop, success, cost.

    `low` and `high` are the interval of the mean over classes under attack, ORGAN_low and ORGAN_high that of a class;
    `sd` is the standard deviation over patients of that mean. `low_of_clean`, `high_of_clean` and `sd_of_clean` are
    those of the clean images.

    Args:
        header: columns of `rows` that are constant within a run; those that `rows` has are kept.
    """
    return _summary([condensed(rows, unit)], rows.drop_duplicates("run"), empty, header)


def read_summary(
    paths: Iterable[Path], *, unit: Unit, empty: Empty, header: Sequence[str] = (), allow_partial: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `summary` of all runs at or below `paths`, and a row of its header's fields per run.

    Memory holds the rows of a few runs at a time, and what a summary keeps of them.

    Raises:
        InputError: a run cannot be read, or is not one to score by `unit`.
    """
    parts, facts = [], []
    read: list[pd.DataFrame] = []
    for rows, fields in each_run(paths, allow_partial=allow_partial, needs=_is_condensed):
        check_unit(unit, [fields["dims"]] if "dims" in fields else [])
        if "n_taken" in rows:  # of a backdoor, see `stats.backdoors.has_triggers`
            fields["n_taken"] = rows["n_taken"].sum(min_count=1)
        facts.append(pd.DataFrame(fields, index=[0]))
        read.append(rows.assign(run=fields["run"]))
        if sum(map(len, read)) > AT_ONCE:
            parts.append(condensed(pd.concat(read, ignore_index=True), unit))
            read.clear()
    if read:
        parts.append(condensed(pd.concat(read, ignore_index=True), unit))
    runs = with_distinct_models(pd.concat(facts, ignore_index=True))
    return _summary(parts, runs, empty, header), runs


@dataclass(frozen=True)
class Condensed:
    """The part of the rows of runs that a summary keeps.

    Attributes:
        cases: the counts of each run, case and class; see `pooled`.
        scans: the measures of each run, scan and class; see `scans`.
        costs: a row per run, with its cost and the success of its attack.
    """

    cases: pd.DataFrame
    scans: pd.DataFrame
    costs: pd.DataFrame


def condensed(rows: pd.DataFrame, unit: Unit) -> Condensed:
    """The rows of runs, condensed by themselves: those of several runs are those of each, one below the other."""
    of_runs = rows.groupby("run", sort=False)
    costs = of_runs.agg(linf=("linf", "max"), forwards=("forwards", "mean"), backwards=("backwards", "mean"))
    each = (aimed(of_run, unit) for _, of_run in of_runs) if "success" in rows else [WITHOUT_AIM] * len(costs)
    aims = pd.DataFrame(each, index=costs.index)
    columns = ["run", "group", "volume", "cls", *([DIAGONAL_MM] if DIAGONAL_MM in rows else [])]
    columns += [f"{name}_{when}" for name in measures(rows) for when in ("clean", "adv")]
    measured = rows if measures(rows) else rows.iloc[:0]
    return Condensed(pooled(rows, unit), scans(measured[columns]), costs.join(aims))


@lru_cache
def _is_condensed(column: str) -> bool:
    """Whether a column of the rows is looked at by `condensed`."""
    index_sums = [f"{axis}_{when}" for axis in AXES for when in ("clean", "adv")]
    costs, aims = ("linf", "size", "forwards", "backwards"), ("n_goal", "hit_goal", "n_taken", DIAGONAL_MM)
    known = (*UNITS.values(), "cls", *COUNTS, *costs, *aims)
    return column in known or (
        column.startswith("success") or (column.endswith(("_clean", "_adv")) and column not in index_sums)
    )


def _summary(parts: Sequence[Condensed], runs: pd.DataFrame, empty: Empty, header: Sequence[str]) -> pd.DataFrame:
    cases = scored(pd.concat([part.cases for part in parts], ignore_index=True), empty)
    dice = {when: by_organ(cases, f"dice_{when}") for when in ("clean", "adv")}
    all_scans = pd.concat([part.scans for part in parts], ignore_index=True)
    scans_of = dict(iter(all_scans.groupby("run", sort=False)))
    measured = pd.DataFrame(
        {
            f"{when}_{name}": by_organ(all_scans, f"{name}_{when}")[MEAN]
            for name in measures(all_scans)
            for when in ("clean", "adv")
        },
        index=cases["run"].unique(),
    )
    costs = pd.concat([part.costs for part in parts]).to_dict("index")
    kept = [name for name in header if name in runs]
    headers = {row["run"]: row[kept].to_dict() for _, row in runs[["run", *kept]].iterrows()}
    verified = dict(zip(runs["run"], runs["verified"], strict=True)) if "verified" in runs else {}
    places_of, numbers = Places.of(cases), {name: cases[name].to_numpy(float) for name in OF_SUCCESS}
    (_, organs), (units, _) = (pd.factorize(cases[name], sort=name == "cls") for name in ("cls", "unit"))
    touched = cases["touched"].to_numpy()
    table = []
    for run, of_run in _by_run(cases["run"]):
        places, values = places_of.part(of_run), {name: column[of_run] for name, column in numbers.items()}
        names = list(organs[np.unique(places_of.organ[of_run])])
        clean, adv = (means.loc[run] for means in dice.values())
        table.append(
            {"run": run}
            | headers[run]
            | {f"{cls}_clean": clean[cls] for cls in clean.index}
            | {f"{cls}_adv": adv[cls] for cls in adv.index}
            | _class_intervals(names, values["dice_adv"], places)
            | _spread(values["dice_adv"], places, "")
            | _spread(values["dice_clean"], places, "_of_clean")
            | {"drop": clean[MEAN] - adv[MEAN]}
            | _success(values, places)
            | {name: costs[run][name] for name in ("linf", "forwards", "backwards")}
            | measured.loc[run].to_dict()
            | _measure_intervals(scans_of.get(run, all_scans.iloc[:0]))
            | {"cases": len(np.unique(units[of_run])), "patients": places.shape[0]}
            | {name: costs[run][name] for name in AIMED}
            | {"verified": bool(verified.get(run, False))}
            | {"touched": int(touched[of_run].sum()), "entries": len(of_run)}
        )
    return pd.DataFrame(table)


def _by_run(runs: "pd.Series[str]") -> Iterator[tuple[str, NDArray[np.intp]]]:
    """Each run, in the order of their first rows, with its rows."""
    codes, names = pd.factorize(runs)
    rows = np.argsort(codes, kind="stable")
    yield from zip(names, np.split(rows, np.cumsum(np.bincount(codes))[:-1]), strict=True)


def _spread(values: Array, places: Places, ending: str) -> dict[str, float]:
    """The interval and the standard deviation over patients of a score's mean over classes."""
    low, high = places.interval(values)
    return {f"low{ending}": low, f"high{ending}": high, f"sd{ending}": places.deviation(values)}


def _class_intervals(names: Sequence[str], values: Array, places: Places) -> dict[str, float]:
    """The interval of each class's adversarial Dice over the patients of one run.

    Args:
        names: of the classes, in the order of their numbers in `places`.
    """
    ends: dict[str, float] = {}
    for organ in pd.unique(places.organ):
        rows = places.organ == organ
        name = names[int(organ)]
        ends[f"{name}_low"], ends[f"{name}_high"] = places.part(rows).interval(values[rows])
    return ends


def _measure_intervals(scans_of_run: pd.DataFrame) -> dict[str, float]:
    """The 95 % intervals over patients of the measures under attack: adv_hd95_mm_low and adv_hd95_mm_high, for one."""
    result: dict[str, float] = {}
    for name in measures(scans_of_run):
        ends = interval(scans_of_run, f"{name}_adv", bounds=bounds_of(name, scans_of_run))
        result |= {f"adv_{name}_{end}": value for end, value in zip(("low", "high"), ends, strict=True)}
    return result


def aimed(rows: pd.DataFrame, unit: Unit) -> dict[str, float]:
    """Success of one run's attack by its goal or criterion; NaN if it had none.

    Returns:
        success: share of attacked images on which the attack succeeded; success_of_clean: the share that met the
        criterion before; success_on_truth: the share whose prediction misses the truth by the same criterion.
        least, least_mean: median and mean size of change among successes on images that did not meet it before.
        goal_dice: mean Dice with the goal over classes, per `unit`; a class in neither is left out.
    """
    if "success" not in rows or rows["success"].isna().all():
        return WITHOUT_AIM
    cases = rows.drop_duplicates("case")
    sizes = cases.loc[(cases["success"] == 1) & (cases["success_of_clean"] == 0), "size"]
    result = WITHOUT_AIM | {"success": float(cases["success"].mean()), "least": float(sizes.median())}
    result |= {"success_of_clean": float(cases["success_of_clean"].mean()), "least_mean": float(sizes.mean())}
    if "success_on_truth" in cases:
        result["success_on_truth"] = float(cases["success_on_truth"].mean())
    if "n_goal" in rows and rows["n_goal"].notna().any():
        counts = rows.groupby([UNITS[unit], "cls"])[["n_goal", "n_adv", "hit_goal"]].sum()
        total = counts["n_goal"] + counts["n_adv"]
        result["goal_dice"] = float((2 * counts["hit_goal"] / total.where(total > 0)).groupby("cls").mean().mean())
    return result


def scores(rows: pd.DataFrame, *, unit: Unit, empty: Empty) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the images that runs scored: averages per run and class, and one row per case and class.

    Dice and IoU are per `unit`; distances are per scan whatever the unit, NaN (no mask on either side) left out.
    `low`, `high` and `sd` are the 95 % interval and the standard deviation over patients of a class's Dice;
    `low_of_mean`, `high_of_mean` and `sd_of_mean` are those of the mean over classes.
    """
    header = ["model", "attack", "eps", "data", "split", "partial"]
    facts = rows.drop_duplicates("run").set_index("run")[header]
    cases = scored(pooled(rows, unit), empty).rename(columns={"dice_adv": "dice", "iou_adv": "iou"})
    measured = [f"{name}_adv" for name in measures(rows)]
    counted = cases.groupby(["run", "cls"], sort=False).agg(cases=("unit", "nunique"), touched=("touched", "sum"))
    table = by_class(cases, ["dice", "iou"]).join(_spreads(cases)).join(counted)
    table = table.join(by_class(scans(rows), measured).rename(columns=lambda name: str(name).removesuffix("_adv")))
    return table.reset_index().join(facts, on="run"), case_scores(rows, empty).join(facts, on="run")


def _spreads(cases: pd.DataFrame) -> pd.DataFrame:
    """The `_spread` of Dice of each run and class, and of the mean over the classes of the run."""
    spreads = {}
    for run, of_run in cases.groupby("run", sort=False):
        of_mean = _spread(of_run["dice"].to_numpy(float), Places.of(of_run), "_of_mean")
        for cls, of_class in of_run.groupby("cls", sort=False):
            spreads[run, cls] = _spread(of_class["dice"].to_numpy(float), Places.of(of_class), "") | of_mean
    return pd.DataFrame.from_dict(spreads, orient="index").rename_axis(["run", "cls"])


def case_scores(rows: pd.DataFrame, empty: Empty) -> pd.DataFrame:
    """One row per run, case and class: its counts, Dice, IoU and further measures on the images that were scored."""
    measured = [f"{name}_adv" for name in measures(rows)]
    each = rows[["run", "case", "volume", "group", "cls", "n_target_adv", "n_adv", "hit_adv", *measured]]
    each = scored(each.assign(n_target=each["n_target_adv"], n_clean=each["n_adv"], hit_clean=each["hit_adv"]), empty)
    columns = {"n_adv": "n_pred", "hit_adv": "hit", "dice_adv": "dice", "iou_adv": "iou"}
    columns |= {column: column.removesuffix("_adv") for column in measured}
    unused = ["n_target_adv", "n_clean", "hit_clean", "dice_clean", "iou_clean"]
    return each.drop(columns=unused).rename(columns=columns)
