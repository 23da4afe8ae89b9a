"""How visible the changes of runs are, beside the Dice that they cost. No torch in here."""

import numpy as np
import pandas as pd

from medseg_attack.errors import InputError

MEASURES = ("ssim", "ssim_body", "psnr", "noise_units")  # means over patients; see `metrics.visibility`
LEAST = "ssim_min"


def visible(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per run, its name in `run`, with the visibility of its changes: means over patients.

    `ssim_min` is the least of a slice; `psnr` is that of the mean squared error, since one unchanged slice has no
    finite one. NaN for runs that were made before rows held these measures.

    Raises:
        InputError: no run has them.
    """
    absent = [name for name in (*MEASURES, LEAST) if name not in rows]
    if absent:
        raise InputError(
            "expected runs whose rows say how visible changes are, got runs of an older version; attack again"
        )
    cases = rows.drop_duplicates(["run", "case"])
    cases = cases.assign(psnr=10 ** (-cases["psnr"] / 10))
    of_patients = cases.groupby(["run", "group"], sort=False)[list(MEASURES)].mean()
    of_runs = of_patients.groupby("run", sort=False)[list(MEASURES)].mean()
    with np.errstate(divide="ignore"):  # of a run that changed nothing
        of_runs["psnr"] = -10 * np.log10(of_runs["psnr"])
    return of_runs.assign(**{LEAST: cases.groupby("run", sort=False)[LEAST].min()}).reset_index()
