"""Contradictions by which a number does not mean what the table says."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from medseg_attack.checks.flags import Evidence, invalid
from medseg_attack.checks.rows.runs import SMALLEST_DIFFERENCE, Runs
from medseg_attack.runs.rows import WITHOUT_ANSWER, WITHOUT_GRADIENT

IMPLAUSIBLE = 0.3  # clean Dice below which there is little to attack
WITHOUT_ORGANS = "choose cases that have an organ: another --split, or all"


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


@invalid(
    "MA014",
    "clean Dice is implausible",
    "check preprocessing, order of channels and of axes, and weights before attacking",
)
def check_clean_dice(runs: Runs) -> Iterator[Evidence]:
    """MA014: the mean clean Dice is below 0.3, or 0.15 below the validation Dice on the checkpoint's card.

    There is little to attack, or the model is not fed as it was trained.

    What to do: Check window, orientation, order of channels and of axes, and weights; run `medattack evaluate`. Where
    no case has an organ, choose cases that have one.
    """
    clean = float(runs.clean.iloc[:, 0].mean())
    if clean < IMPLAUSIBLE and not (runs.cases["n_target"] > 0).any():
        yield Evidence("clean images", f"Dice {clean:.3f}, no case has an organ", todo=WITHOUT_ORGANS)
        return
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
    for ball, of_ball in runs.linf_runs.groupby("ball", sort=False):
        if (share := of_ball["below_level"].max()) > 0:
            yield Evidence(str(ball), f"it changes nothing on {share:.0%} of the cases")


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
