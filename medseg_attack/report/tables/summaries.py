"""The parts of a summary of runs that tables, pages and figures share."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from medseg_attack.errors import plural
from medseg_attack.registry import spec
from medseg_attack.runs.stored_specs import ball_spec, budget_of


def organs(summary: pd.DataFrame) -> list[str]:
    """The classes of a summary, in the order of the task."""
    return [c.removesuffix("_adv") for c in summary.columns if c.endswith("_adv") and c != "mean_adv"]


def with_knowledge(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary with attacks that do not know the defence of their model called so."""
    if "knowledge" not in summary:
        return summary
    is_native = summary["knowledge"] == "native"
    return summary.assign(attack=summary["attack"].where(~is_native, summary["attack"] + " non_adaptive"))


def by_text(summary: pd.DataFrame, column: str) -> "Iterable[tuple[str, pd.DataFrame]]":
    """The values of a column of texts, each with its runs, in the order in which runs bring them."""
    return ((str(text), runs) for text, runs in summary.groupby(column, sort=False))


def has_goals(summary: pd.DataFrame) -> bool:
    """Whether a run is of an attack that had a mask for its goal."""
    return "goal_dice" in summary and bool(summary["goal_dice"].notna().any())


def has_unlike_cases(summary: pd.DataFrame) -> bool:
    """Whether two of the runs scored different cases."""
    return "cases_id" in summary and summary["cases_id"].nunique() > 1


def several(numbers: "pd.Series[int]", noun: str) -> str:
    """A number with its noun, or the range of several."""
    least, most = int(numbers.min()), int(numbers.max())
    return plural(most, noun) if least == most else f"{least} to {plural(most, noun)}"


def budget(row: "pd.Series[float] | Mapping[str, Any]") -> str:
    """The budget of a run as it was typed: with its unit, if it has one; "" where it is not known."""
    if "ball" in row and isinstance(ball := row["ball"], str) and (text := budget_of(ball_spec(ball))):
        return text
    return "" if row["eps"] is None else spec(float(row["eps"]))


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
