"""The table of natural corruptions: the Dice that each kind of corruption takes, and the mean over kinds."""

import pandas as pd

from medseg_attack.report.sheet import Sheet, number, percent
from medseg_attack.stats.ladders import ALL


def ladder_sheet(table: pd.DataFrame) -> Sheet:
    """Natural corruptions, a row per model and kind, the means over kinds last.

    Args:
        table: of `stats.ladders.ladders`.
    """
    several = table["model"].nunique() > 1
    rows = [
        [
            str(row["model"]),
            "mean over kinds" if row["kind"] == ALL else str(row["kind"]),
            str(row["severities"]),
            *(number(row[name]) for name in ("clean", "dice", "least")),
            percent(row["degradation"]),
            *([number(row["error"], 2), number(row["relative_error"], 2)] if several else []),
        ]
        for _, row in table.iterrows()
    ]
    columns = ["model", "corruption", "n", "clean", "Dice", "least", "degr."]
    caption = (
        "n: severities. Dice: mean over classes and severities; of all kinds it is mDice_C. least: at the worst "
        "severity. degr.: degradation, 1 - Dice / clean. "
    )
    if several:
        caption += (
            f"error: 1 - Dice as a share of that of {table['model'].iloc[0]}; relative: the same of what corruptions "
            "add to the error on clean images."
        )
        columns += ["error", "relative"]
    n_kinds = int((table["kind"] != ALL).sum())
    return Sheet("Natural corruptions", columns, rows, caption.strip(), left=2, rules=frozenset({n_kinds - 1}))
