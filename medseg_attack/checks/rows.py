"""Checks after a run: do its rows contradict themselves? Table in, findings out. No torch in here.

Comparisons are paired: a difference between two attacks counts if it is more than 0.005 of Dice and more than twice
its standard error over the scored units.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from medseg_attack.checks.flags import Check, Evidence, Finding, by_severity, checks_in, invalid, note, upper_bound
from medseg_attack.errors import listed, plural
from medseg_attack.metrics.empty import Empty
from medseg_attack.registry import spec
from medseg_attack.runs.rows import FAULTS, FIT, WITHOUT_ANSWER, WITHOUT_GRADIENT, WITHOUT_SLOPE
from medseg_attack.runs.stored_specs import attack_spec, ball_spec, core_of, norm_of, sizeless, unit_of
from medseg_attack.stats.patients import TESTS_FROM
from medseg_attack.stats.scores import Unit, pooled, scored

SMALLEST_DIFFERENCE = 0.005  # of Dice
MANY_STEPS, LATE_GAIN = 40, 0.05  # from so many steps on, so much of Dice must be gained by more of them to count
KNOWLEDGE_MARGIN = 0.02  # of Dice: what knowing a defence must gain to count
IMPLAUSIBLE = 0.3  # clean Dice below which there is little to attack
GREYING = ("linf", "within(ball=linf)")  # balls that can make all organs the same grey; other regions leave some out
FOREIGN = ("replay", "transfer")  # attacks whose images were made elsewhere
MEASURED = ("volume_bias",)  # they move a number that is read off a mask, and Dice as it happens
UNIVERSAL = (  # one change, or one network, for all: gradients, if any, were of others
    "advgan",
    "fsra",
    "gd_uap",
    "trigger",
    "uap",
    "uap_gaussian",
    "uap_metzen",
    "uap_metzen_dynamic",
    "universal_volume",
)


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one model.

    Attributes:
        facts: a row per run. From its header: model, attack, loss, eps, role, ball, partial, val_dice. From its rows:
            `backwards` (mean of the passes), `excess` (the largest change beyond its case's budget; NaN for none),
            `patients` (how many), `mean_budget` and `realised` (the same in whole stored values; NaN where floats are
            stored), `below_level` (share of cases whose budget is less than one stored value), `aimed` (whether it
            has a goal, stops when it succeeds or moves a measurement), `without_gradient`, `without_answer`,
            `without_slope` (the cases on which it met that fault, in words), `untouched` (share of the cases with an
            organ to lose whose image it returned as it was). Parsed from its header: `spec` (the attack), `name` (the
            attack's name), `ball_spec`, `kind` (the ball less its size), `unit` (of its size: a key of
            `budgets.UNITS`). `name` is that of the
            attack within those that know a defence; `knowledge` says whether one does: "native", "adaptive", or ""
            where there is nothing to know.
        adv, clean: Dice, mean over organs; a row per unit, a column per run.
        cases: what `stats.scores.scored` gives.
    """

    facts: pd.DataFrame
    adv: pd.DataFrame
    clean: pd.DataFrame
    cases: pd.DataFrame

    @property
    def gradient_runs(self) -> pd.DataFrame:
        """Attacks that spent gradients for the most harm; others have a goal, stop, or move a measurement."""
        climbs = (self.facts["backwards"] > 0) & ~self.facts["aimed"]
        return self.facts[climbs & (self.facts["role"] == "attack")]

    @property
    def noise_runs(self) -> pd.DataFrame:
        """Controls whose change owes nothing to the model's gradient."""
        return self.facts[(self.facts["role"] == "control") & (self.facts["backwards"] == 0)]

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
        return " ".join(filter(None, [str(row["attack"]), str(row["loss"]), f"eps {spec(float(str(row['eps'])))}"]))

    def evidence(self, run: str, numbers: str) -> Evidence:
        return Evidence(self.name(run), numbers, run)


def check_rows(
    rows: pd.DataFrame, *, unit: Unit = "volume", empty: Empty = "one", checks: Sequence[Check[[Runs]]] = ()
) -> list[Finding]:
    """Findings on the rows of one or several runs (as `runs.reading.read_runs` gives them), model by model.

    Args:
        checks: those that are asked; (): all of this file.
    """
    models = [_runs(of_model, unit, empty) for _, of_model in rows.groupby("model", sort=False)]
    return by_severity(finding for runs in models for check in checks or CHECKS for finding in check(runs))


def _runs(rows: pd.DataFrame, unit: Unit, empty: Empty) -> Runs:
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
    named = ("model", "attack", "loss", "eps", "role", "knowledge", "ball", "partial", "val_dice")
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
    facts["aimed"] = facts["aimed"] | facts["name"].isin(MEASURED)
    facts["knowledge"] = facts["knowledge"].fillna("") if "knowledge" in facts else ""
    facts["ball_spec"] = facts["ball"].map(ball_spec)
    facts["kind"] = facts["ball_spec"].map(lambda ball: str(sizeless(ball)))
    facts["unit"] = facts["ball_spec"].map(unit_of)
    return Runs(facts, adv, clean, cases)


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


@upper_bound(
    "MA001",
    "input gradient is exactly 0 in organs",
    "make the step that blocks it differentiable (straight-through), or use an attack without gradients",
    needs="a gradient",
)
def check_slope_on_every_case(runs: Runs) -> Iterator[Evidence]:
    """MA001: every gradient that an attack of the run asked for is exactly 0 on a case with an organ to lose.

    A step with no slope (rounding, thresholding, clipping) lies between image and output. An attack that follows
    gradients stands still there, and the model looks robust. A median filter raises it innocently, since it passes
    the gradient to one pixel of each window.

    What to do: Replace the backward pass of that step by the identity or a smooth stand-in and attack again; compare
    with an attack without gradients. If MA019 is raised as well, attack with `--loss margin` first.
    """
    for run, cases in runs.gradient_runs[WITHOUT_SLOPE].items():
        if cases:
            yield runs.evidence(str(run), f"every gradient was 0 on {cases}")


@upper_bound(
    "MA003",
    "the same image gets different answers",
    "switch the randomness off, or average gradients and scores over it",
)
def check_same_clean_dice(runs: Runs) -> Iterator[Evidence]:
    """MA003: the clean Dice of a case differs by more than 0.01 between runs.

    The model is randomised (dropout that is left on, noise, random resizing). One pass per step gives a gradient of a
    model that will not be asked again.

    What to do: Switch the randomness off, or average the gradients of several passes and report the mean score over
    fresh ones.
    """
    difference = (runs.clean.max(axis=1) - runs.clean.min(axis=1)).max()
    if difference > 0.01:  # another GPU moves a few pixels
        yield Evidence("clean images", f"clean Dice of one case differs by {difference:.3f} between runs")


@upper_bound(
    "MA006",
    "the attack does not climb, or returns a worse image than it saw",
    "check the objective's sign, lower step_size, or set keep_worst=True",
)
def check_order_of_steps(runs: Runs) -> Iterator[Evidence]:
    """MA006: in the table, the same attack does less with more steps.

    The sign is wrong, the step is too long, or the last instead of the worst image is returned.

    What to do: Check the sign of the objective, lower `step_size`, set `keep_worst=True`.
    """
    for fewer, most in _pairs_by_steps(runs):
        if extra := runs.dice_lost_beyond(most, fewer):
            yield runs.evidence(most, f"{runs.name(fewer)} reaches a Dice lower by {extra:.3f}")


@upper_bound("MA007", "more steps would do more", "raise steps until the numbers stand still")
def check_too_few_steps(runs: Runs) -> Iterator[Evidence]:
    """MA007: in the table, the next larger number of steps lowers Dice by more than 0.01, or by more than 0.05 from 40
    steps on.

    The attack was stopped before it arrived. After 40 steps an attack still gains a little, whatever the model.

    What to do: Raise `steps` until the numbers stand still, and report that value.
    """
    for fewer, most in _pairs_by_steps(runs):
        margin = LATE_GAIN if runs.facts["backwards"][fewer] >= MANY_STEPS else 2 * SMALLEST_DIFFERENCE
        if (extra := runs.dice_lost_beyond(fewer, most)) > margin:
            yield runs.evidence(most, f"its last steps took another {extra:.3f} of Dice")


@upper_bound(
    "MA008",
    "noise of the same size did nearly as well as the attack",
    "distrust the attack: look for masked gradients, change objective or step size",
)
def check_noise_as_good(runs: Runs) -> Iterator[Evidence]:
    """MA008: noise of the same budget takes more than 0.01 of Dice and at least 80 % of what the attack takes.

    An attack that knows the model must do better than chance. If it does not, it is broken or its gradients are
    masked.

    What to do: Look for MA001 and MA021; try another objective, a smaller step, or an attack without gradients.
    """
    for run, noise, as_good in _noise_in_the_same_ball(runs):
        if as_good:
            numbers = f"noise takes {runs.dice_lost(noise):.3f} of Dice, the attack {runs.dice_lost(run):.3f}"
            yield runs.evidence(run, numbers)


@upper_bound(
    "MA009",
    "a budget without limit does not break the model",
    "distrust the attack: at eps 128/255 every image can be made the same grey",
)
def check_unlimited_budget(runs: Runs) -> Iterator[Evidence]:
    """MA009: an iterative attack of the run leaves more than half of the clean Dice at 128/255 or more.

    At 128/255 every image can be turned into the same grey one, on which no model can be right. Whoever does not
    reach the floor there has an attack that does not work.

    What to do: Do not report smaller budgets before this one breaks the model.
    """
    able = runs.gradient_runs[(runs.gradient_runs["backwards"] > 1) & (runs.gradient_runs["eps"] >= 128 / 255)]
    for run in able.index[able["kind"].isin(GREYING)]:
        left, clean = runs.adv[run].mean(), runs.clean[run].mean()
        if left > clean / 2:
            yield runs.evidence(run, f"Dice {left:.3f} of {clean:.3f} is left")


@upper_bound(
    "MA010",
    "a search without gradients beats the attack",
    "report the gradient-free attack, too, and look for masked gradients",
)
def check_gradient_free_attacks(runs: Runs) -> Iterator[Evidence]:
    """MA010: a gradient-free attack of the run reaches a lower Dice than the attack by gradients, by more than the
    scatter of the cases.

    An attack that sees the model should beat one that does not. The gradients mislead it.

    What to do: Report the gradient-free number as well, and find out what masks the gradients.
    """
    yield from _beaten_without_gradients(runs, foreign=False)


@upper_bound(
    "MA011",
    "images from elsewhere beat the white-box attack",
    "report the transferred images, too, and look for masked gradients",
)
def check_foreign_images(runs: Runs) -> Iterator[Evidence]:
    """MA011: replayed or transferred images reach a lower Dice than the best attack by gradients at the same budget.

    Images that were made for another model should not be worse for this one than images made for it.

    What to do: Report the transferred number as well, and find out what masks the gradients.
    """
    yield from _beaten_without_gradients(runs, foreign=True)


@upper_bound(
    "MA012", "a larger budget does less", "raise steps, or take a smaller step_size; keep the worst over budgets"
)
def check_order_of_budgets(runs: Runs) -> Iterator[Evidence]:
    """MA012: the same attack at the next larger budget leaves a higher Dice.

    The larger ball holds the smaller one, so its worst case is at least as bad: the attack did not find it. Single
    steps often overshoot.

    What to do: Raise `steps`, lower `step_size`; carry the worst image over from budget to budget.
    """
    attacks = runs.facts[runs.facts["backwards"] > 0]
    for _, line in attacks.groupby(["spec", "loss", "kind", "unit"], sort=False):
        for small, large in pairwise(line.sort_values("eps").index):
            if extra := runs.dice_lost_beyond(large, small):
                yield runs.evidence(large, f"{runs.name(small)} reaches a Dice lower by {extra:.3f}")


@invalid(
    "MA013",
    "an image moved further than the stated budget",
    "state the budget that was used: a blended step moves pixels by up to 2 eps",
)
def check_changes_within_budget(runs: Runs) -> Iterator[Evidence]:
    """MA013: a stored change is larger than the eps of its run.

    The number belongs to another budget than the one beside it. A blended step, (1 - eps) x + eps sign(g), moves
    pixels by up to 2 eps.

    What to do: State the budget that was used, or add the step instead of blending it.
    """
    for run, size in runs.facts["excess"].dropna().items():
        yield runs.evidence(str(run), f"a change of {size:.4g}")


@invalid("MA014", "clean Dice is implausible", "check preprocessing, channel order and weights before attacking")
def check_clean_dice(runs: Runs) -> Iterator[Evidence]:
    """MA014: the mean clean Dice is below 0.3, or 0.15 below the validation Dice on the checkpoint's card.

    There is little to attack, or the model is not fed as it was trained.

    What to do: Check window, orientation, channel order and weights; run `medattack evaluate`.
    """
    clean = float(runs.clean.iloc[:, 0].mean())
    validation = pd.to_numeric(runs.facts["val_dice"]).iloc[0] if "val_dice" in runs.facts else float("nan")
    if clean < IMPLAUSIBLE:
        yield Evidence("clean images", f"Dice {clean:.3f} before any attack")
    elif validation - clean > 0.15:
        yield Evidence("clean images", f"Dice {clean:.3f}, the checkpoint's card says {validation:.3f}")


@invalid(
    "MA015",
    "the budget is below one stored grey level",
    "raise eps to one level at least: what is smaller cannot be stored",
)
def check_stored_level(runs: Runs) -> Iterator[Evidence]:
    """MA015: in the rows, the budget of a case is less than one stored value of its file, which holds integers.

    A change that is smaller than one stored level is gone once the image is stored.

    What to do: Raise eps to one level at least.
    """
    for ball, of_ball in _linf_runs(runs).groupby("ball", sort=False):
        if (share := of_ball["below_level"].max()) > 0:
            yield Evidence(str(ball), f"it changes nothing on {share:.0%} of the cases")


@upper_bound(
    "MA018", "one step does more than many", "give the iterative attack more steps, a smaller step_size or restarts"
)
def check_single_step_better(runs: Runs) -> Iterator[Evidence]:
    """MA018: an attack of one step reaches a lower Dice than one of many steps with the same loss and budget.

    Many small steps contain the one large step. They went wrong: a step that is too long or too short, or a rugged
    loss.

    What to do: Tune `step_size`, add steps or restarts.
    """
    single = runs.gradient_runs[runs.gradient_runs["backwards"] == 1]
    for run, row in runs.gradient_runs[runs.gradient_runs["backwards"] > 1].iterrows():
        for other in single.index[(single["ball"] == row["ball"]) & (single["loss"] == row["loss"])]:
            if extra := runs.dice_lost_beyond(str(run), other):
                yield runs.evidence(str(run), f"{runs.name(other)} reaches a Dice lower by {extra:.3f}")


@invalid(
    "MA022", "the output or its gradient is not finite", "find the operation that overflows: log, sqrt or division at 0"
)
def check_lost_gradients(runs: Runs) -> Iterator[Evidence]:
    """MA022: an output or a gradient that an attack of the run asked for is NaN or infinite on a case.

    An operation overflows, often in its backward pass alone, such as a square root or a logarithm at 0. The attack
    got 0 in the place of such a gradient, so the case looks robust; an answer of NaN is scored as if no organ were
    there. A model whose output is not finite on an untouched image cannot be scored, and `medattack attack` stops at
    it.

    What to do: Find it with `torch.autograd.detect_anomaly()` and keep its argument away from 0.
    """
    for fault, numbers in ((WITHOUT_GRADIENT, "gradient by the image"), (WITHOUT_ANSWER, "output")):
        for run, cases in runs.facts[fault].items():
            if cases:
                yield runs.evidence(str(run), f"NaN or infinity in the {numbers} on {cases}")


@invalid(
    "MA024", "the attack improves the segmentation", "check the sign of the objective and the order of its arguments"
)
def check_improvement(runs: Runs) -> Iterator[Evidence]:
    """MA024: Dice is higher under an attack by gradients than on clean images.

    The attack descends: a wrong sign, or arguments in the wrong order.

    What to do: Check objective and attack; run `medattack selftest`.
    """
    for run in runs.gradient_runs.index:
        rise = (runs.adv[run] - runs.clean[run]).dropna()
        error = 2 * rise.std() / np.sqrt(len(rise)) if len(rise) > 1 else 0.0
        if rise.mean() > max(SMALLEST_DIFFERENCE, error):
            yield runs.evidence(run, f"Dice rises by {rise.mean():.3f}")


@upper_bound("MA027", "only single-step attacks were run", "add --attack 'pgd(steps=40)' before speaking of robustness")
def check_single_steps_alone(runs: Runs) -> Iterator[Evidence]:
    """MA027: all attacks by gradients of the run took one step.

    One step is far from the worst case; models trained against it are the best example.

    What to do: Add `--attack 'pgd(steps=40)'`.
    """
    if len(runs.gradient_runs) and not (runs.gradient_runs["backwards"] > 1).any():
        yield Evidence("all attacks", "1 gradient per case")


@note(
    "MA028",
    "no attack by gradients moved the score",
    "raise eps until something breaks: a flat line alone proves nothing",
)
def check_nothing_moved(runs: Runs) -> Iterator[Evidence]:
    """MA028: no attack by gradients lowered the mean Dice by 0.01.

    Either the budgets are too small to say anything, or no attack worked.

    What to do: Raise eps until the curve falls.
    """
    largest = max(map(runs.dice_lost, runs.gradient_runs.index), default=np.inf)
    if largest < 0.01:
        yield Evidence("all attacks", f"the largest drop is {largest:.3f}")


@note("MA029", "too few patients", f"do not generalise: intervals from fewer than {TESTS_FROM} patients are hints")
def check_few_patients(runs: Runs) -> Iterator[Evidence]:
    """MA029: the run has fewer than 6 patients.

    Slices of a patient are alike: patients, not slices, are what an interval is made of.

    What to do: Treat intervals as hints; add patients.
    """
    n = int(runs.facts["patients"].min())
    if n < TESTS_FROM:
        yield Evidence("all runs", plural(n, "patient"))


@note(
    "MA030",
    "the rule for empty masks decides many scores",
    "compare --empty one with --empty nan, or score volumes instead of slices",
)
def check_empty_masks(runs: Runs) -> Iterator[Evidence]:
    """MA030: the rule for empty masks decides more than a quarter of a run's scores.

    Dice of an organ that neither mask has is a convention. Here the convention is a large part of the mean.

    What to do: Show both `--empty one` and `--empty nan`, or score volumes.
    """
    share = runs.cases.groupby("run")["touched"].mean().max()
    if share > 0.25:
        yield Evidence("all runs", f"it decides {share:.0%} of a run's scores")


@note("MA031", "part of the cases was left out", "run without --limit before reporting")
def check_partial_runs(runs: Runs) -> Iterator[Evidence]:
    """MA031: `--limit` left cases out.

    A part of the cases is good for trying things out.

    What to do: Run all of them before reporting.
    """
    if runs.facts["partial"].any():
        yield Evidence("all runs", "--limit left cases out")


@note("MA032", "small organs fare much worse than large ones", "report by size: the mean hides it")
def check_small_organs(runs: Runs) -> Iterator[Evidence]:
    """MA032: under attack the smallest third of the organs scores less than half of the largest third, which still
    scores more than 0.3.

    A mean over sizes hides that small structures are lost first.

    What to do: Report by size.
    """
    present = runs.cases[runs.cases["n_target"] > 0]
    for run, cases in present[present["run"].isin(runs.gradient_runs.index)].groupby("run", sort=False):
        thirds = np.array_split(cases.sort_values("n_target")["dice_adv"].to_numpy(), 3)
        small, large = thirds[0], thirds[2]
        if len(small) >= 6 and large.mean() > 0.3 and small.mean() < large.mean() / 2:
            numbers = f"Dice {small.mean():.2f} (smallest third), {large.mean():.2f} (largest)"
            yield runs.evidence(str(run), numbers)


@upper_bound("MA033", "noise beats the attack on some cases", "take the worse of the two per case, or add restarts")
def check_noise_better_on_some_cases(runs: Runs) -> Iterator[Evidence]:
    """MA033: on at least 2 cases and more than 5 % of them noise of the same budget is worse for the model by 0.02 of
    Dice.

    The attack got stuck on these cases.

    What to do: Add restarts, or take the worse of the two per case.
    """
    for run, noise, as_good in _noise_in_the_same_ball(runs):
        worse = runs.adv[noise] < runs.adv[run] - 0.02
        if not as_good and worse.sum() >= 2 and worse.mean() > 0.05:
            yield runs.evidence(run, f"{int(worse.sum())} of {len(worse)} lose more to noise")


@note(
    "MA035",
    "the budget is rounded down to whole stored values",
    "report the realised eps, or give eps in stored values, such as 2raw",
)
def check_realised_budget(runs: Runs) -> Iterator[Evidence]:
    """MA035: where files hold integers, the whole stored values in a budget per pixel are less than 95 % of it.

    A pixel of such a file moves by whole stored values only. The attack had the realised eps, not the one that was
    asked for.

    What to do: Report the realised eps, or give eps in stored values, such as `2raw`.
    """
    for ball, of_ball in _linf_runs(runs).groupby("ball", sort=False):
        budget, realised = of_ball["mean_budget"].max(), of_ball["realised"].max()
        if 0 < realised < 0.95 * budget:
            yield Evidence(str(ball), f"of {budget:.4f} of the window {realised:.4f} is realised, mean over cases")


@note(
    "MA037",
    "the attack returned images as they were",
    "raise eps; if other cases fall at this eps, look at these with an attack without gradients",
)
def check_untouched_images(runs: Runs) -> Iterator[Evidence]:
    """MA037: an attack by gradients with a budget returns more than 5 % of the images with an organ to lose as they
    were.

    It met no image that is worse for the model. That is so at a very small budget, and where the model hides from
    gradients on some cases only.

    What to do: Raise eps. If other cases fall at this eps, look at these with an attack without gradients.
    """
    able = runs.gradient_runs[runs.gradient_runs["eps"] > 0]
    for run, share in able.loc[able["untouched"] > 0.05, "untouched"].items():
        yield runs.evidence(str(run), f"{share:.0%} of the images are unchanged")


@upper_bound(
    "MA038",
    "an attack that knows the defence does more",
    "report the adaptive number: the native one says what the attack did not know",
)
def check_knowledge(runs: Runs) -> Iterator[Evidence]:
    """MA038: an attack that knows the model's defence reaches a Dice that is lower by 0.02, and by more than the
    scatter of the cases, than every attack by gradients that does not know it, in the same ball.

    The defence hides its gradient or draws at random. An attack that follows the gradient as it is then measures what
    it does not know, not what the model withstands.

    What to do: Report the adaptive number; leave `--native` out.
    """
    attacks = runs.facts[runs.facts["role"] == "attack"]
    for ball, natives in attacks[attacks["knowledge"] == "native"].groupby("ball", sort=False):
        adaptives = attacks.index[(attacks["knowledge"] == "adaptive") & (attacks["ball"] == ball)]
        if not len(adaptives):
            continue
        native = str(runs.adv[list(natives.index)].mean().idxmin())
        adaptive = str(runs.adv[list(adaptives)].mean().idxmin())
        if (extra := runs.dice_lost_beyond(native, adaptive)) > KNOWLEDGE_MARGIN:
            yield runs.evidence(native, f"{runs.name(adaptive)} reaches a Dice lower by {extra:.3f}")


def _linf_runs(runs: Runs) -> pd.DataFrame:
    """Runs whose budget bounds the change of each pixel."""
    return runs.facts[runs.facts["ball_spec"].map(norm_of) == "linf"]


def _noise_in_the_same_ball(runs: Runs) -> Iterator[tuple[str, str, bool]]:
    """Each attack by gradients with each noise in its ball, and whether the noise does nearly as much harm."""
    for run, row in runs.gradient_runs.iterrows():
        for noise in runs.noise_runs.index[runs.noise_runs["ball"] == row["ball"]]:
            lost = runs.dice_lost(noise)
            yield str(run), noise, lost > 2 * SMALLEST_DIFFERENCE and lost >= 0.8 * runs.dice_lost(str(run))


def _beaten_without_gradients(runs: Runs, foreign: bool) -> Iterator[Evidence]:
    """The best white-box run of each ball that a run without gradients beats, with images from elsewhere or not."""
    attacks = runs.facts[(runs.facts["role"] == "attack") & (runs.facts["backwards"] == 0)]
    attacks = attacks[~attacks["name"].isin(UNIVERSAL)]
    for run, row in attacks[attacks["name"].isin(FOREIGN) == foreign].iterrows():
        rivals = runs.gradient_runs.index[runs.gradient_runs["ball"] == row["ball"]]
        if not len(rivals):
            continue
        best = str(runs.adv[list(rivals)].mean().idxmin())
        if extra := runs.dice_lost_beyond(best, str(run)):
            yield runs.evidence(best, f"{runs.name(str(run))} reaches a Dice lower by {extra:.3f}")


def _pairs_by_steps(runs: Runs) -> Iterator[tuple[str, str]]:
    """The run of second most steps and that of most, among attacks that differ in their steps alone."""
    stem = runs.facts["spec"].map(lambda attack: attack.replace(steps=None))
    attacks = runs.facts.assign(stem=stem)[runs.facts["backwards"] > 1]
    for _, line in attacks.groupby(["stem", "loss", "ball"], sort=False):
        order = line.sort_values("backwards").index
        if len(order) > 1:
            yield order[-2], order[-1]


CHECKS: list[Check[[Runs]]] = checks_in(sys.modules[__name__])
