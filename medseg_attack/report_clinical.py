"""Tables of clinical deltas, of models paired by patient, and of how stable their ranks are. No torch in here."""

from pathlib import Path

import pandas as pd

from medseg_attack.patients import warning
from medseg_attack.registry import spec
from medseg_attack.report import Sheet, number, p_value, percent

_MEASURED = {"hd95_mm": "HD95 mm", "assd_mm": "ASSD mm"}


def delta_sheet(summary: pd.DataFrame, header: pd.DataFrame) -> Sheet:
    """What every attack does to every organ: means over scans, clean to adversarial.

    Args:
        summary: of `deltas.delta_summary`.
        header: model, attack, loss and eps by run.
    """
    measured = [n for n in summary.columns if n.endswith("_adv") and not n.startswith(("dice_", "iou_", "volume_"))]
    names = [column.removesuffix("_adv") for column in measured]
    rows = [
        [_run(header.loc[row["run"]], several=header["model"].nunique() > 1), str(row["cls"]),
         *(_change(row, name, 1 if name.endswith("_mm") else 2) for name in ("dice", *names)),
         _change(row, "volume_ml", 0 if row["volume_ml_clean"] >= 100 else 1), _signed(row["volume_percent"]),
         number(row["centroid_shift_mm"], 1), str(int(row["missed"])), str(int(row["hallucinated"]))]
        for _, row in summary.iterrows()
    ]  # fmt: skip
    heads = [_MEASURED.get(name, name.partition("(")[0].upper()) for name in names]
    columns = ["run", "organ", "Dice", *heads, "volume ml", "%", "shift mm", "missed", "halluc."]
    first = summary.iloc[0]
    text = (
        f"Clean > adversarial, means over {first['scans']} scans of {first['patients']} patients; %: mean change of a "
        "scan's volume; shift: of the centroid. missed: scans whose organ is found clean and lost under attack; "
        "halluc.: predicted only under attack, where there is none. Distances: in neither mask: left out; in one "
        f"alone: the grid's diagonal (NSD: 0). Volume and shift are left out where a mask is empty that they need. "
        f"{warning(int(first['patients']))}"
    ).strip()
    return Sheet("Clinical deltas", columns, rows, text, left=2)


def _run(facts: "pd.Series[float]", *, several: bool) -> str:
    words = [
        str(facts["model"]) if several else "",
        str(facts["attack"]),
        str(facts["loss"]),
        spec(float(facts["eps"])),
    ]
    return " ".join(filter(None, words))


def _change(row: "pd.Series[float]", name: str, digits: int) -> str:
    return f"{number(row[f'{name}_clean'], digits)} > {number(row[f'{name}_adv'], digits)}"


def _signed(value: float) -> str:
    return "-" if value != value else f"{value:+.0f}"


def paired_sheet(table: pd.DataFrame) -> Sheet:
    """Models two by two under the same attack."""
    rows = [
        [_named(row["new"]), _named(row["old"]), str(row["attack"]), str(row["loss"]), spec(float(row["eps"])),
         f"{row['mean']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", p_value(row["p_holm"])]
        for _, row in table.iterrows()
    ]  # fmt: skip
    n = int(table["n"].min())
    text = (
        f"Adversarial Dice of the first model minus that of the second, mean over organs, paired over {n} patients; "
        f"95 % interval: bootstrap-t; p: signed-rank on patients' means, Holm over the {len(table)} rows. "
        f"{warning(n, len(table))}"
    ).strip()
    columns = ["model", "against", "attack", "loss", "eps", "difference", "95 % CI", "p"]
    return Sheet("Models, paired by patient", columns, rows, text, left=4)


def _named(label: object) -> str:
    """The label; of a run's path, the two last folders."""
    name, bracket, run = str(label).partition(" (")
    return f"{name} ({'/'.join(Path(run.removesuffix(')')).parts[-2:])})" if bracket else name


def rank_sheet(table: pd.DataFrame) -> Sheet:
    """How often each model keeps its rank when patients are drawn anew."""
    places = range(1, table["model"].nunique() + 1)
    rows = [
        [str(row["attack"]), str(row["loss"]), spec(float(row["eps"])), _named(row["model"]), str(int(row["seen"])),
         *(percent(row[place]) for place in places)]
        for _, row in table.iterrows()
    ]  # fmt: skip
    text = "Rank in adversarial Dice, and the share of bootstrap draws of patients in which a model has each rank."
    columns = ["attack", "loss", "eps", "model", "rank", *(f"as {place}." for place in places)]
    return Sheet("Ranks of models", columns, rows, text, left=4)
