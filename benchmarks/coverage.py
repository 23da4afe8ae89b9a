"""Does a 95 % interval cover 95 %? Simulated patients with skewed, clustered Dice; prints a Markdown table.

    python benchmarks/coverage.py --simulations 4000

Each simulated study has n patients with one to five scans each and three organs. Logits of Dice are the sum of an
organ's mean and of normal effects of the patient, of the patient's organ and of the scan, and some organs are missed
outright (Dice 0). The truth is the mean Dice of 200 000 patients. Beside each share, the mean width of the interval.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medseg_attack.stats.patients import bootstrap_t

Array = NDArray[np.float64]
Study: TypeAlias = tuple[Array, NDArray[np.int64]]
Interval: TypeAlias = tuple[float, float]
Method: TypeAlias = Callable[[Study, int], Interval]
MOST_SCANS = 5


@dataclass(frozen=True)
class Cohort:
    """A distribution of Dice.

    Attributes:
        organs: mean logit of Dice, per organ.
        patient, patient_organ, scan: standard deviations of logits.
        missed: share of organs with Dice 0.
    """

    organs: tuple[float, ...]
    patient: float
    patient_organ: float
    scan: float
    missed: float

    def draw(self, n: int, rng: np.random.Generator) -> Study:
        """Dice of every scan and organ, and whose scan it is."""
        patient = np.repeat(np.arange(n), rng.integers(1, MOST_SCANS + 1, n))
        shape = len(patient), len(self.organs)
        logit = np.array(self.organs) + rng.normal(0, self.patient, (n, 1))[patient]
        logit = logit + rng.normal(0, self.patient_organ, (n, shape[1]))[patient] + rng.normal(0, self.scan, shape)
        return np.where(rng.random(shape) < self.missed, 0, 1 / (1 + np.exp(-logit))), patient


COHORTS = {
    "clean, near 0.9": Cohort((2.6, 2.0, 2.9), 0.5, 0.4, 0.4, 0.0),
    "attacked, all over": Cohort((0.2, -0.5, 1.0), 1.2, 0.6, 0.6, 0.08),
    "attacked, some lost": Cohort((2.5, 2.0, 3.0), 1.5, 0.5, 0.5, 0.15),
}


def by_patient(study: Study) -> tuple[Array, Array]:
    """Sums of Dice and numbers of scans, (patients, organs)."""
    dice, patient = study
    sums = np.stack([np.bincount(patient, organ) for organ in dice.T], axis=1).astype(np.float64)
    return sums, np.broadcast_to(np.bincount(patient)[:, None], sums.shape).astype(np.float64)


def mean(sums: Array, counts: Array) -> float:
    """The mean over organs of the mean over scans."""
    return float((sums.sum(0) / counts.sum(0)).mean())


def interval_of_tables(study: Study, seed: int) -> Interval:
    """The interval that tables print, without its bounds."""
    return bootstrap_t(*by_patient(study), draws=500, seed=seed)


def student(study: Study, seed: int) -> Interval:
    """Student's t with the jackknife's standard error."""
    sums, counts = by_patient(study)
    n = len(sums)
    without = np.array([mean(np.delete(sums, i, 0), np.delete(counts, i, 0)) for i in range(n)])
    half = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    return mean(sums, counts) - half, mean(sums, counts) + half


def percentile(study: Study, seed: int) -> Interval:
    """The plain bootstrap over patients."""
    return _percentile(*by_patient(study), seed)


def over_scans(study: Study, seed: int) -> Interval:
    """The plain bootstrap over scans, as if they were independent."""
    return _percentile(study[0], np.ones_like(study[0]), seed)


def _percentile(sums: Array, counts: Array, seed: int, draws: int = 500) -> Interval:
    n = len(sums)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    low, high = np.quantile(((weights @ sums) / (weights @ counts)).mean(1), [0.025, 0.975])
    return float(low), float(high)


METHODS: dict[str, Method] = {
    "bootstrap-t": interval_of_tables,
    "Student's t": student,
    "percentile": percentile,
    "percentile over scans": over_scans,
}


def coverage(cohort: Cohort, n: int, method: Method, simulations: int, seed: int = 0) -> tuple[float, float]:
    """Share of simulated studies whose interval holds the truth, and mean width within [0, 1]."""
    truth = mean(*by_patient(cohort.draw(200_000, np.random.default_rng(12345))))
    held, width = 0, 0.0
    for i in range(simulations):
        low, high = method(cohort.draw(n, np.random.default_rng((seed, n, i))), i)
        held += low <= truth <= high
        width += min(high, 1) - max(low, 0)
    return held / simulations, width / simulations


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 6, 8, 10, 15, 20, 30, 50, 85])
    options = parser.parse_args()
    print("| Dice | patients | " + " | ".join(METHODS) + " |")
    print("| --- | ---: |" + " ---: |" * len(METHODS))
    for name, cohort in COHORTS.items():
        for n in options.patients:
            result = [coverage(cohort, n, method, options.simulations) for method in METHODS.values()]
            shown = [f"{100 * share:.1f} % ({width:.3f})" for share, width in result]
            print(f"| {name} | {n} | " + " | ".join(shown) + " |", flush=True)


if __name__ == "__main__":
    main()
