"""The runs of one model as the checks look at them.

Comparisons are paired: a difference between two attacks counts if it is more than 0.005 of Dice and more than twice
its standard error over the scored units.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from medseg_attack.checks.flags import Evidence
from medseg_attack.errors import listed
from medseg_attack.metrics.empty import Empty
from medseg_attack.registry import spec
from medseg_attack.registry.declared import Declaration, declarations
from medseg_attack.runs.rows import FAULTS, FIT, WITHOUT_SLOPE
from medseg_attack.runs.stored_specs import attack_spec, ball_spec, budget_of, core_of, norm_of, sizeless, unit_of
from medseg_attack.stats.scores import Unit, pooled, scored

SMALLEST_DIFFERENCE = 0.005  # of Dice
ALL_ATTACKS = "all attacks"  # what a finding is about that says what no attack of the runs did


@functools.cache
def _declared() -> Mapping[str, Declaration]:
    return {declaration.name: declaration for declaration in declarations("attack")}


def family(attack: str) -> str:
    """The family of a registered attack, the folder of its file; "" of one that is not registered here."""
    return _declared()[attack].family if attack in _declared() else ""


def is_transferred(attack: str) -> bool:
    """Whether an attack without gradients asks its model nothing: its images were made for another one."""
    access = _declared()[attack].facts.get("threat", "") if attack in _declared() else ""
    return family(attack) == "blackbox" and not access.startswith("queries")


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one model.

    Attributes:
        facts: a row per run. From its header: model, attack, loss, eps, role, ball, partial, val_dice, dims,
            `trained_on` (of the patients, how many the model was trained on). From its rows: `backwards` (mean of the
            passes), `excess` (the largest change beyond its case's budget; NaN for none), `patients` (how many),
            `mean_budget` and `realised` (the same in whole stored values; NaN where floats are stored), `below_level`
            (share of cases whose budget is less than one stored value), `aimed` (whether it has a goal, stops when it
            succeeds or moves a measurement), `without_gradient`, `without_answer`, `without_slope` (the cases on which
            it met that fault, in words), `untouched` (share of the cases with an organ to lose whose image it returned
            as it was). Parsed from its header: `spec` (the attack), `ball_spec`, `kind` (the ball less its size),
            `unit` (of its size: a key of `budgets.UNITS`), `name` (that of the attack within those that know a
            defence). `knowledge` says whether one does: "native", "adaptive", or "" where there is nothing to know.
        adv, clean: Dice, mean over organs; a row per unit, a column per run.
        cases: what `stats.scores.scored` gives.
        unit: what is scored.
    """

    facts: pd.DataFrame
    adv: pd.DataFrame
    clean: pd.DataFrame
    cases: pd.DataFrame
    unit: Unit

    @cached_property
    def gradient_runs(self) -> pd.DataFrame:
        """Attacks that spent gradients for the most harm; others have a goal, stop, or move a measurement."""
        climbs = (self.facts["backwards"] > 0) & ~self.facts["aimed"]
        return self.facts[climbs & (self.facts["role"] == "attack")]

    @cached_property
    def noise_runs(self) -> pd.DataFrame:
        """Controls whose change owes nothing to the model's gradient."""
        return self.facts[(self.facts["role"] == "control") & (self.facts["backwards"] == 0)]

    @cached_property
    def linf_runs(self) -> pd.DataFrame:
        """Runs whose budget bounds the change of each pixel."""
        return self.facts[self.facts["ball_spec"].map(norm_of) == "linf"]

    def dice_lost(self, run: str) -> float:
        """The mean Dice that a run takes from the clean predictions."""
        return float((self.clean[run] - self.adv[run]).mean())

    def dice_lost_beyond(self, first: str, second: str) -> float:
        """The mean Dice that the second run takes beyond the first; 0 if that is within the scatter of the units."""
        difference = (self.adv[first] - self.adv[second]).dropna()
        error = 2 * difference.std() / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        mean = float(difference.mean())
        return mean if mean > max(SMALLEST_DIFFERENCE, error) else 0.0

    def name(self, run: str) -> str:
        row = self.facts.loc[run]
        eps = budget_of(ball_spec(str(row["ball"]))) or spec(float(str(row["eps"])))
        return " ".join(filter(None, [str(row["attack"]), str(row["loss"]), f"eps {eps}"]))

    def evidence(self, run: str, numbers: str) -> Evidence:
        return Evidence(self.name(run), numbers, run)


def runs_of_model(rows: pd.DataFrame, unit: Unit, empty: Empty) -> Runs:
    """The runs of one model from their rows, as `runs.reading.read_runs` gives them."""
    cases = scored(pooled(rows, unit), empty)
    means = cases.groupby(["run", "unit"])[["dice_adv", "dice_clean"]].mean().reset_index()
    adv, clean = (means.pivot(index="unit", columns="run", values=f"dice_{when}") for when in ("adv", "clean"))
    budget = rows["budget"].fillna(rows["eps"]) if "budget" in rows else rows["eps"]  # NaN: the ball's own unit
    excess = rows["size"].where(rows["size"] > budget * (1 + 1e-6) + 1e-6)
    level = rows["level"] if "level" in rows else pd.Series(np.nan, index=rows.index)
    whole = np.floor(budget / level.where(level > 0) + 1e-6)  # how many stored values the budget holds
    numbers = (
        rows.assign(excess=excess, budget=budget, realised=whole * level, below_level=(whole == 0) & (budget > 0))
        .groupby("run", sort=False)
        .agg(
            backwards=("backwards", "mean"),
            excess=("excess", "max"),
            patients=("group", "nunique"),
            mean_budget=("budget", "mean"),
            realised=("realised", "mean"),
            below_level=("below_level", "mean"),
        )
    )
    heads = rows.drop_duplicates("run").set_index("run")
    named = ("model", "attack", "loss", "eps", "role", "knowledge", "ball", "partial", "trained_on", "val_dice", "dims")
    kept = [column for column in named if column in heads]
    facts = numbers.join(heads[kept])
    facts["loss"] = facts["loss"].fillna("")
    for fault in FAULTS:
        facts[fault] = facts.index.map(_cases_of_fault(rows, fault))
    facts["untouched"] = facts.index.map(_untouched(rows)).fillna(0.0)
    facts["aimed"] = rows.groupby("run")["success"].count() > 0 if "success" in rows else False
    facts["ball"] = facts["ball"] if "ball" in facts else "linf(" + facts["eps"].astype(str) + ")"
    facts["spec"] = facts["attack"].map(attack_spec)
    facts["name"] = facts["spec"].map(lambda attack: core_of(attack).name)
    facts["aimed"] = facts["aimed"] | (facts["name"].map(family) == "measurements")
    facts["knowledge"] = facts["knowledge"].fillna("") if "knowledge" in facts else ""
    facts["ball_spec"] = facts["ball"].map(ball_spec)
    facts["kind"] = facts["ball_spec"].map(lambda ball: str(sizeless(ball)))
    facts["unit"] = facts["ball_spec"].map(unit_of)
    facts["trained_on"] = facts["trained_on"].fillna(0) if "trained_on" in facts else 0
    return Runs(facts, adv, clean, cases, unit)


def _cases_of_fault(rows: pd.DataFrame, fault: str) -> dict[str, str]:
    """The cases of each run on which it met a fault, those of its fit among them; "" for none."""
    result = dict.fromkeys(rows["run"], "")
    in_fit = FIT.format(fault)
    if in_fit in rows:
        fits = rows.dropna(subset=[in_fit]).drop_duplicates("run").set_index("run")
        result |= {str(run): f"{cases} (in the fit)" for run, cases in fits[in_fit].items()}
    if fault in rows:
        faulty = rows[rows[fault] == 1]
        if fault == WITHOUT_SLOPE:  # where there is nothing to lose, an objective may have no slope
            faulty = faulty[faulty["case"].isin(faulty.loc[faulty["hit_clean"] > 0, "case"])]
        for run, cases in faulty.groupby("run")["case"]:
            result[str(run)] = ", ".join(filter(None, [listed(sorted(set(cases))), result[str(run)]]))
    return result


def _untouched(rows: pd.DataFrame) -> dict[str, float]:
    """The share of each run's cases whose image it returned as it was, among those with an organ to lose."""
    cases = rows[rows["hit_clean"] > 0].drop_duplicates(["run", "case"])
    return {str(run): float((of_run["size"] == 0).mean()) for run, of_run in cases.groupby("run")}
