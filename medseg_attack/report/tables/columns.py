"""Columns: their heads, and how each writes the value of a run."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import pandas as pd

from medseg_attack.report.sheet import Sheet, fits, number, percent
from medseg_attack.report.tables.summaries import has_goals, organs

MOST_ORGANS = 4  # columns that fit 100 characters beside the rest
CellFormat: TypeAlias = "Callable[[pd.Series[float]], str]"


def fitting(sheet_of: Callable[[int], Sheet]) -> Sheet:
    """The sheet with as many organs, at most `MOST_ORGANS`, as 100 columns hold without breaking a word."""
    sheets = map(sheet_of, range(MOST_ORGANS, 0, -1))
    return next((sheet for sheet in sheets if fits(sheet)), sheet_of(1))


def shares(summary: pd.DataFrame) -> list[tuple[str, CellFormat]]:
    """Head and cell of three ways to state success; none where goals state that of every attack."""
    measures = [("rel. drop", "relative_drop"), ("< half", "below_half"), ("missed", "missed")]
    attacks = summary[summary["role"] == "attack"]
    if has_goals(summary) and attacks["goal_dice"].notna().all():
        return []
    return [(head, partial(share_of, column=column)) for head, column in measures]


def aims(summary: pd.DataFrame) -> list[tuple[str, CellFormat]]:
    """Head and cell of the columns of attacks with a goal or a criterion; none if no run has one."""
    if "success" not in summary or summary["success"].isna().all():
        return []
    of_goals: list[tuple[str, CellFormat]] = [
        ("on truth", partial(share_of, column="success_on_truth")),
        ("goal Dice", partial(value_of, column="goal_dice")),
    ]
    of_goals = of_goals if has_goals(summary) else []
    return [("success", _success), *of_goals, ("least", lambda row: number(row["least"], 4))]


def _success(row: "pd.Series[float]") -> str:
    before = row["success_of_clean"]
    return percent(row["success"]) + (f" ({percent(before)})" if before > 0 else "")


def worst(summary: pd.DataFrame, n: int) -> list[str]:
    """The n organs that lose the most Dice under any attack, in the order of the task."""
    drops = {o: (summary[f"{o}_clean"] - summary[f"{o}_adv"]).max() for o in organs(summary)}
    kept = sorted(drops, key=lambda organ: -drops[organ])[:n]
    return [organ for organ in drops if organ in kept]


def whole_number(row: "pd.Series[float]", column: str) -> str:
    """A cell with a number of things."""
    return f"{row[column]:.0f}"


def value_of(row: "pd.Series[float]", column: str) -> str:
    """A cell with a score or a difference of scores."""
    return number(row[column])


def share_of(row: "pd.Series[float]", column: str) -> str:
    """A cell with a fraction in percent."""
    return percent(row[column])
