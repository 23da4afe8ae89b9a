"""The table of runs side by side."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.report.sheet import Sheet, between
from medseg_attack.report.tables.captions import caption, queries
from medseg_attack.report.tables.columns import CellFormat, aims, fitting, shares, value_of, whole_number, worst
from medseg_attack.report.tables.summaries import budget, has_unlike_cases, long, organs, rank, with_knowledge
from medseg_attack.runs.rows import NAMES
from medseg_attack.runs.stored_specs import ball_spec, norm_of
from medseg_attack.stats.scores import Unit

LESS = ("norm", "data", "split")  # what seldom differs between the runs of a table


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
    summary = with_columns_that_may_differ(with_knowledge(summary), unit)
    less = [*LESS, f"{unit}s"]
    keys = [*by, *(key for key in [*NAMES, *less] if key not in by and summary[key].nunique() > 1)]
    table = long(summary) if "organ" in keys else summary.assign(clean=summary["mean_clean"], adv=summary["mean_adv"])
    table = table.sort_values(keys if sort == "by" else sort, kind="stable", key=rank if sort == "by" else None)

    def sheet(n: int) -> Sheet:
        shown = [] if "organ" in keys else worst(summary, n)
        heads, cells = zip(*_columns(summary, keys, shown, costs), *aims(summary), strict=True)
        hidden = len(organs(summary)) - len(shown) if shown else 0
        return Sheet(
            _title(summary, keys),
            list(heads),
            [[cell(row) for cell in cells] for _, row in table.iterrows()],
            caption(summary, unit=unit, empty=empty, hidden=hidden, costs=costs)
            + ("" if "organ" in keys else " SD: over patients, under attack.")
            + queries(summary),
            left=len(keys),
            rules=_group_ends(table, keys) if sort == "by" else frozenset(),
            organs=organs(summary),
        )

    return sheet(len(organs(summary))) if every_organ else fitting(sheet)


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
    each += [(head, partial(value_of, column=column)) for head, column in scores]
    each += [("95 % CI", lambda row: between(row["low"], row["high"]))]
    each += [("SD", partial(value_of, column="sd"))] if "organ" not in keys else []
    each += [("drop", partial(value_of, column="drop"))]
    if costs:
        spent = [("forward passes", "forwards"), ("backward passes", "backwards"), ("s", "seconds")]
        return each + [(head, partial(whole_number, column=column)) for head, column in spent]
    return each if "organ" in keys else [*each, *shares(summary)]


def with_columns_that_may_differ(summary: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """With the norm and the number of cases as columns, and data sets of one name told apart where cases differ."""
    norm = summary["ball"].map(lambda ball: norm_of(ball_spec(ball))) if "ball" in summary else "linf"
    summary = summary.assign(norm=norm, **{f"{unit}s": summary["cases"].map(str)})
    sizes = summary.groupby("data")["cases"].transform("nunique")
    if not has_unlike_cases(summary):
        return summary
    several = (summary.groupby("data")["cases_id"].transform("nunique") > 1) & (sizes == 1)
    return summary.assign(data=summary["data"].where(~several, summary["data"] + " " + summary["cases_id"].str[:6]))


def _title(summary: pd.DataFrame, keys: Sequence[str]) -> str:
    """A title that names what all runs of a table have in common."""
    same = [key for key in [*NAMES, *LESS] if key not in keys and summary[key].nunique() == 1]
    common = [f"{key} {_key(summary.iloc[0], key)}" for key in same if str(summary.iloc[0][key])]
    return "Runs side by side" + (": " + ", ".join(common) if common else "")


def _key(row: "pd.Series[float]", key: str) -> str:
    return budget(row) if key == "eps" else str(row[key])
