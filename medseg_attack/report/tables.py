"""Tables of attacks on one model, of runs side by side, and of scores. No torch in here."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pandas as pd

from medseg_attack.errors import listed, plural
from medseg_attack.metrics.empty import EMPTY_RULES, Empty
from medseg_attack.registry import spec
from medseg_attack.registry.grammar import Literal
from medseg_attack.report.sheet import Sheet, between, fits, number, percent
from medseg_attack.runs.reading import ids_of
from medseg_attack.runs.rows import NAMES
from medseg_attack.runs.stored_specs import attack_spec, ball_spec, budget_of, norm_of
from medseg_attack.stats.patients import FEW, warning
from medseg_attack.stats.scores import MEAN, Unit

MOST_ORGANS = 4  # columns that fit 100 characters beside the rest
LESS = ("norm", "data", "split")  # what seldom differs between the runs of a table


def organs(summary: pd.DataFrame) -> list[str]:
    """The classes of a summary, in the order of the task."""
    return [c.removesuffix("_adv") for c in summary.columns if c.endswith("_adv") and c != "mean_adv"]


CellFormat: TypeAlias = "Callable[[pd.Series[float]], str]"


def attack_sheet(summary: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """One model's table: clean on top, then controls, then attacks, adversarial Dice per organ."""
    summary = with_knowledge(summary)
    return _fitting(lambda n: _attack_sheet(summary, _worst(summary, n), unit=unit, empty=empty))


def with_knowledge(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with attacks that do not know the defence of their model called so."""
    if "knowledge" not in summary:
        return summary
    is_native = summary["knowledge"] == "native"
    return summary.assign(attack=summary["attack"].where(~is_native, summary["attack"] + " non_adaptive"))


def _fitting(sheet_of: Callable[[int], Sheet]) -> Sheet:
    """The sheet with as many organs, at most `MOST_ORGANS`, as 100 columns hold without breaking a word."""
    sheets = map(sheet_of, range(MOST_ORGANS, 0, -1))
    return next((sheet for sheet in sheets if fits(sheet)), sheet_of(1))


def _attack_sheet(summary: pd.DataFrame, shown: Sequence[str], *, unit: Unit, empty: Empty) -> Sheet:
    first = summary.iloc[0]
    rows = [_clean(first, shown), *(_attacked(row, shown) for _, row in _ordered(summary).iterrows())]
    n_controls = int((summary["role"] != "attack").sum())
    names = _measures(summary)
    of_measures: list[tuple[str, CellFormat]] = [(name, partial(_of, column=f"adv_{name}")) for name in names]
    last = [*of_measures, *_shares(summary), *_aims(summary)]
    clean_end = [number(first[f"clean_{name}"]) for name in names] + [""] * (len(last) - len(names))
    ends = [clean_end, *([cell(row) for _, cell in last] for _, row in _ordered(summary).iterrows())]
    return Sheet(
        f"{first['model']} on {first['data']}",
        ["attack", "loss", "eps", *shown, "mean", "95 % CI", "drop", *(head for head, _ in last)],
        [[*row, *more] for row, more in zip(rows, ends, strict=True)],
        caption(summary, unit=unit, empty=empty, hidden=len(organs(summary)) - len(shown))
        + (f" {', '.join(names)}: means over whole scans." if names else "")
        + _eps_units(summary)
        + _queries(summary),
        left=2,
        rules=frozenset({0, n_controls}),
        organs=organs(summary),
    )


def _measures(summary: pd.DataFrame) -> list[str]:
    """The measures of whole scans that were asked for beside Dice."""
    names = [column.removeprefix("adv_") for column in summary.columns if column.startswith("adv_")]
    return [name for name in names if f"clean_{name}" in summary and not name.endswith(("_adv", "_clean"))]


def _eps_units(summary: pd.DataFrame) -> str:
    """The unit of eps of each attack whose size is no fraction of the window, in a sentence; "" if there is none."""
    if "eps_unit" not in summary:
        return ""
    own = summary[summary["eps_unit"].notna() & (summary["eps_unit"] != "")]
    units = [
        f"{listed(list(dict.fromkeys(of_unit['attack'])))} in {unit}" for unit, of_unit in _by_unit(own, "eps_unit")
    ]
    return f" eps: {'; '.join(units)}." if units else ""


def _by_unit(summary: pd.DataFrame, column: str) -> "Iterable[tuple[str, pd.DataFrame]]":
    return ((str(unit), of_unit) for unit, of_unit in summary.groupby(column, sort=False))


def _queries(summary: pd.DataFrame) -> str:
    """The queries per case of attacks that know no gradient, in a sentence; "" if there is no such attack."""
    if "queries" not in summary:
        return ""
    by_queries = summary[summary["queries"].eq(True)]
    each = {f"{row['attack']} {row['forwards']:.0f}": None for _, row in by_queries.iterrows()}
    return f" Queries per case, no gradients: {', '.join(each)}." if each else ""


def _shares(summary: pd.DataFrame) -> list[tuple[str, CellFormat]]:
    """Head and cell of three ways to state success; none where goals state that of every attack."""
    shares = [("rel. drop", "relative_drop"), ("< half", "below_half"), ("missed", "missed")]
    attacks = summary[summary["role"] == "attack"]
    if _has_goals(summary) and attacks["goal_dice"].notna().all():
        return []
    return [(head, partial(_share, column=column)) for head, column in shares]


def _has_goals(summary: pd.DataFrame) -> bool:
    return "goal_dice" in summary and bool(summary["goal_dice"].notna().any())


def _aims(summary: pd.DataFrame) -> list[tuple[str, CellFormat]]:
    """Head and cell of the columns of attacks with a goal or a criterion; none if no run has one."""
    if "success" not in summary or summary["success"].isna().all():
        return []
    of_goals: list[tuple[str, CellFormat]] = [
        ("on truth", partial(_share, column="success_on_truth")),
        ("goal Dice", partial(_of, column="goal_dice")),
    ]
    of_goals = of_goals if _has_goals(summary) else []
    return [("success", _success), *of_goals, ("least", lambda row: number(row["least"], 4))]


def _success(row: "pd.Series[float]") -> str:
    before = row["success_of_clean"]
    return percent(row["success"]) + (f" ({percent(before)})" if before > 0 else "")


def _worst(summary: pd.DataFrame, n: int) -> list[str]:
    drops = {o: (summary[f"{o}_clean"] - summary[f"{o}_adv"]).max() for o in organs(summary)}
    kept = sorted(drops, key=lambda organ: -drops[organ])[:n]
    return [organ for organ in drops if organ in kept]


def _ordered(summary: pd.DataFrame) -> pd.DataFrame:
    rank = summary["role"] == "attack"
    first = {name: i for i, name in enumerate(dict.fromkeys(summary["attack"] + "/" + summary["loss"]))}
    order = (summary["attack"] + "/" + summary["loss"]).map(first)
    return summary.assign(_rank=rank, _order=order).sort_values(["_rank", "_order", "eps"], kind="stable")


def _clean(row: "pd.Series[float]", shown: Sequence[str]) -> list[str]:
    values = [number(row[f"{organ}_clean"]) for organ in [*shown, "mean"]]
    return ["clean", "", "", *values, between(row["low_of_clean"], row["high_of_clean"]), ""]


def _attacked(row: "pd.Series[float]", shown: Sequence[str]) -> list[str]:
    return [
        str(row["attack"]),
        str(row["loss"]),
        budget(row),
        *(number(row[f"{organ}_adv"]) for organ in [*shown, "mean"]),
        between(row["low"], row["high"]),
        number(row["drop"]),
    ]


def caption(summary: pd.DataFrame, *, unit: Unit, empty: Empty, hidden: int = 0, costs: bool = False) -> str:
    """The meaning of a table's numbers, in sentences."""
    parts = [
        *_doubts(summary),
        f"Dice per {unit}, {several(summary['cases'], unit)} of {several(summary['patients'], 'patient')} "
        f"({', '.join(dict.fromkeys(summary['split']))} split); 95 % CI: of the mean, Gaffke over "
        "patients.",
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(summary['touched'].max())} of "
        f"{int(summary['entries'].max())} scores.",
        *_prompts(summary),
    ]
    if costs:
        parts.append("Passes: per case, without a fit's; s: of the whole run, with its fit.")
    elif _shares(summary):
        parts.append(
            "rel. drop: of the mean; < half: share of scores below half their clean Dice; missed: share of organs "
            "found on the clean image and lost under attack."
        )
    n_least = int(summary["patients"].min())
    if n_least < FEW:
        parts.append(warning(n_least))
    if summary["verified"].any():
        parts.append(f"Verified from disk: {int(summary['verified'].sum())} of {len(summary)} runs.")
    if _aims(summary):
        parts.append(
            "success: share of images that met the attack's goal or criterion (in brackets: of untouched images); "
            "least: median size of the change, in its ball's norm, where untouched images did not."
        )
        if _has_goals(summary):
            parts.append("on truth: share that misses the truth by that criterion; goal Dice: Dice with the goal.")
    if "knowledge" in summary and (summary["knowledge"] == "native").any():
        parts.append("non_adaptive: the attack does not know the model's defence; no such number ranks.")
    if units := _units(summary):
        parts.append(f"eps: {units}.")
    if hidden:
        parts.append(f"Not shown: {plural(hidden, 'organ')} with smaller drops; --csv and --json have all.")
    return " ".join(parts)


def _prompts(summary: pd.DataFrame) -> list[str]:
    """A sentence on each kind of prompts that promptable models get."""
    if "prompt" not in summary:
        return []
    prompted = summary[summary["prompt"].fillna("") != ""]
    owner = {policy: listed(list(dict.fromkeys(of["model"]))) for policy, of in _by_unit(prompted, "prompt")}
    is_of_several = summary["model"].nunique() > 1
    return [f"Dice{f' of {models}' if is_of_several else ''} given a {policy}." for policy, models in owner.items()]


def _doubts(summary: pd.DataFrame) -> list[str]:
    """Sentences on runs whose numbers say less than they seem to."""
    sentences = []
    if summary["partial"].any():
        sentences.append("PARTIAL: --limit left cases out.")
    if _has_unlike_cases(summary):
        sentences.append("UNLIKE: the runs are of different cases, which moves Dice, too.")
    if "checks" in summary and not summary["checks"].all():
        n = int((~summary["checks"].astype(bool)).sum())
        sentences.append(f"NOT CHECKED: {n} of {plural(len(summary), 'run')} made with --no-checks.")
    return sentences


def compare_sheet(
    summary: pd.DataFrame,
    by: Sequence[str],
    *,
    sort: str,
    unit: Unit,
    empty: Empty,
    costs: bool = False,
    every_organ: bool = False,
) -> Sheet:
    """Runs side by side; with "organ" among `by`, one row per organ instead of one column.

    Args:
        costs: what each run cost, in the place of the statements of success.
        every_organ: a column for each, however wide the table gets, as for a document; else as many as a terminal has
            room for.
    """
    summary = _with_columns_that_may_differ(with_knowledge(summary), unit)
    less = [*LESS, f"{unit}s"]
    keys = [*by, *(key for key in [*NAMES, *less] if key not in by and summary[key].nunique() > 1)]
    table = long(summary) if "organ" in keys else summary.assign(clean=summary["mean_clean"], adv=summary["mean_adv"])
    table = table.sort_values(keys if sort == "by" else sort, kind="stable", key=rank if sort == "by" else None)

    def sheet(n: int) -> Sheet:
        shown = [] if "organ" in keys else _worst(summary, n)
        heads, cells = zip(*_columns(summary, keys, shown, costs), *_aims(summary), strict=True)
        hidden = len(organs(summary)) - len(shown) if shown else 0
        return Sheet(
            _title(summary, keys),
            list(heads),
            [[cell(row) for cell in cells] for _, row in table.iterrows()],
            caption(summary, unit=unit, empty=empty, hidden=hidden, costs=costs)
            + ("" if "organ" in keys else " SD: over patients, under attack.")
            + _queries(summary),
            left=len(keys),
            rules=_group_ends(table, keys) if sort == "by" else frozenset(),
            organs=organs(summary),
        )

    return sheet(len(organs(summary))) if every_organ else _fitting(sheet)


def _group_ends(table: pd.DataFrame, keys: Sequence[str]) -> frozenset[int]:
    """The last row of each group of rows that have the first key in common; none where a group is one row."""
    first = table[keys[0]].tolist()
    ends = [i for i, (word, after) in enumerate(pairwise(first)) if word != after]
    return frozenset(ends) if len(ends) + 1 < len(first) else frozenset()


def _columns(
    summary: pd.DataFrame, keys: Sequence[str], shown: Sequence[str], costs: bool
) -> list[tuple[str, CellFormat]]:
    """Head and cell of each column. Success is stated over organs: where rows are organs, not at all."""
    each: list[tuple[str, CellFormat]] = [(key, partial(_key, key=key)) for key in keys]
    scores = [("clean", "clean"), *((organ, f"{organ}_adv") for organ in shown)]
    scores += [("adv" if "organ" in keys else "mean", "adv")]
    each += [(head, partial(_of, column=column)) for head, column in scores]
    each += [("95 % CI", lambda row: between(row["low"], row["high"]))]
    each += [("SD", partial(_of, column="sd"))] if "organ" not in keys else []
    each += [("drop", partial(_of, column="drop"))]
    if costs:
        spent = [("forward passes", "forwards"), ("backward passes", "backwards"), ("s", "seconds")]
        return each + [(head, partial(_whole, column=column)) for head, column in spent]
    return each if "organ" in keys else [*each, *_shares(summary)]


def _whole(row: "pd.Series[float]", column: str) -> str:
    return f"{row[column]:.0f}"


def _of(row: "pd.Series[float]", column: str) -> str:
    return number(row[column])


def _share(row: "pd.Series[float]", column: str) -> str:
    return percent(row[column])


def _with_columns_that_may_differ(summary: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """With the norm and the number of cases as columns, and data sets of one name told apart where cases differ."""
    norm = summary["ball"].map(lambda ball: norm_of(ball_spec(ball))) if "ball" in summary else "linf"
    summary = summary.assign(norm=norm, **{f"{unit}s": summary["cases"].map(str)})
    sizes = summary.groupby("data")["cases"].transform("nunique")
    if not _has_unlike_cases(summary):
        return summary
    several = (summary.groupby("data")["cases_id"].transform("nunique") > 1) & (sizes == 1)
    return summary.assign(data=summary["data"].where(~several, summary["data"] + " " + summary["cases_id"].str[:6]))


def _has_unlike_cases(summary: pd.DataFrame) -> bool:
    return "cases_id" in summary and summary["cases_id"].nunique() > 1


def several(numbers: "pd.Series[int]", noun: str) -> str:
    """A number with its noun, or the range of several."""
    least, most = int(numbers.min()), int(numbers.max())
    return plural(most, noun) if least == most else f"{least} to {plural(most, noun)}"


def _units(summary: pd.DataFrame) -> str:
    """The units of `eps` of attacks whose ball has one of its own; "" if there is none."""
    if "unit" not in summary:
        return ""
    own = summary[summary["unit"].fillna("") != ""]
    return "; ".join(
        f"of {listed(list(dict.fromkeys(of_unit['attack'])))} in {unit}" for unit, of_unit in _by_unit(own, "unit")
    )


def budget(row: "pd.Series[float]") -> str:
    """The budget of a run as it was typed: with its unit, if it has one."""
    if "ball" in row and (text := budget_of(ball_spec(str(row["ball"])))):
        return text
    return spec(float(row["eps"]))


def _title(summary: pd.DataFrame, keys: Sequence[str]) -> str:
    """A title that names what all runs of a table have in common."""
    same = [key for key in [*NAMES, *LESS] if key not in keys and summary[key].nunique() == 1]
    common = [f"{key} {_key(summary.iloc[0], key)}" for key in same if str(summary.iloc[0][key])]
    return "Runs side by side" + (": " + ", ".join(common) if common else "")


def rank(column: "pd.Series[str]") -> "pd.Series[float]":
    """Budgets by size, words in the order in which the runs bring them, which puts the control first."""
    if column.name == "eps":
        return column.astype(float)
    first = {word: float(i) for i, word in enumerate(dict.fromkeys(column))}
    return column.map(first)


def long(summary: pd.DataFrame) -> pd.DataFrame:
    """One row per run and organ, with `clean`, `adv`, `drop`, and the interval `low` to `high` of `adv`."""
    parts = [
        summary.assign(organ=o, clean=summary[f"{o}_clean"], adv=summary[f"{o}_adv"]).assign(
            drop=lambda t: t["clean"] - t["adv"], low=summary[f"{o}_low"], high=summary[f"{o}_high"]
        )
        for o in organs(summary)
    ]
    return pd.concat(parts, ignore_index=True)


def _key(row: "pd.Series[float]", key: str) -> str:
    return budget(row) if key == "eps" else str(row[key])


def score_sheet(table: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """Scores of clean or stored images: a row per run and organ, and one of the mean over the organs of a run."""
    facts = ["run", "cls", "cases", "touched", "model", "attack", "eps", "data", "split", "partial"]
    spread = ["low", "high", "sd"]
    known = {"dice", *facts, *spread, *(f"{name}_of_mean" for name in spread)}
    measures = [column for column in table.columns if column not in known]
    names = _run_names(table)
    several = len(names) > 1
    rows: list[list[str]] = []
    for run, of_run in table.groupby("run", sort=False):
        name = [names[str(run)]] if several else []
        means = of_run[["dice", *measures]].mean()
        for _, row in of_run.iterrows():
            dice = [number(row["dice"]), between(row["low"], row["high"]), number(row["sd"])]
            rows.append([*name, str(row["cls"]), *dice, *(number(row[measure]) for measure in measures)])
        low, high, sd = (of_run.iloc[0][f"{end}_of_mean"] for end in spread)
        dice = [number(means["dice"]), between(low, high), number(sd)]
        rows.append([*name, MEAN, *dice, *(number(means[measure]) for measure in measures)])
    first = table.iloc[0]
    text = (
        f"Dice and IoU per {unit}, {plural(first['cases'], unit)} ({first['split']} split). 95 % CI, SD: of Dice, "
        "over patients, the interval by Gaffke. "
        f"Empty masks: {EMPTY_RULES[empty]}; decided {int(table['touched'].sum())} scores. Other measures per scan, in "
        "3-D; an organ in neither mask is left out, one in one mask alone counts as the grid's diagonal (mm) or 0."
    )
    partial = " PARTIAL: --limit left cases out." if table["partial"].any() else ""
    title = f"{first['model']} on {first['data']}: {'clean images' if first['attack'] == 'clean' else 'stored images'}"
    columns = [*(["run"] if several else []), "organ", "dice", "95 % CI", "SD", *measures]
    classes = list(map(str, table["cls"].unique()))
    return Sheet(title, columns, rows, text + partial, left=2 if several else 1, organs=classes)


def _run_names(table: pd.DataFrame) -> dict[str, str]:
    """The name of each run, or of the run whose images it scores: its folder's, after its model's where they repeat."""
    folders = {str(row["run"]): _scored_run(row) for _, row in table.drop_duplicates("run").iterrows()}
    names = {run: folder.name for run, folder in folders.items()}
    if len(set(names.values())) == len(names):
        return names
    return {run: ids_of(folder)["run_id"] for run, folder in folders.items()}


def _scored_run(row: "pd.Series[float]") -> Path:
    """The folder of the run whose images are scored: the run itself, or the one that it replays."""
    attack = attack_spec(str(row["attack"]))
    fields = {name: node.value for name, node in attack.keywords if isinstance(node, Literal)}
    return Path(str(fields["run"] if attack.name == "replay" else row["run"]))
