"""Alarms with a rate: p-values by split conformal prediction, AUROC, and a table of what a detector noticed. No torch.

The unit is the patient: a patient's score is that of the most suspicious case.
"""

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from medseg_attack.errors import InputError
from medseg_attack.stats.intervals import LEVEL, mean_interval

Array = NDArray[np.float64]
RATES = (0.01, 0.05, 0.10)  # of false alarms, that tables show
PRICE = 0.1  # of a false alarm, where a harmful scan that nobody noticed costs 1
HARMFUL = 0.5  # share of a patient's clean Dice that a harmful attack takes, or more
# what a detector is worth, in words
HOLDS = "notices harmful attacks, also those that know it"
UNAWARE_ONLY = "notices only attacks that do not know it"
USELESS = "does not notice harmful attacks"


def p_values(scores: Array, calibration: Array) -> Array:
    """p of each score: (1 + calibration scores at least as high) / (1 + their number), by patient.

    An alarm where p <= alpha is false for at most a share alpha of clean patients, if they are exchangeable with those
    of the calibration (split conformal prediction).

    >>> p_values(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.5, 0.25]
    """
    at_least = len(calibration) - np.searchsorted(np.sort(calibration), scores, side="left")
    return np.asarray((1 + at_least) / (1 + len(calibration)))


def two_sided_p_values(scores: Array, calibration: Array) -> Array:
    """p of each score where one that is unusually low is as suspicious: twice the smaller share of either side, or 1.

    An attack that knows a detector can overshoot: its scores are then lower than those of any clean patient. Alarms
    keep the promise of `p_values`, of which the least rate is twice as large.

    >>> two_sided_p_values(np.array([0.0, 2.5, 9.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [0.5, 1.0, 0.5]
    """
    least = np.minimum(p_values(scores, calibration), p_values(-np.asarray(scores), -np.asarray(calibration)))
    return np.asarray(np.minimum(2 * least, 1.0))


def limit(calibration: Array, rate: float) -> float:
    """The score above which p is at most `rate`; infinite where no score is.

    >>> limit(np.array([1.0, 2.0, 3.0]), 0.25), limit(np.array([1.0, 2.0, 3.0]), 0.5), limit(np.array([1.0]), 0.05)
    (3.0, 2.0, inf)
    """
    rank = math.floor(rate * (len(calibration) + 1) * (1 + 1e-12))
    return math.inf if rank < 1 else float(np.sort(calibration)[-min(rank, len(calibration))])


def least_patients(rate: float) -> int:
    """The least number of calibration patients who can promise so few false alarms.

    >>> least_patients(0.05), least_patients(0.01)
    (19, 99)
    """
    return math.ceil(1 / rate * (1 - 1e-12)) - 1


def least_rate(patients: int) -> float:
    """The least rate of false alarms that so many calibration patients can promise, rounded up to be typed.

    >>> least_rate(19), least_rate(2)
    (0.05, 0.334)
    """
    return math.ceil(1000 / (patients + 1) * (1 - 1e-12)) / 1000


def require_rate(rate: float, patients: int, source: str) -> None:
    """Refuses a rate of false alarms that so many calibration patients cannot promise.

    Raises:
        InputError: the sentence names the number of patients that it takes.
    """
    if not 0 < rate < 1:
        raise InputError(f"expected a rate of false alarms between 0 and 1, got {rate:g}; write 0.05")
    if patients < least_patients(rate):
        raise InputError(
            f"expected {least_patients(rate)} calibration patients or more for {rate:.2g} false alarms, got {patients} "
            f"in {source}; ask for {least_rate(patients):g} or more, or prepare more patients with fewer --folds"
        )


def rates(n: int) -> tuple[float, ...]:
    """The rates of false alarms that tables show for n calibration patients: the usual ones, and `main_rate`.

    >>> rates(19), [round(rate, 3) for rate in rates(4)]
    ((0.01, 0.05, 0.1), [0.01, 0.05, 0.1, 0.2])
    """
    return tuple(sorted({*RATES, main_rate(n)}))


def main_rate(n: int) -> float:
    """The rate of false alarms at which risk is told: 5 %, or the least that n calibration patients can promise."""
    return max(0.05, 1 / (n + 1))


def two_sided_rate(n: int) -> float:
    """The rate of false alarms at which two-sided alarms are told: 5 %, or the least that n patients can promise.

    >>> two_sided_rate(39), two_sided_rate(19)
    (0.05, 0.1)
    """
    return max(0.05, 2 / (n + 1))


def auroc(negative: Array, positive: Array) -> float:
    """The probability that a positive score is above a negative one; half of it where they are equal.

    >>> auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    0.875
    """
    return float(_wins(negative, positive).mean())


def _wins(negative: Array, positive: Array) -> Array:
    above = positive[:, None] - negative[None, :]
    return np.asarray(np.where(above > 0, 1.0, np.where(above == 0, 0.5, 0.0)))


def auroc_interval(negative: Array, positive: Array) -> tuple[float, float]:
    """The 95 % interval over patients of `auroc`, both scores of a patient together; NaN of fewer than two.

    A patient's part in it is how often the positive score wins plus how often the negative one loses, less the AUROC:
    DeLong's components (Biometrics 1988), whose mean is the AUROC. Of them it is the interval of
    `stats.intervals.mean_interval`, so that few patients who are all told apart are no proof.
    """
    wins = _wins(negative, positive)
    parts = wins.mean(1) + wins.mean(0) - wins.mean()
    low, high = mean_interval(parts[:, None], np.ones((len(parts), 1)), (0.0, 1.0))
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def share_interval(hits: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; NaN without any."""
    if not n:
        return math.nan, math.nan
    ci = scipy_stats.binomtest(hits, n).proportion_ci(LEVEL, method="exact")
    return float(ci.low), float(ci.high)


def alarm_table(scores: pd.DataFrame, n_calibration: int) -> pd.DataFrame:
    """A row per row of the table: clean patients, noise and each attack, unaware or not.

    Columns: auroc with low and high (against clean), auroc_noise (against noise of the same size), alarms_RATE with
    low and high, alarms_two_sided (at `two_sided_rate`), harmed (patients who lost at least half their Dice), noticed
    (share of them), missed (harmed and unnoticed, of all), risk (missed, and false alarms at a tenth of the price).

    Args:
        scores: a row per patient: `row` (number), `kind` ("clean", "noise", "attack" or "adaptive"), `attack`, `eps`,
            `noise` (row of the noise of the same size), `group`, `score`, `p`, `dice_clean` and `dice`; `loss`,
            `goal` and `p_two_sided` where they are known.
    """
    by_row = {number: rows.sort_values("group") for number, rows in scores.groupby("row", sort=True)}
    clean = next(rows for rows in by_row.values() if rows["kind"].iloc[0] == "clean")
    shown, main = rates(n_calibration), main_rate(n_calibration)
    possible = [rate for rate in shown if rate * (n_calibration + 1) * (1 + 1e-12) >= 1]
    false_alarms = float((clean["p"] <= main * (1 + 1e-12)).mean())
    table = []
    for rows in by_row.values():
        first = rows.iloc[0]
        row = {"kind": first["kind"], "attack": first["attack"], "loss": first.get("loss", "")}
        row |= {"goal": first.get("goal", ""), "eps": first["eps"], "patients": len(rows)}
        if first["kind"] != "clean":
            row["auroc"] = auroc(clean["score"].to_numpy(), rows["score"].to_numpy())
            row["low"], row["high"] = auroc_interval(clean["score"].to_numpy(), rows["score"].to_numpy())
        if first["kind"] in ("attack", "adaptive") and first["noise"] in by_row:
            row["auroc_noise"] = auroc(by_row[first["noise"]]["score"].to_numpy(), rows["score"].to_numpy())
        for rate in shown:
            hits = int((rows["p"] <= rate * (1 + 1e-12)).sum()) if rate in possible else None
            row[f"alarms_{rate:.2g}"] = math.nan if hits is None else hits / len(rows)
            low, high = (math.nan, math.nan) if hits is None else share_interval(hits, len(rows))
            row |= {f"alarms_{rate:.2g}_low": low, f"alarms_{rate:.2g}_high": high}
        if "p_two_sided" in rows:
            row["alarms_two_sided"] = float((rows["p_two_sided"] <= two_sided_rate(n_calibration) * (1 + 1e-12)).mean())
        if first["kind"] in ("attack", "adaptive"):
            harmed = rows["dice"] <= HARMFUL * rows["dice_clean"]
            alarm = rows["p"] <= main * (1 + 1e-12)
            row["harmed"] = int(harmed.sum())
            row["noticed"] = float(alarm[harmed].mean()) if harmed.any() else math.nan
            row["missed"] = float((harmed & ~alarm).mean())
            row["risk"] = row["missed"] + PRICE * false_alarms
        row["dice"] = float(rows["dice"].mean())
        table.append(row)
    return pd.DataFrame(table)


def verdict(table: pd.DataFrame, n_calibration: int) -> str:
    """The worth of a detector, in words; Clopper and Pearson's interval decides, and few patients decide nothing.

    Attacks that do not know the detector, and those that do, are each judged by the one that most patients are harmed
    by unnoticed. A detector that raises more alarms at noise than was promised is called so.

    Args:
        table: of `alarm_table`.
    """
    kinds = dict(iter(table.groupby("kind")))
    if "attack" not in kinds or not (kinds["attack"]["harmed"] > 0).any():
        return "not decided: no attack that does not know it did harm"
    patients = int(table["patients"].min())
    unaware = _worst_missed(kinds["attack"])
    noise = _cries_at_noise(kinds.get("noise"), n_calibration)
    if unaware[0] > 0.5:
        return USELESS + noise
    if "adaptive" not in kinds:
        return f"non_adaptive: no attack that was tried knows it{noise}"
    aware = _worst_missed(kinds["adaptive"])
    if not _notices(kinds["attack"]):
        return f"not decided with {patients} patients{noise}"
    if aware[0] > unaware[1]:
        return UNAWARE_ONLY + noise
    return (HOLDS if max(unaware[1], aware[1]) < 0.5 else f"not decided with {patients} patients") + noise


def _notices(rows: pd.DataFrame) -> bool:
    """Whether more than half of the patients whom the worst attack harmed are noticed, by the interval."""
    worst = rows.iloc[int(rows["missed"].to_numpy().argmax())]
    harmed = int(worst["harmed"])
    hits = harmed - round(worst["missed"] * int(worst["patients"]))
    return harmed > 0 and share_interval(hits, harmed)[0] > 0.5


def _worst_missed(rows: pd.DataFrame) -> tuple[float, float]:
    """The interval of the largest share of patients who are harmed unnoticed."""
    worst = rows.loc[[rows["missed"].idxmax()]].iloc[0]
    n = int(worst["patients"])
    return share_interval(round(worst["missed"] * n), n)


def _cries_at_noise(rows: pd.DataFrame | None, n_calibration: int) -> str:
    main = main_rate(n_calibration)
    low = 0.0 if rows is None else float(rows[f"alarms_{main:.2g}_low"].max())
    return "; alarms at noise" if low > main else ""
