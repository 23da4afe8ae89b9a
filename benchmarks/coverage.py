"""Does a 95 % interval cover 95 %, and does a gate raise false alarms? Simulated patients; prints Markdown tables.

    python benchmarks/coverage.py --simulations 4000

Each simulated study has n patients with one to five scans each and three organs. Dice is drawn per scan and organ from
one of the cohorts below. The truth is the mean Dice of 200 000 patients. Beside each share stands the mean width of the
interval. A gate looks at the same patients before and after a change.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medseg_attack.stats.associations import correlation_interval
from medseg_attack.stats.intervals import LEVEL, change_interval, mean_interval, student_interval
from medseg_attack.stats.patients import TESTS_FROM, change, rank_stability, signed_rank

Array = NDArray[np.float64]
Interval: TypeAlias = tuple[float, float]
Method: TypeAlias = Callable[[Array, Array], Interval]
ORGANS = 3
MOST_SCANS = 5
LEAST = 93  # per cent that an interval of 95 % shall cover at least


class Drawn(Protocol):
    """A distribution of patients."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Sums of a score and numbers of scans, (patients, organs)."""
        ...

    def __hash__(self) -> int: ...


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
def truth(cohort: Drawn) -> float:
    """The mean score of very many patients."""
    return mean(*cohort.draw(200_000, np.random.default_rng(12345)))


def interval_of_tables(sums: Array, counts: Array) -> Interval:
    """The interval that tables print."""
    return mean_interval(sums, counts, (0.0, 1.0))


def influences(sums: Array, counts: Array) -> Array:
    """Each patient's linearised share in the mean, around it."""
    total = counts.sum(0)
    return np.asarray(((sums - sums.sum(0) / total * counts) * len(sums) / total).mean(1))


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
    "Student's t": student_interval,
    "percentile": percentile,
}


def coverage(cohort: Drawn, n: int, method: Method, simulations: int, seed: int = 0) -> tuple[float, float]:
    """Share of simulated studies whose interval holds the truth, and mean width within [0, 1]."""
    held, width = 0, 0.0
    for i in range(simulations):
        low, high = method(*cohort.draw(n, np.random.default_rng((seed, n, i))))
        held += low <= truth(cohort) <= high
        width += min(high, 1) - max(low, 0)
    return held / simulations, width / simulations


SHARE_METHODS: dict[str, Method] = {
    "Gaffke (tables)": interval_of_tables,
    "Student's t": student_interval,
    "percentile": percentile,
}


@dataclass(frozen=True)
class Lost:
    """The scans and organs of a cohort whose Dice is below 0.45, half of a clean Dice of 0.9: what `< half` counts."""

    cohort: Cohort

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Numbers of lost and of all, (patients, 1)."""
        sums, counts = self.cohort.draw(n, rng)
        # the share of a patient's scans that are lost goes with the patient's mean Dice
        lost = rng.binomial(counts.astype(int), np.clip(1.5 - 2 * sums / counts, 0, 1))
        return lost.sum(1, keepdims=True).astype(np.float64), counts.sum(1, keepdims=True)


@dataclass(frozen=True)
class Distances:
    """HD95 as a share of the grid's diagonal, which is the distance of an organ that is lost.

    Attributes:
        failing: the share of patients who lose all organs.
    """

    failing: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Sums of distances and numbers of scans, (patients, organs)."""
        near = np.exp(rng.normal(-4.5, 0.6, (n, 1)) + rng.normal(0, 0.4, (n, ORGANS)))
        distances = np.where(rng.random((n, 1)) < self.failing, 1.0, np.minimum(near, 1.0))
        return distances, np.ones_like(distances)


DISTANCES = {"all near": Distances(), "one patient in ten fails": Distances(0.1), "half of them fail": Distances(0.5)}


@dataclass(frozen=True)
class Change:
    """A change of a model and what becomes of its patients' Dice.

    Attributes:
        fall: the share of its Dice that a patient loses, on average.
        failing: the share of patients who lose all of it instead.
        recovering: the share of patients who rise to 0.95 instead.
        failed_before: the share of patients who had Dice 0, and have the Dice of the others now.
        by_size: the share of its Dice that the patient with most scans loses besides, with few scans next to nothing.
        old: mean logit of Dice before.
        redrawn: whether each patient's Dice is drawn anew, near zero or bimodal, instead.
    """

    fall: float = 0.0
    failing: float = 0.0
    recovering: float = 0.0
    failed_before: float = 0.0
    by_size: float = 0.0
    old: float = 1.7
    redrawn: Cohort | None = None

    def draw(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        """Cases of n patients, columns of `stats.patients.paired`: the drop, old minus new Dice."""
        if self.redrawn is not None:
            before, after = (sums.sum(1) / counts.sum(1) for sums, counts in (self.redrawn.draw(n, rng) for _ in "12"))
        else:
            before = logistic(rng.normal(self.old, 0.5, n))
            size = rng.integers(0, 5, n) / 4
            after = np.clip(before * (1 - self.by_size * size**2 - rng.normal(self.fall, 0.04, n)), 0, 1)
            draw = rng.random(n)
            after = np.where(draw < self.failing, 0.0, np.where(draw > 1 - self.recovering, 0.95, after))
            before = np.where(rng.random(n) < self.failed_before, 0.0, before)
        names = [f"p{i}" for i in range(n)]
        return pd.DataFrame(
            {"group": names, "unit": names, "cls": "organ", "difference": before - after, "old": before}
        )


CHANGES = {
    "nothing changes": Change(),
    "near zero, trained again": Change(redrawn=COHORTS["near zero"]),
    "bimodal, trained again": Change(redrawn=COHORTS["bimodal"]),
    "one in ten fails either way, trained again": Change(redrawn=COHORTS["one patient in ten fails"]),
    "all fall by 5 %": Change(0.05),
    "all fall by 20 %": Change(0.2),
    "large patients fall by 25 %": Change(by_size=0.25),
    "one in ten fails": Change(failing=0.1),
    "one in five fails": Change(failing=0.2),
    "half of them fail": Change(failing=0.5),
    "one in ten failed before": Change(failed_before=0.1),
    "all fall by 20 %, one in ten recovers": Change(0.2, recovering=0.1, old=0.0),
    "all fall by 5 %, one in ten recovers": Change(0.05, recovering=0.1),
}


def alarms(of: Change, n: int, simulations: int, *, beyond: float) -> tuple[float, float]:
    """Share of studies in which `drop>BEYOND@sig` fails, and in which the interval holds BEYOND."""
    fails, held = 0, 0
    for i in range(simulations):
        pairs = of.draw(n, np.random.default_rng((n, i)))
        rise = change(pairs.assign(difference=-pairs["difference"]), beyond=-beyond)
        fails += -rise.high > beyond and rise.p < 0.05
        held += rise.low <= -beyond <= rise.high
    return fails / simulations, held / simulations


CHANGE_METHODS: dict[str, Callable[[Array, Array, Array], Interval]] = {
    "change (tables)": lambda sums, old, counts: change_interval(sums, old, counts, (0.0, 1.0)),
    "Student's t": lambda sums, _, counts: student_interval(sums, counts),
    "Gaffke, of differences": lambda sums, _, counts: mean_interval(sums, counts, (-1.0, 1.0)),
}


def print_changes(patients: Sequence[int], simulations: int) -> None:
    """Coverage and width of intervals of the change; false alarms and misses of the gate."""
    below = []
    print("| change | mean drop | patients | " + " | ".join(CHANGE_METHODS) + " | false alarms | misses |")
    print("| --- | ---: | ---: |" + " ---: |" * (len(CHANGE_METHODS) + 2))
    for name, of in CHANGES.items():
        drop = float(of.draw(200_000, np.random.default_rng(12345))["difference"].mean())
        for n in patients:
            held, width = np.zeros((2, len(CHANGE_METHODS)))
            false, misses = 0, 0
            for i in range(simulations):
                pairs = of.draw(n, np.random.default_rng((n, i)))
                rise, old = -pairs[["difference"]].to_numpy(), pairs[["old"]].to_numpy()
                ends = [method(rise, old, np.ones_like(rise)) for method in CHANGE_METHODS.values()]
                held += [low <= -drop <= high for low, high in ends]
                width += [high - low for low, high in ends]
                least = -ends[0][1]
                false += least > drop and signed_rank(rise[:, 0] + drop) < 0.05
                misses += not (least > 0 and signed_rank(rise[:, 0]) < 0.05)
            shares = 100 * held / simulations
            if shares[0] < LEAST:
                below.append(f"{name}, {n} patients ({shares[0]:.1f} %)")
            cells = [f"{share:.1f} % ({w / simulations:.3f})" for share, w in zip(shares, width, strict=True)]
            cells.append(f"{100 * false / simulations:.1f} %" if n >= TESTS_FROM else "-")
            cells.append(f"{100 * misses / simulations:.0f} %" if n >= TESTS_FROM and drop > 0.01 else "-")
            print(f"| {name} | {drop:.3f} | {n} | " + " | ".join(cells) + " |", flush=True)
    print_below(below)


RANKED = {"best": Change(), "all fall by 5 %": CHANGES["all fall by 5 %"], "one in ten fails": Change(failing=0.1)}


def print_ranks(patients: Sequence[int], simulations: int) -> None:
    """Share of studies in which every model's true rank lies in its range, and mean width of a range in ranks."""
    many = {name: of.draw(200_000, np.random.default_rng(12345)) for name, of in RANKED.items()}
    levels = {name: float((pairs["old"] - pairs["difference"]).mean()) for name, pairs in many.items()}
    true = np.array([1 + sum(other > level for other in levels.values()) for level in levels.values()])
    below = []
    print("Models: " + "; ".join(f"{name}, mean Dice {level:.3f}" for name, level in levels.items()) + ".\n")
    print("| patients | range (tables) | ranks with 2.5 % of the weights |")
    print("| ---: | ---: | ---: |")
    for n in patients:
        held, width = np.zeros((2, 2))
        for i in range(simulations):
            drawn = {name: of.draw(n, np.random.default_rng((n, i))) for name, of in RANKED.items()}
            models = {name: pairs.assign(dice=pairs["old"] - pairs["difference"]) for name, pairs in drawn.items()}
            table = rank_stability(models, "dice", bounds=(0.0, 1.0))
            likely = table[[1, 2, 3]].to_numpy() >= (1 - LEVEL) / 2
            shares = 1 + likely.argmax(1), 3 - likely[:, ::-1].argmax(1)
            for k, (best, worst) in enumerate(((table["best"].to_numpy(), table["worst"].to_numpy()), shares)):
                held[k] += ((best <= true) & (true <= worst)).all()
                width[k] += (worst - best).mean()
        shown = [f"{100 * h / simulations:.1f} % ({w / simulations:.2f})" for h, w in zip(held, width, strict=True)]
        if 100 * held[0] / simulations < LEAST:
            below.append(f"{n} patients ({100 * held[0] / simulations:.1f} %)")
        print(f"| {n} | " + " | ".join(shown) + " |", flush=True)
    print_below(below)


@dataclass(frozen=True)
class Related:
    """A factor of patients and the Dice that they lose, both normal.

    Attributes:
        rho: their correlation.
        apart: the share of patients whose loss has nothing to do with the factor.
        reversed: the share of patients whose loss falls where that of the others rises.
        spread: how much the loss scatters more where the factor is large.
    """

    rho: float
    apart: float = 0.0
    reversed: float = 0.0
    spread: float = 0.0

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """The factor and the loss of n patients."""
        factor, other = rng.normal(size=(2, n))
        loss = self.rho * factor + np.sqrt(1 - self.rho**2) * other * np.exp(self.spread * factor)
        kind = rng.random(n)
        loss = np.where(kind < self.apart, rng.normal(size=n), loss)
        return factor, np.where(kind > 1 - self.reversed, -loss, loss)


RELATED = {
    "not related": Related(0.0),
    "weakly": Related(0.5),
    "closely": Related(0.9),
    "almost one order": Related(0.97),
    "one in ten apart": Related(0.95, apart=0.1),
    "one in ten reversed": Related(0.95, reversed=0.1),
    "weakly, uneven": Related(0.3, spread=1.0),
}


def bootstrap_correlation(x: Array, y: Array) -> Interval:
    """The plain bootstrap over patients of Spearman's correlation."""
    chosen = np.random.default_rng(0).integers(len(x), size=(500, len(x)))
    ranks = (stats.rankdata(values[chosen], axis=1) for values in (x, y))
    a, b = (each - each.mean(1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        rho = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    low, high = np.nanquantile(rho, [0.025, 0.975])
    return float(low), float(high)


def fisher(x: Array, y: Array) -> Interval:
    """Fisher's z with the error of Bonett and Wright (2000)."""
    rho = float(stats.spearmanr(x, y)[0])
    z, error = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12)), np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return float(np.tanh(z - 1.96 * error)), float(np.tanh(z + 1.96 * error))


CORRELATION_METHODS: dict[str, Method] = {
    "one not measured (tables)": correlation_interval,
    "bootstrap": bootstrap_correlation,
    "Fisher's z": fisher,
}


def print_correlations(patients: Sequence[int], simulations: int) -> None:
    """Coverage and width of intervals of rank correlations over patients."""
    below = []
    print("| factor and loss | rho | patients | " + " | ".join(CORRELATION_METHODS) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(CORRELATION_METHODS))
    for name, of in RELATED.items():
        rho = float(stats.spearmanr(*of.draw(200_000, np.random.default_rng(12345)))[0])
        for n in patients:
            held, width = np.zeros((2, len(CORRELATION_METHODS)))
            for i in range(simulations):
                ends = [method(*of.draw(n, np.random.default_rng((n, i)))) for method in CORRELATION_METHODS.values()]
                held += [low <= rho <= high for low, high in ends]
                width += [high - low for low, high in ends]
            shares = 100 * held / simulations
            if shares[0] < LEAST:
                below.append(f"{name}, {n} patients ({shares[0]:.1f} %)")
            cells = [f"{share:.1f} % ({w / simulations:.3f})" for share, w in zip(shares, width, strict=True)]
            print(f"| {name} | {rho:.3f} | {n} | " + " | ".join(cells) + " |", flush=True)
    print_below(below)


def print_intervals(
    head: str, cohorts: Mapping[str, Drawn], methods: Mapping[str, Method], patients: Sequence[int], simulations: int
) -> None:
    """Coverage and width of intervals of a mean."""
    below = []
    print(f"| {head} | mean | patients | " + " | ".join(methods) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(methods))
    for name, cohort in cohorts.items():
        for n in patients:
            result = [coverage(cohort, n, method, simulations) for method in methods.values()]
            shown = [f"{100 * share:.1f} % ({width:.3f})" for share, width in result]
            if 100 * result[0][0] < LEAST:
                below.append(f"{name}, {n} patients ({100 * result[0][0]:.1f} %)")
            print(f"| {name} | {truth(cohort):.3f} | {n} | " + " | ".join(shown) + " |", flush=True)
    print_below(below)


def print_below(cells: Sequence[str]) -> None:
    """The cells in which the interval of the tables holds the truth too rarely."""
    print(f"\nCells in which the first of these intervals holds less than {LEAST} %: {'; '.join(cells) or 'none'}.")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--patients", type=int, nargs="+", default=[4, 6, 10, 20, 50])
    options = parser.parse_args()
    tables: tuple[tuple[str, Mapping[str, Drawn], Mapping[str, Method]], ...] = (
        ("Dice", COHORTS, METHODS),
        ("share of lost organs", {name: Lost(cohort) for name, cohort in COHORTS.items()}, SHARE_METHODS),
        ("HD95 / diagonal", DISTANCES, SHARE_METHODS),
    )
    for head, cohorts, methods in tables:
        print(f"## {head}\n")
        print_intervals(head, cohorts, methods, options.patients, options.simulations)
        print()
    print("## Ranks\n")
    print_ranks(options.patients, options.simulations)
    print("\n## Rank correlation of a factor with the loss of Dice\n")
    print_correlations(options.patients, options.simulations)
    print("\n## Change and gate\n")
    print_changes(options.patients, options.simulations)


if __name__ == "__main__":
    main()
