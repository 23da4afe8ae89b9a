"""After a run: do its rows contradict themselves? Table in, findings out. No torch in here.

Comparisons are paired: a difference between two attacks counts if it is more than 0.005 of Dice and more than twice
its standard error over the scored units.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from medseg_attack.checks.flags import Finding, by_severity
from medseg_attack.errors import plural
from medseg_attack.registry import spec
from medseg_attack.stats.scores import Empty, Unit, pooled, scored

LEAST = 0.005  # of Dice


FEW_PATIENTS = 6


FOREIGN = ("replay", "transfer")  # attacks whose images were made elsewhere


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one model.

    Attributes:
        facts: a row per run: attack, loss, eps, role, ball, backwards, size, partial ...
        adv, clean: Dice, mean over organs; a row per unit, a column per run.
        cases: what `stats.scored` gives.
    """

    facts: pd.DataFrame
    adv: pd.DataFrame
    clean: pd.DataFrame
    cases: pd.DataFrame

    @property
    def gradient_runs(self) -> pd.DataFrame:
        """Attacks that spent gradients for the most harm; one with a goal, or that stops when it succeeds, did not."""
        climbs = (self.facts["backwards"] > 0) & ~self.facts["aimed"]
        return self.facts[climbs & (self.facts["role"] == "attack")]

    @property
    def noise_runs(self) -> pd.DataFrame:
        """Controls whose change owes nothing to the model's gradient."""
        return self.facts[(self.facts["role"] == "control") & (self.facts["backwards"] == 0)]

    def harm(self, run: str) -> float:
        """The mean Dice that a run takes from the clean predictions."""
        return float((self.clean[run] - self.adv[run]).mean())

    def extra_harm(self, weak: str, strong: str) -> float:
        """The mean Dice that the second run takes beyond the first; 0 if that is within the scatter of the units."""
        difference = (self.adv[weak] - self.adv[strong]).dropna()
        error = 2 * difference.std() / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        mean = float(difference.mean())
        return mean if mean > max(LEAST, error) else 0.0

    def name(self, run: str) -> str:
        row = self.facts.loc[run]
        return " ".join(filter(None, [str(row["attack"]), str(row["loss"]), f"eps {spec(float(str(row['eps'])))}"]))

    def finding(self, code: str, run: str, seen: str) -> Finding:
        return Finding(code, self.name(run), seen, run)


def check_rows(rows: pd.DataFrame, *, unit: Unit = "volume", empty: Empty = "one") -> list[Finding]:
    """Findings on the rows of one or several runs (as `results.read_runs` gives them), model by model."""
    found: list[Finding] = []
    for _, of_model in rows.groupby("model", sort=False):
        runs = _runs(of_model, unit, empty)
        found += [finding for check in CHECKS for finding in check(runs)]
    return by_severity(found)


def _runs(rows: pd.DataFrame, unit: Unit, empty: Empty) -> Runs:
    cases = scored(pooled(rows, unit), empty)
    means = cases.groupby(["run", "unit"])[["dice_adv", "dice_clean"]].mean().reset_index()
    adv, clean = (means.pivot(index="unit", columns="run", values=f"dice_{when}") for when in ("adv", "clean"))
    numbers = rows.groupby("run", sort=False).agg(
        backwards=("backwards", "mean"), size=("size", "max"), patients=("group", "nunique")
    )
    heads = rows.drop_duplicates("run").set_index("run")
    wanted = [c for c in ("model", "attack", "loss", "eps", "role", "ball", "partial", "val_dice") if c in heads]
    facts = numbers.join(heads[wanted])
    facts["loss"] = facts["loss"].fillna("")
    facts["aimed"] = rows.groupby("run")["success"].count() > 0 if "success" in rows else False
    facts["ball"] = facts["ball"] if "ball" in facts else "linf(" + facts["eps"].astype(str) + ")"
    return Runs(facts, adv, clean, cases)


def noise_as_good(runs: Runs) -> Iterator[Finding]:
    """MA008 where noise of the same ball does 80 % of what the attack does; MA033 where it wins on some units."""
    for run, row in runs.gradient_runs.iterrows():
        for other in runs.noise_runs.index[runs.noise_runs["ball"] == row["ball"]]:
            noise, attack = runs.harm(other), runs.harm(str(run))
            won = runs.adv[other] < runs.adv[run] - 0.02
            if noise > 2 * LEAST and noise >= 0.8 * attack:
                yield runs.finding("MA008", str(run), f"noise takes {noise:.3f} of Dice, the attack {attack:.3f}")
            elif won.sum() >= 2 and won.mean() > 0.05:
                yield runs.finding("MA033", str(run), f"{int(won.sum())} of {len(won)} lose more to noise")


def beaten_without_gradients(runs: Runs) -> Iterator[Finding]:
    """MA011 and MA010: the best white-box run of a ball against runs that spent no gradient."""
    attacks = runs.facts[runs.facts["role"] == "attack"]
    for run, row in attacks[attacks["backwards"] == 0].iterrows():
        rivals = runs.gradient_runs.index[runs.gradient_runs["ball"] == row["ball"]]
        if str(row["attack"]).startswith("uap") or not len(rivals):
            continue
        best = str(runs.adv[list(rivals)].mean().idxmin())
        if gain := runs.extra_harm(best, str(run)):
            code = "MA011" if str(row["attack"]).startswith(FOREIGN) else "MA010"
            yield runs.finding(code, best, f"{runs.name(str(run))} reaches a Dice lower by {gain:.3f}")


def budgets_out_of_order(runs: Runs) -> Iterator[Finding]:
    """MA012: the same attack at the next larger budget does less."""
    kind = runs.facts["ball"].str.partition("(")[0]
    attacks = runs.facts[runs.facts["backwards"] > 0].assign(kind=kind)
    for _, line in attacks.groupby(["attack", "loss", "kind"], sort=False):
        order = line.sort_values("eps").index
        for small, large in pairwise(order):
            if gain := runs.extra_harm(large, small):
                yield runs.finding("MA012", large, f"{runs.name(small)} reaches a Dice lower by {gain:.3f}")


def floor_not_reached(runs: Runs) -> Iterator[Finding]:
    """MA009: an iterative attack that may turn every image grey leaves half the score."""
    able = runs.gradient_runs[(runs.gradient_runs["backwards"] > 1) & (runs.gradient_runs["eps"] >= 128 / 255)]
    for run in able.index[able["ball"].str.startswith("linf")]:
        left, clean = runs.adv[run].mean(), runs.clean[run].mean()
        if left > clean / 2:
            yield runs.finding("MA009", run, f"Dice {left:.3f} of {clean:.3f} is left")


def outside_budget(runs: Runs) -> Iterator[Finding]:
    """MA013."""
    for run, row in runs.facts.iterrows():
        if "%window" in row["ball"] or row["ball"].endswith(("HU)", "raw)", "sigma)")):
            continue  # another fraction for every case; the loop holds each to its own
        if row["size"] > row["eps"] * (1 + 1e-6) + 1e-6:
            yield runs.finding("MA013", str(run), f"a change of {row['size']:.4g}")


def single_beats_iterative(runs: Runs) -> Iterator[Finding]:
    """MA018: at one loss and budget."""
    single = runs.gradient_runs[runs.gradient_runs["backwards"] == 1]
    for run, row in runs.gradient_runs[runs.gradient_runs["backwards"] > 1].iterrows():
        for other in single.index[(single["ball"] == row["ball"]) & (single["loss"] == row["loss"])]:
            if gain := runs.extra_harm(str(run), other):
                yield runs.finding("MA018", str(run), f"{runs.name(other)} reaches a Dice lower by {gain:.3f}")


def steps_out_of_order(runs: Runs) -> Iterator[Finding]:
    """MA007 and MA006: attacks that differ in their steps alone."""
    stem = runs.facts["attack"].map(lambda label: re.sub(r"\bsteps=\d+,? ?", "", label))
    attacks = runs.facts.assign(stem=stem)[runs.facts["backwards"] > 1]
    for _, line in attacks.groupby(["stem", "loss", "ball"], sort=False):
        order = line.sort_values("backwards").index
        if len(order) < 2:
            continue
        fewer, most = order[-2], order[-1]
        if runs.extra_harm(fewer, most) > 0.01:
            yield runs.finding("MA007", most, f"its last steps took another {runs.extra_harm(fewer, most):.3f} of Dice")
        elif gain := runs.extra_harm(most, fewer):
            yield runs.finding("MA006", most, f"{runs.name(fewer)} reaches a Dice lower by {gain:.3f}")


def improves(runs: Runs) -> Iterator[Finding]:
    """MA024, for attacks that know the gradient."""
    for run in runs.gradient_runs.index:
        rise = (runs.adv[run] - runs.clean[run]).dropna()
        error = 2 * rise.std() / np.sqrt(len(rise)) if len(rise) > 1 else 0.0
        if rise.mean() > max(LEAST, error):
            yield runs.finding("MA024", run, f"Dice rises by {rise.mean():.3f}")


def clean_score(runs: Runs) -> Iterator[Finding]:
    """MA014: below 0.3, or 0.15 below what the checkpoint's card says of its validation cases."""
    clean = float(runs.clean.iloc[:, 0].mean())
    said = pd.to_numeric(runs.facts["val_dice"]).iloc[0] if "val_dice" in runs.facts else float("nan")
    if clean < 0.3:
        yield Finding("MA014", "clean images", f"Dice {clean:.3f} before any attack")
    elif said - clean > 0.15:
        yield Finding("MA014", "clean images", f"Dice {clean:.3f}, the checkpoint's card says {said:.3f}")


def answers_differ(runs: Runs) -> Iterator[Finding]:
    """MA003 from rows: the clean prediction must be the same in every run."""
    apart = (runs.clean.max(axis=1) - runs.clean.min(axis=1)).max()
    if apart > 0.01:  # another GPU moves a few pixels
        yield Finding("MA003", "clean images", f"clean Dice of one case differs by {apart:.3f} between runs")


def single_step_only(runs: Runs) -> Iterator[Finding]:
    """MA027."""
    if len(runs.gradient_runs) and not (runs.gradient_runs["backwards"] > 1).any():
        yield Finding("MA027", "all attacks", "1 gradient per case")


def nothing_moved(runs: Runs) -> Iterator[Finding]:
    """MA028."""
    drops = [runs.harm(run) for run in runs.gradient_runs.index]
    if drops and max(drops) < 0.01:
        yield Finding("MA028", "all attacks", f"the largest drop is {max(drops):.3f}")


def patients(runs: Runs) -> Iterator[Finding]:
    """MA029."""
    n = int(runs.facts["patients"].min())
    if n < FEW_PATIENTS:
        yield Finding("MA029", "all runs", plural(n, "patient"))


def empty_masks(runs: Runs) -> Iterator[Finding]:
    """MA030."""
    share = runs.cases.groupby("run")["touched"].mean().max()
    if share > 0.25:
        yield Finding("MA030", "all runs", f"it decides {share:.0%} of a run's scores")


def partial(runs: Runs) -> Iterator[Finding]:
    """MA031."""
    if runs.facts["partial"].any():
        yield Finding("MA031", "all runs", "--limit left cases out")


def small_organs(runs: Runs) -> Iterator[Finding]:
    """MA032 on the run that does most harm while large organs still score: thirds by size, 6 entries each at least."""
    present = runs.cases[runs.cases["n_target"] > 0]
    for run, cases in present[present["run"].isin(runs.gradient_runs.index)].groupby("run", sort=False):
        thirds = np.array_split(cases.sort_values("n_target")["dice_adv"].to_numpy(), 3)
        small, large = thirds[0], thirds[2]
        if len(small) >= 6 and large.mean() > 0.3 and small.mean() < large.mean() / 2:
            yield runs.finding(
                "MA032", str(run), f"Dice {small.mean():.2f} (smallest third), {large.mean():.2f} (largest)"
            )


CHECKS: tuple[Callable[[Runs], Iterator[Finding]], ...] = (
    noise_as_good,
    beaten_without_gradients,
    budgets_out_of_order,
    floor_not_reached,
    outside_budget,
    single_beats_iterative,
    steps_out_of_order,
    improves,
    clean_score,
    answers_differ,
    single_step_only,
    nothing_moved,
    patients,
    empty_masks,
    partial,
    small_organs,
)
