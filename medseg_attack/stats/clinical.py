"""An attack's effect on an organ in the clinic's units: per scan, clean to adversarial. No torch in here.

Always per scan, whatever unit other tables score: a volume in ml and a centroid belong to one scan.
"""

import numpy as np
import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.runs.rows import AXES
from medseg_attack.stats.scores import COUNTS, TRUTH, by_class, measures, scored

STATES = ("ok", "missed", "hallucinated", "absent")
_KEYS = ["run", "group", "volume", "cls"]


def deltas(rows: pd.DataFrame, *, empty: Empty) -> pd.DataFrame:
    """One row per run, scan and class.

    Columns: `state_clean`, `state_adv` (ok; missed: in the truth, predicted nowhere; hallucinated: predicted, not in
    the truth; absent: neither); dice, iou and whatever was measured, each `_clean` and `_adv`; volume_ml_target,
    _clean, _adv, and of the last two their difference `volume_ml` and `volume_percent`, less what the organ itself grew
    by under an attack that moves anatomy; `centroid_shift_mm` from the clean to the adversarial prediction, anatomy's
    own shift included. `metrics.empty.RULES` says what each is where a mask is empty.
    """
    sums = [f"{axis}_{when}" for axis in AXES for when in ("clean", "adv")]
    first = [f"{axis}_mm" for axis in AXES] + [f"{name}_{when}" for name in measures(rows) for when in ("clean", "adv")]
    table = rows.groupby(_KEYS, sort=False)[[*COUNTS, *sums]].sum()
    table = table.join(rows.groupby(_KEYS, sort=False)[first].first()).reset_index()
    table = scored(table, empty)
    for when, truth in TRUTH.items():
        table[f"state_{when}"] = _state(table[truth] > 0, table[f"n_{when}"] > 0)
    return table.assign(**_volumes(table), centroid_shift_mm=_shift(table)).drop(columns=sums)


def _state(in_truth: "pd.Series[bool]", in_pred: "pd.Series[bool]") -> np.ndarray:
    conditions = [in_truth & in_pred, in_truth & ~in_pred, ~in_truth & in_pred]
    return np.select(conditions, STATES[:3], default=STATES[3])


def _volumes(table: pd.DataFrame) -> dict[str, "pd.Series[float]"]:
    voxel_ml = table["z_mm"] * table["y_mm"] * table["x_mm"] / 1000
    volumes = {f"volume_ml_{when}": table[f"n_{when}"] * voxel_ml for when in ("target", "clean", "adv")}
    # what the organ itself grew by is not the model's error
    change = table["n_adv"] - table["n_clean"] - (table["n_target_adv"] - table["n_target"])
    # of pixels, so that it is there without a slice thickness, too
    percent = 100 * change / table["n_clean"].where(table["n_clean"] > 0)
    return volumes | {"volume_ml": change * voxel_ml, "volume_percent": percent}


def _shift(table: pd.DataFrame) -> "pd.Series[float]":
    squares = pd.Series(0.0, index=table.index)
    for axis in AXES:
        # an image of no scan has no slice spacing, and its pixels all lie in one slice
        spacing = table[f"{axis}_mm"].fillna(0)
        clean, adv = (
            table[f"{axis}_{when}"] / table[f"n_{when}"].where(table[f"n_{when}"] > 0) for when in ("clean", "adv")
        )
        squares += ((adv - clean) * spacing) ** 2
    return squares.pow(0.5)


def delta_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per run and class: means over scans (what is left out is left out), and how many were missed or hallucinated.

    `missed`: found on the clean image, not under attack; `hallucinated`: not predicted on the clean image, and not
    there, but predicted under attack; `scans` of `patients`.
    """
    means = [
        c for c in table.columns if c not in (*_KEYS, *COUNTS, "touched") and pd.api.types.is_float_dtype(table[c])
    ]
    lost = (table["state_adv"] == "missed") & (table["state_clean"] == "ok")
    invented = (table["state_adv"] == "hallucinated") & (table["state_clean"] == "absent")
    counted = table.assign(missed=lost, hallucinated=invented).groupby(["run", "cls"], sort=False)
    return pd.concat(
        [
            by_class(table, means),
            counted[["missed", "hallucinated"]].sum(),
            counted.agg(scans=("volume", "nunique"), patients=("group", "nunique")),
        ],
        axis=1,
    ).reset_index()
