"""Signs that an attack was too weak, so that its number is an upper bound on robustness."""

from collections.abc import Iterator
from itertools import pairwise

from medseg_attack.checks.flags import Evidence, upper_bound
from medseg_attack.checks.rows.runs import ALL_ATTACKS, SMALLEST_DIFFERENCE, Runs, family, is_transferred
from medseg_attack.registry.grammar import Literal, Spec
from medseg_attack.runs.rows import WITHOUT_SLOPE
from medseg_attack.stats.scores import Unit

MANY_STEPS, LATE_GAIN = 40, 0.05  # from so many steps on, so much of Dice must be gained by more of them to count
KNOWLEDGE_MARGIN = 0.02  # of Dice: what knowing a defence must gain to count
GREYING = ("linf", "within(ball=linf)")  # balls that can make all organs the same grey; other regions leave some out
# One change, or one network, for all: gradients, if any, were of other images. Edits have another truth each.
NO_RIVALS = ("universal", "edits")
OF_VOLUMES = "strongest"  # lowers the Dice of volumes, unless it says that of slices; others say that of volumes


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


@upper_bound("MA027", "only single-step attacks were run", "add --attack 'pgd(steps=40)' before speaking of robustness")
def check_single_steps_alone(runs: Runs) -> Iterator[Evidence]:
    """MA027: all attacks by gradients of the run took one step.

    One step is far from the worst case; models trained against it are the best example.

    What to do: Add `--attack 'pgd(steps=40)'`.
    """
    if len(runs.gradient_runs) and not (runs.gradient_runs["backwards"] > 1).any():
        yield Evidence(ALL_ATTACKS, "1 gradient per case")


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


@upper_bound("MA040", "the attack lowered another Dice than the table shows", "attack with the --unit of the table")
def check_unit_of_attack(runs: Runs) -> Iterator[Evidence]:
    """MA040: slices are scored, and the attack kept the images that lower the Dice of whole volumes, or `strongest` the
    other way round.

    A slice with little of an organ hardly changes the Dice of its volume, so that such an attack leaves it alone, and
    pays for it where slices are scored.

    What to do: Attack again with the `--unit` of the table, which `strongest` follows.
    """
    for run, head in runs.facts.iterrows():
        if numbers := other_dice(head["spec"], head.get("dims", 2), runs.unit):
            yield runs.evidence(str(run), numbers)


def other_dice(attack: Spec, dims: float, unit: Unit) -> str:
    """The Dice that an attack on a model of so many dimensions lowers, in words; "" where it is that of the unit."""
    lowered = {_unit(part) for part in attack.walk()} - {""}
    if dims == 3 or not lowered or (unit == "slice") == ("slice" in lowered):
        return ""
    return f"its Dice is that of a {' and a '.join(sorted(lowered))}"


def _noise_in_the_same_ball(runs: Runs) -> Iterator[tuple[str, str, bool]]:
    """Each attack by gradients with each noise in its ball, and whether the noise does nearly as much harm."""
    for run, row in runs.gradient_runs.iterrows():
        for noise in runs.noise_runs.index[runs.noise_runs["ball"] == row["ball"]]:
            lost = runs.dice_lost(noise)
            yield str(run), noise, lost > 2 * SMALLEST_DIFFERENCE and lost >= 0.8 * runs.dice_lost(str(run))


def _beaten_without_gradients(runs: Runs, foreign: bool) -> Iterator[Evidence]:
    """The best white-box run of each ball that a run without gradients beats, with images from elsewhere or not."""
    attacks = runs.facts[(runs.facts["role"] == "attack") & (runs.facts["backwards"] == 0)]
    attacks = attacks[~attacks["name"].map(family).isin(NO_RIVALS)]
    for run, row in attacks[attacks["name"].map(is_transferred) == foreign].iterrows():
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


def _unit(attack: Spec) -> str:
    """The unit whose Dice an attack lowers, as it says or by default; "" of one that is as published."""
    values = [node.value for node in (*attack.positional, *dict(attack.keywords).values()) if isinstance(node, Literal)]
    default = "volume" if attack.name == OF_VOLUMES else ""
    return str(next((value for value in values if value in ("slice", "volume")), default))
