"""The table of attacks on one model."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.report.sheet import Sheet, between, number
from medseg_attack.report.tables.captions import caption, queries
from medseg_attack.report.tables.columns import CellFormat, aims, fitting, shares, value_of, worst
from medseg_attack.report.tables.summaries import budget, organs, with_knowledge
from medseg_attack.stats.scores import Unit


def attack_sheet(summary: pd.DataFrame, *, unit: Unit, empty: Empty) -> Sheet:
    """One model's table: clean on top, then controls, then attacks, adversarial Dice per organ."""
    summary = with_knowledge(summary)
    return fitting(lambda n: _attack_sheet(summary, worst(summary, n), unit=unit, empty=empty))


def _attack_sheet(summary: pd.DataFrame, shown: Sequence[str], *, unit: Unit, empty: Empty) -> Sheet:
    first = summary.iloc[0]
    rows = [_clean(first, shown), *(_attacked(row, shown) for _, row in _ordered(summary).iterrows())]
    n_controls = int((summary["role"] != "attack").sum())
    names = _measures(summary)
    of_measures: list[tuple[str, CellFormat]] = [(name, partial(value_of, column=f"adv_{name}")) for name in names]
    last = [*of_measures, *shares(summary), *aims(summary)]
    clean_end = [number(first[f"clean_{name}"]) for name in names] + [""] * (len(last) - len(names))
    ends = [clean_end, *([cell(row) for _, cell in last] for _, row in _ordered(summary).iterrows())]
    return Sheet(
        f"{first['model']} on {first['data']}",
        ["attack", "loss", "eps", *shown, "mean", "95 % CI", "drop", *(head for head, _ in last)],
        [[*row, *more] for row, more in zip(rows, ends, strict=True)],
        caption(summary, unit=unit, empty=empty, hidden=len(organs(summary)) - len(shown))
        + (f" {', '.join(names)}: means over whole scans." if names else "")
        + queries(summary),
        left=2,
        rules=frozenset({0, n_controls}),
        organs=organs(summary),
    )


def _measures(summary: pd.DataFrame) -> list[str]:
    """The measures of whole scans that were asked for beside Dice."""
    names = [column.removeprefix("adv_") for column in summary.columns if column.startswith("adv_")]
    return [name for name in names if f"clean_{name}" in summary and not name.endswith(("_adv", "_clean"))]


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
