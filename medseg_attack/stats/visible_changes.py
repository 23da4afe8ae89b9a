"""How visible the changes of runs are, beside the Dice that they cost. No torch in here."""

import pandas as pd

from medseg_attack.errors import InputError

MEASURES = ("ssim", "ssim_body", "psnr", "noise_units")  # means over patients; see `metrics.visibility`
LEAST = "ssim_min"


def visible(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run, its name in `run`, with the visibility of its changes: means over patients.

    `ssim_min` is the least of a slice. NaN for runs that were made before rows held these measures.

    Raises:
        InputError: no run has them.
    """
    absent = [name for name in (*MEASURES, LEAST) if name not in rows]
    if absent:
        raise InputError(
            "expected runs whose rows say how visible changes are, got runs of an older version; attack again"
        )
    cases = rows.drop_duplicates(["run", "case"])
    of_patients = cases.groupby(["run", "group"], sort=False)[list(MEASURES)].mean()
    of_runs = of_patients.groupby("run", sort=False)[list(MEASURES)].mean()
    return of_runs.assign(**{LEAST: cases.groupby("run", sort=False)[LEAST].min()}).reset_index()
