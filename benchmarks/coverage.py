"""Does a 95 % interval cover 95 %, and does a gate raise false alarms? Simulated patients; prints Markdown tables.

    python benchmarks/coverage.py --simulations 4000

Each simulated study has n patients with one to five scans each and three organs. Dice is drawn per scan and organ from
one of the cohorts below. The truth is the mean Dice of 200 000 patients. Beside each share stands the mean width of the
interval. A gate looks at the same patients before and after a change.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medseg_attack.stats.patients import difference, mean_interval

Array = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]
Method: TypeAlias = Callable[[Array, Array], Interval]
ORGANS = 3
MOST_SCANS = 5


def logistic(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True)
class Cohort:
    """A distribution of Dice.

    Attributes:
        organs: mean logit of Dice, per organ.
        patient, patient_organ, scan: standard deviations of logits.
        missed: share of organs with Dice 0.
        failing: share of patients whose logits are lower by `fall`.
        fall: how far the logits of a failing patient lie below.
        size: how much the logit falls from a patient's smallest to greatest number of scans.
    """

    organs: tuple[float, ...] = (2.0,) * ORGANS
    patient: float = 0.3
    patient_organ: float = 0.3
    scan: float = 0.3
    missed: float = 0.0
    failing: float = 0.0
    fall: float = 5.0
    size: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Sums of Dice and numbers of scans, (patients, organs)."""
        scans = rng.integers(1, MOST_SCANS + 1, n)
        patient = np.repeat(np.arange(n), scans)
        shape = len(patient), ORGANS
        level = rng.normal(0, self.patient, (n, 1)) - self.fall * (rng.random((n, 1)) < self.failing)
        level = level - self.size * (scans[:, None] - 1) / (MOST_SCANS - 1)
        logits = np.array(self.organs) + level[patient] + rng.normal(0, self.patient_organ, (n, ORGANS))[patient]
        dice = np.where(rng.random(shape) < self.missed, 0, logistic(logits + rng.normal(0, self.scan, shape)))
        sums = np.stack([np.bincount(patient, organ, minlength=n) for organ in dice.T], axis=1).astype(np.float64)
        return sums, np.broadcast_to(scans[:, None], sums.shape).astype(np.float64)


COHORTS = {
    "clean, near 0.9": Cohort((2.6, 2.0, 2.9), 0.5, 0.4, 0.4),
    "attacked, all over": Cohort((0.2, -0.5, 1.0), 1.2, 0.6, 0.6, 0.08),
    "attacked, some organs lost": Cohort((2.5, 2.0, 3.0), 1.5, 0.5, 0.5, 0.15),
    "near zero": Cohort((-4.0, -3.5, -4.5), 1.5, 0.5, 0.5, 0.3),
    "bimodal": Cohort(failing=0.5),
    "one patient in five fails": Cohort(failing=0.2),
    "one patient in ten fails": Cohort(failing=0.1),
    "one patient in twenty fails": Cohort(failing=0.05),
    "large patients are harder": Cohort((1.5, 1.0, 2.0), 0.6, 0.4, 0.4, size=3.0),
}


def mean(sums: Array, counts: Array) -> float:
    """The mean over organs of the mean over scans."""
    return float((sums.sum(0) / counts.sum(0)).mean())


@cache
def truth(cohort: Cohort) -> float:
    """The mean Dice of very many patients."""
    return mean(*cohort.draw(200_000, np.random.default_rng(12345)))


def interval_of_tables(sums: Array, counts: Array) -> Interval:
    """The interval that tables print."""
    return mean_interval(sums, counts, (0.0, 1.0))


def influences(sums: Array, counts: Array) -> Array:
    """Each patient's linearised share in the mean, around it."""
    total = counts.sum(0)
    return np.asarray(((sums - sums.sum(0) / total * counts) * len(sums) / total).mean(1))


def student(sums: Array, counts: Array) -> Interval:
    """Student's t with the linearised standard error."""
    n = len(sums)
    half = stats.t.ppf(0.975, n - 1) * influences(sums, counts).std(ddof=1) / np.sqrt(n)
    return mean(sums, counts) - half, mean(sums, counts) + half


def bootstrap_t(sums: Array, counts: Array, draws: int = 500) -> Interval:
    """The studentised bootstrap over patients (Davison & Hinkley 1997, 5.2.1)."""
    n, estimate = len(sums), mean(sums, counts)
    error = influences(sums, counts).std(ddof=1) / np.sqrt(n)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    total, count = weights @ sums, weights @ counts
    scale = n / count / ORGANS
    influence = scale @ sums.T - (scale * total / count) @ counts.T
    errors = np.sqrt((weights * influence**2).sum(1) / (n * (n - 1)))
    shift = (total / count).mean(1) - estimate
    t = np.where(errors > 1e-12, shift / np.maximum(errors, 1e-12), np.copysign(np.inf, shift))
    low, high = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
    return estimate - float(high) * error, estimate - float(low) * error


def percentile(sums: Array, counts: Array, draws: int = 500) -> Interval:
    """The plain bootstrap over patients."""
    n = len(sums)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    low, high = np.quantile(((weights @ sums) / (weights @ counts)).mean(1), [0.025, 0.975])
    return float(low), float(high)


def pseudo_patients(sums: Array, counts: Array) -> Interval:
    """Student's t after two patients of weight 1/2 are added, with Dice 0 and 1."""
    usual = counts.mean(0)
    added = np.vstack([sums, np.zeros(ORGANS), usual]), np.vstack([counts, usual, usual])
    weights = np.array([1.0] * len(sums) + [0.5] * 2)
    n = weights.sum()
    values = (added[0] / added[1]).mean(1)
    middle = float((weights @ added[0] / (weights @ added[1])).mean())
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((weights * (values - middle) ** 2).sum() / (n * (n - 1)))
    return middle - half, middle + half


METHODS: dict[str, Method] = {
    "Gaffke (tables)": interval_of_tables,
    "bootstrap-t": bootstrap_t,
    "pseudo-patients": pseudo_patients,
    "Student's t": student,
    "percentile": percentile,
}


def coverage(cohort: Cohort, n: int, method: Method, simulations: int, seed: int = 0) -> tuple[float, float]:
    """Share of simulated studies whose interval holds the truth, and mean width within [0, 1]."""
    held, width = 0, 0.0
    for i in range(simulations):
        low, high = method(*cohort.draw(n, np.random.default_rng((seed, n, i))))
        held += low <= truth(cohort) <= high
        width += min(high, 1) - max(low, 0)
    return held / simulations, width / simulations


@dataclass(frozen=True)
class Change:
    """A change of a model and what becomes of its patients' Dice.

    Attributes:
        fall: the share of its Dice that a patient loses, on average.
        failing: the share of patients who lose all of it instead.
        recovering: the share of patients who rise to 0.95 instead.
        old: mean logit of Dice before.
        redrawn: whether each patient's Dice is drawn anew, near zero or bimodal, instead.
    """

    fall: float = 0.0
    failing: float = 0.0
    recovering: float = 0.0
    old: float = 1.7
    redrawn: Cohort | None = None

    def draw(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Cases of n patients, columns of `stats.patients.paired`: the drop, old minus new Dice."""
        if self.redrawn is not None:
            before, after = (sums.sum(1) / counts.sum(1) for sums, counts in (self.redrawn.draw(n, rng) for _ in "12"))
        else:
            before = logistic(rng.normal(self.old, 0.5, n))
            after = np.clip(before * (1 - rng.normal(self.fall, 0.04, n)), 0, 1)
            draw = rng.random(n)
            after = np.where(draw < self.failing, 0.0, np.where(draw > 1 - self.recovering, 0.95, after))
        names = [f"p{i}" for i in range(n)]
        return pd.DataFrame({"group": names, "unit": names, "cls": "organ", "difference": before - after})


CHANGES = {
    "nothing changes": Change(),
    "near zero, trained again": Change(redrawn=COHORTS["near zero"]),
    "bimodal, trained again": Change(redrawn=COHORTS["bimodal"]),
    "all fall by 5 %": Change(0.05),
    "all fall by 20 %": Change(0.2),
    "one in ten fails": Change(failing=0.1),
    "half of them fail": Change(failing=0.5),
    "all fall by 20 %, one in ten recovers": Change(0.2, recovering=0.1, old=0.0),
}


def alarms(change: Change, n: int, simulations: int, *, beyond: float) -> tuple[float, float]:
    """Share of studies in which `drop>BEYOND@sig` fails, and in which the interval holds BEYOND."""
    fails, held = 0, 0
    for i in range(simulations):
        result = difference(change.draw(n, np.random.default_rng((n, i))), beyond=beyond)
        fails += result.low > beyond and result.p < 0.05
        held += result.low <= beyond <= result.high
    return fails / simulations, held / simulations


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 6, 10, 20, 50])
    options = parser.parse_args()
    print("| Dice | patients | " + " | ".join(METHODS) + " |")
    print("| --- | ---: |" + " ---: |" * len(METHODS))
    for name, cohort in COHORTS.items():
        for n in options.patients:
            result = [coverage(cohort, n, method, options.simulations) for method in METHODS.values()]
            shown = [f"{100 * share:.1f} % ({width:.3f})" for share, width in result]
            print(f"| {name} | {n} | " + " | ".join(shown) + " |", flush=True)
    counts = [n for n in options.patients if n >= 6]
    print("\n| change | mean drop | " + " | ".join(f"{n} patients" for n in counts) + " |")
    print("| --- | ---: |" + " ---: |" * len(counts))
    for name, change in CHANGES.items():
        drop = float(change.draw(200_000, np.random.default_rng(12345))["difference"].mean())
        cells = []
        for n in counts:
            false, held = alarms(change, n, options.simulations, beyond=drop)
            missed = f"{100 * (1 - alarms(change, n, options.simulations, beyond=0.0)[0]):.0f} %"
            cells.append(f"{100 * held:.1f} % / {100 * false:.1f} % / {missed if drop > 0.01 else '-'}")
        print(f"| {name} | {drop:.3f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
