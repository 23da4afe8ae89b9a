"""An attack's effect on an organ in the clinic's units: per scan, clean to adversarial. No torch in here.

Always per scan, whatever unit other tables score: a volume in ml and a centroid belong to one scan.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from medseg_attack.metrics.empty import Empty
from medseg_attack.runs.rows import AXES
from medseg_attack.stats.patients import UNBOUNDED, interval
from medseg_attack.stats.scores import COUNTS, TRUTH, by_class, measures, scored

STATES = ("ok", "missed", "hallucinated", "absent")
_KEYS = ["run", "group", "volume", "cls"]
THRESHOLDS = (35, 40, 50)  # %: implantable defibrillator, heart failure with reduced, and with preserved fraction


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


def ejections(deltas: pd.DataFrame, phases: Mapping[tuple[str, str], str], organ: str) -> pd.DataFrame:
    """The ejection fraction `100 (EDV - ESV) / EDV` of every run and patient with a scan of each phase.

    An empty mask at end diastole has the fraction 0, so that an erased ventricle is not left out.

    Args:
        deltas: the table of `stats.clinical.deltas`.
        phases: "ED" or "ES" by run and scan; others are left out.
        organ: class of the ventricle.

    Returns:
        Columns: run, group, target, clean, adv and change (adv - clean), in %.
    """
    of_organ = deltas[deltas["cls"] == organ]
    phase = [phases.get((run, volume), "") for run, volume in zip(of_organ["run"], of_organ["volume"], strict=True)]
    of_organ = of_organ.assign(phase=phase)
    of_organ = of_organ[of_organ["phase"] != ""]
    names = {name: f"volume_ml_{name}" for name in ("target", "clean", "adv")}
    # a patient with several scans of a phase has their mean volume
    means = of_organ.groupby(["run", "group", "phase"], sort=False)[[*names.values()]].mean()
    table = pd.DataFrame(means.unstack("phase", sort=False)).reindex(
        columns=pd.MultiIndex.from_product([names.values(), ["ED", "ES"]])
    )
    fractions = {}
    for name, volume in names.items():
        first, last = table[volume, "ED"], table[volume, "ES"]
        fractions[name] = (100 * (first - last) / first).mask((first == 0) & last.notna(), 0.0)
    result = pd.DataFrame(fractions, index=table.index).dropna().reset_index()
    return result.assign(change=result["adv"] - result["clean"])


def ejection_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Per run the mean fractions, their change, its spread over patients, and how often it crosses a threshold.

    Returns:
        Columns: run, patients, target, clean, adv, change, low, high (95 % interval of the mean change, Student's at
        least), agreement_low, agreement_high (Bland and Altman's limits: change +- 1.96 standard deviations), and of
        each threshold t in % `crossed_t`, `crossed_t_low`, `crossed_t_high`: the share of patients whose fraction is at
        t or above on one side and below it on the other.
    """
    rows = []
    for run, of_run in table.groupby("run", sort=False):
        cases = of_run.assign(cls="ventricle")
        low, high = interval(cases, "change", bounds=UNBOUNDED)
        spread = 1.96 * float(of_run["change"].std(ddof=1))
        change = float(of_run["change"].mean())
        facts = {"run": run, "patients": len(of_run), **of_run[["target", "clean", "adv"]].mean().to_dict()}
        facts |= {"change": change, "low": low, "high": high}
        facts |= {"agreement_low": change - spread, "agreement_high": change + spread}
        for limit in THRESHOLDS:
            crossed = ((of_run["clean"] >= limit) != (of_run["adv"] >= limit)).astype(float)
            ends = interval(cases.assign(crossed=crossed), "crossed")
            name = f"crossed_{limit}"
            facts |= {name: float(crossed.mean()), f"{name}_low": ends[0], f"{name}_high": ends[1]}
        rows.append(facts)
    return pd.DataFrame(rows)
