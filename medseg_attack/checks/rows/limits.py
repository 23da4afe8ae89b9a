"""Limits of a number: what a reader must know beside it."""

from collections.abc import Iterator

import numpy as np

from medseg_attack.checks.flags import Evidence, note, upper_bound
from medseg_attack.checks.rows.runs import ALL_ATTACKS, Runs
from medseg_attack.errors import plural
from medseg_attack.stats.patients import TESTS_FROM


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
        yield Evidence(ALL_ATTACKS, f"the largest drop is {largest:.3f}")


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
    for ball, of_ball in runs.linf_runs.groupby("ball", sort=False):
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
    "MA041",
    "the model was trained on patients who are scored",
    "score patients whom it never saw: --split test of the data of its training, or val with its --fold",
)
def check_training_patients(runs: Runs) -> Iterator[Evidence]:
    """MA041: of a patient who is scored, a scan was trained on, as the card of the model says.

    A network does better on scans that it has learned, untouched and under attack, than on those of new patients. The
    card holds digests of the prepared scans. A scan that was prepared with another size, window or labels is not
    recognised, nor is one whose model was not trained by medattack.

    What to do: Score patients whom the model never saw. `--split test` of the data that it was trained on has them, and
    so has `--split val` with the `--fold` of the training, whose patients chose its best epoch.
    """
    n_known, n_patients = (int(runs.facts[column].max()) for column in ("trained_on", "patients"))
    if n_known:
        yield Evidence("all runs", f"{n_known} of {plural(n_patients, 'patient')}")
