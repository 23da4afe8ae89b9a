"""Checks before a run: can this model's robustness be measured? Small questions to a model and a few cases."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations, permutations
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg_attack.attacks.composed.adaptive import backward_of, core, is_averaged
from medseg_attack.checks.flags import Evidence, Finding, Needs, by_severity, checks_in, invalid, note, upper_bound
from medseg_attack.checks.rows.strength import check_same_clean_dice, check_slope_on_every_case
from medseg_attack.checks.rows.validity import check_clean_dice, check_lost_gradients, check_stored_level
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.samples import draw_signs, widen
from medseg_attack.registry.abilities import Climbs
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce, margin
from medseg_attack.threat.objectives.per_task import for_task
from medseg_attack.types import Attack, Batch, Image, LogOdds, Mask, Model, Objective, PerSample, Setting

BROKEN = ("MA002", "MA022", "MA025")  # no gradient, not finite, out of range: such a model is not attacked
SUREST = 0.05  # of a case's organ pixels: a share that counts
REPEATS = 3  # passes of the same image
RANDOM_STEPS = 8  # that a step along the gradient is compared with
BETTER_FIT, PLAUSIBLE_FIT = 0.1, 0.5  # of Dice: what another order of labels must gain, and reach
AXES = ("slices", "rows", "columns")
HALF = (torch.float16, torch.bfloat16)
VANISHED = 1e-12  # of a loss: what float32 no longer adds to a sum


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, a few cases and the attacks of a run: what the checks look at.

    Attributes:
        attacks: those of the run; the checks take their objectives and budgets.
        log_odds: the model's output on the untouched images.
    """

    model: Model
    batch: Batch
    attacks: tuple[Attack, ...]
    log_odds: LogOdds

    @property
    def image(self) -> Image:
        return self.batch.image

    @property
    def objective(self) -> Objective:
        """The first that an attack of the run climbs, on these cases."""
        climbed = [attack.objective for attack in self.attacks if isinstance(attack, Climbs)]
        task = self.model.task
        return for_task(bind(climbed[0], Setting(task, self.batch.cases)), task) if climbed else bce

    @property
    def eps(self) -> float:
        """The largest budget per pixel of the run, or 8/255 where it has none."""
        return max((a.ball.eps for a in self.attacks if isinstance(a.ball, Linf)), default=0.0) or 8 / 255

    @cached_property
    def gradient(self) -> Image | None:
        """The gradient of margins, which no loss saturates, by the image; None where there is no path."""
        return slope(self, margin)

    def names(self, wrong: Tensor) -> str:
        """The first cases where `wrong` holds, (samples,)."""
        ids = [case.id for case, bad in zip(self.batch.cases, wrong.tolist(), strict=True) if bad]
        return ", ".join(ids[:3]) or "all cases"

    def loss(self, x: Image, objective: Objective) -> Tensor:
        """The objective at `x` per sample, in double precision so that small differences survive."""
        with torch.no_grad():
            return objective(self.model(x).double(), self.batch.target, 0.0)


def check_model(model: Model, batch: Batch, attacks: Sequence[Attack] = (), *, gradient: bool = True) -> list[Finding]:
    """Findings on the model and the images; they cost about 20 passes over the batch.

    Of a model whose defence the attacks know, the gradient that they take is looked at.

    The model should be as the run uses it (`frozen`). Cases with organs tell more than empty ones.

    Args:
        gradient: whether the gradient is looked at, which scores of clean images do not depend on.
    """
    backward = backward_of(attacks)
    model = bind(model, Setting(model.task, batch.cases, backward=backward))
    with torch.no_grad():
        log_odds = model(batch.image)
    scene = Scene(model, batch, tuple(map(core, attacks)), log_odds)
    if not torch.isfinite(log_odds).all():
        return by_severity([*check_image_range(scene), *check_finite(scene)])
    findings = _ask(scene, "nothing")
    if not gradient or (isinstance(model, SegModel) and model.black_box):  # which has no gradient to ask for
        return by_severity(findings)
    is_random = any(finding.flag == check_repeated_passes.flag for finding in findings)
    if is_random and any(map(is_averaged, attacks)):  # they know it
        findings = [finding for finding in findings if finding.flag != check_repeated_passes.flag]
    broken = [*check_gradient_path(scene), *check_finite(scene)]
    if not broken:
        findings += _ask(scene, "a gradient")
        # a randomised model does not stand checks that compare passes with each other, nor a stand-in those of slopes
        findings += [] if is_random or backward != "own" else _ask(scene, "a gradient, and the same answer twice")
    return by_severity(findings + broken)


def _ask(scene: Scene, needs: Needs) -> list[Finding]:
    """The findings of the checks that need this of the model, but for the two that say whether it has it."""
    checks = [check for check in checks_in(sys.modules[__name__]) if check.flag.needs == needs]
    asked = [check for check in checks if check not in (check_gradient_path, check_finite)]
    return [finding for check in asked for finding in check(scene)]


@check_slope_on_every_case.flag
def check_blocked_gradient(scene: Scene) -> Iterator[Evidence]:
    """MA001: the gradient of the model's margins by the image is exactly 0 on over 5 % of a case's organ pixels."""
    organ = organs(scene)
    share = _share((_gradient(scene) == 0).all(1) & organ, organ)
    if share.max() > 0.05:
        yield Evidence(scene.names(share > 0.05), f"0 on {share.max():.0%} of a case's organ pixels")


@invalid(
    "MA002",
    "no gradient path from the output to the image",
    "remove detach() and no_grad() from the model, or use an attack without gradients",
)
def check_gradient_path(scene: Scene) -> Iterator[Evidence]:
    """MA002: the output does not depend on the image as far as automatic differentiation knows.

    `detach()`, `no_grad()` or a detour through NumPy cuts the path. Attacks by gradients cannot run; `medattack
    attack` refuses them. A network in ONNX is a black box by its nature and is not flagged.

    What to do: Remove the cut, or use an attack without gradients.
    """
    if scene.gradient is None:
        yield Evidence("all cases", "the gradient of the output by the image does not exist")


@check_same_clean_dice.flag
def check_repeated_passes(scene: Scene) -> Iterator[Evidence]:
    """MA003: three passes of the same image differ by more than 1e-4 of the length of the log-odds."""
    with torch.no_grad():
        distances = [_distance(scene.model(scene.image), scene.log_odds) for _ in range(REPEATS - 1)]
    distance = torch.stack(distances).amax(0)
    if (distance > 1e-4).any():
        numbers = f"log-odds differ by {distance.max():.2g} of their length in {REPEATS} passes"
        yield Evidence(scene.names(distance > 1e-4), numbers)


@invalid(
    "MA004",
    "a case alone differs from the case in a batch",
    "put batch normalisation in eval mode and give it running statistics",
)
def check_case_alone(scene: Scene) -> Iterator[Evidence]:
    """MA004: a case alone and the same case in a batch differ by more than 1 % of the length of the log-odds.

    Batch normalisation works with the statistics of the batch. Scores then depend on which cases happen to be
    neighbours. Where no other case has its shape, the case stands beside its own negative at half the contrast.

    What to do: Put the model in eval mode; give normalisation layers running statistics.
    """
    if check_repeated_passes(scene):  # a randomised model differs from itself anyway
        return
    case, image = scene.batch.cases[:1], scene.image[:1]
    alone = len(scene.image) == 1
    # of the negative, unlike of a flipped copy, a batch has another mean and deviation
    cases, other = (case * 2, torch.cat((image, (1 - image) / 2))) if alone else (case, image)
    with torch.no_grad():
        model = bind(scene.model, Setting(scene.model.task, cases))
        distance = _distance(model(other)[:1], scene.log_odds[:1])
    if (distance > 1e-2).any():  # convolutions on a GPU differ by 1e-3 between batch sizes
        yield Evidence(case[0].id, f"log-odds differ by {distance.max():.2g} of their length")


@invalid("MA005", "outputs look like probabilities", "return the values before sigmoid or softmax")
def check_probabilities(scene: Scene) -> Iterator[Evidence]:
    """MA005: all outputs lie between 0 and 1, or where the log-odds of a softmax over such numbers must lie.

    The network ends in a sigmoid, hard or not, or in a softmax. Decisions at log-odds of 0 then call every pixel
    organ, a softmax of them is undecided, and losses that expect log-odds are nearly flat.

    What to do: Return what the network computes before its last sigmoid or softmax.
    """
    k = scene.log_odds.shape[1]
    low, high = 0.0, 1.0
    if scene.model.task.exclusive:
        low, high = -1 - math.log(k - 1), 1 - math.log(k - 1)  # of one 0 among 1s, of one 1 among 0s
    least, most = scene.log_odds.min().item(), scene.log_odds.max().item()
    if low - 1e-3 <= least and most <= high + 1e-3:
        yield Evidence("all cases", f"all outputs lie in [{least:.3g}, {most:.3g}]")


@check_clean_dice.flag
def check_label_order(scene: Scene) -> Iterator[Evidence]:
    """MA014: on a few cases, the mean Dice is higher by 0.1, and 0.5 or more, if classes of the prediction change
    places or its axes are reversed or exchanged.
    """
    pred, target = scene.model.decide(scene.log_odds), scene.batch.target
    present = [k for k in scene.model.task.scored if target[:, k].any()]
    if not present:
        return
    mean = float(_dice_of_pairs(pred, target).diagonal()[present].mean())
    if mean > 1 - BETTER_FIT:
        return
    fits = [(*_best_order(turned, target, present), axes, flips) for turned, axes, flips in _orientations(pred)]
    best, order, axes, flips = max(fits, key=lambda fit: fit[0])  # the first of several: the least change
    if best >= max(PLAUSIBLE_FIT, mean + BETTER_FIT):
        classes = scene.model.task.classes
        moved = [f"its {classes[own]} is {classes[k]}" for k, own in zip(present, order, strict=True) if own != k]
        names = AXES[-len(axes) :]
        exchanged = [names[n] for n, axis in enumerate(axes) if axis != n]
        turns = [f"its {' and '.join(exchanged)} are exchanged"] if exchanged else []
        turns += [f"its {' and '.join(names[n] for n in flips)} are reversed"] if flips else []
        numbers = f"Dice {mean:.3f} on these cases, {best:.3f} if {' and '.join([*moved, *turns])}"
        yield Evidence("clean images", numbers)


def _dice_of_pairs(pred: Mask, target: Mask) -> Float[Tensor, "k j"]:
    """Dice of each class of a prediction with each class of the truth, over all pixels of the cases."""
    own, other = (mask.transpose(0, 1).flatten(1).double() for mask in (pred, target))
    return 2 * own @ other.T / (own.sum(1)[:, None] + other.sum(1)).clamp(min=1)


def _best_order(pred: Mask, target: Mask, classes: list[int]) -> tuple[float, list[int]]:
    """The highest mean Dice that these classes of the truth can have with a class of the prediction each, and which."""
    pairs = _dice_of_pairs(pred, target)[:, classes].cpu().numpy()
    own, place = linear_sum_assignment(-pairs)
    order = own[place.argsort()]
    return float(pairs[order, range(len(classes))].mean()), order.tolist()


def _orientations(mask: Mask) -> Iterator[tuple[Mask, tuple[int, ...], tuple[int, ...]]]:
    """A mask as it is, then turned: its spatial axes in another order, where their sides allow it, and reversed."""
    grid = mask.shape[2:]
    axes = tuple(range(len(grid)))
    for order in permutations(axes):
        if tuple(grid[n] for n in order) == tuple(grid):
            exchanged = mask.permute(0, 1, *(n + 2 for n in order))
            for flips in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)):
                yield exchanged.flip([n + 2 for n in flips]), order, flips


@check_stored_level.flag
def check_grey_level(scene: Scene) -> Iterator[Evidence]:
    """MA015: the smallest eps is less than the distance between two grey levels of an image (seen where its values lie
    on a lattice).
    """
    budgets = [a.ball.eps for a in scene.attacks if isinstance(a.ball, Linf) and a.ball.eps > 0]
    levels = torch.tensor([max(map(_level, image)) for image in scene.image])
    if budgets and (min(budgets) < levels * 0.999).any():
        wrong = min(budgets) < levels
        yield Evidence(scene.names(wrong), f"eps {min(budgets):.3g}, one grey level is {levels.max():.3g}")


@note(
    "MA016",
    "many organ pixels lie at the end of the intensity window",
    "check the window; pixels at its end can be attacked in one direction only",
)
def check_window(scene: Scene) -> Iterator[Evidence]:
    """MA016: more than 10 % of a case's organ pixels are exactly 0 or 1.

    Such pixels were cut off by the window and can be moved in one direction only. In CT with a narrow window this may
    be meant.

    What to do: Check the window that `prepare` used.
    """
    if check_cut_z_score(scene):
        return
    organ = organs(scene)
    edge = ((scene.image <= 0) | (scene.image >= 1)) & organ[:, None]
    share = _share(edge, organ[:, None].expand_as(edge))
    if share.max() > 0.1:
        yield Evidence(scene.names(share > 0.1), f"{share.max():.0%} of a case's organ pixels are 0 or 1")


class Precisions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A scope that notes in which half precisions torch computes; attribute `half` is a set of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.half: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.half.update(each.dtype for each in tree_leaves(result) if isinstance(each, Tensor) and each.dtype in HALF)
        return result


@upper_bound(
    "MA017",
    "the model answers in half precision",
    "run the attack in float32: small gradients vanish in half precision",
)
def check_precision(scene: Scene) -> Iterator[Evidence]:
    """MA017: the log-odds, or numbers that they are computed from, are in half precision.

    Small gradients become 0 in float16 and lose their sign's reliability in bfloat16. A cast of the output to float32
    does not bring them back.

    What to do: Craft in float32; keep half precision for training.
    """
    precision = scene.log_odds.dtype
    if precision in HALF:
        yield Evidence("all cases", f"log-odds are {precision}".replace("torch.", ""))
        return
    with torch.no_grad(), Precisions() as inside:
        scene.model(scene.image)
    if inside.half:
        names = ", ".join(sorted(str(dtype).replace("torch.", "") for dtype in inside.half))
        yield Evidence("all cases", f"the model computes in {names}, its log-odds are float32")


@upper_bound(
    "MA019",
    "the loss is numerically 0 where the model is right",
    "attack with --loss margin, which does not saturate",
    needs="a gradient",
)
def check_saturated_loss(scene: Scene) -> Iterator[Evidence]:
    """MA019: on more than half of the organ pixels that are right the objective's pull is below 1e-12 of the margin's.

    The log-odds are so large that the loss is numerically 0. Scaling logits by a constant does this, changes no
    decision and defends nothing.

    What to do: Attack with `--loss margin`, which never saturates.
    """
    z = scene.log_odds.detach().requires_grad_()
    (pull,) = torch.autograd.grad(scene.objective(z, scene.batch.target, 0.0).sum(), z)
    right = scene.batch.target & (scene.log_odds > 0)
    if not right.any():
        return
    share = ((pull * z[0].numel()).abs() < VANISHED)[right].float().mean().item()
    if share > 0.5:
        yield Evidence("all cases", f"no pull on {share:.0%} of the organ pixels that are right")


@upper_bound(
    "MA020",
    "the gradient does not predict how the loss changes",
    "look for a custom backward pass, or for steps that hide the true slope",
    needs="a gradient, and the same answer twice",
)
def check_slope(scene: Scene) -> Iterator[Evidence]:
    """MA020: the slope along the gradient differs by more than 20 % (median over cases) from central differences at
    steps of 1e-4, 1e-3 and 1e-2.

    The backward pass is not the derivative of the forward pass: custom gradients, rounding, or hooks that change
    them.

    What to do: Find the operation whose backward pass was replaced.
    """
    gradient = _gradient(scene)
    direction, expected = gradient.sign(), gradient.double().abs().flatten(1).sum(1)
    errors = []
    for h in (1e-4, 1e-3, 1e-2):  # the best of which counts
        x, move = scene.image, h * direction if bool(expected.any()) else h * _signs(scene, 0)
        rise = (scene.loss(x + move, margin) - scene.loss(x - move, margin)) / (2 * h)
        errors.append((rise - expected).abs() / torch.maximum(rise.abs(), expected).clamp(min=1e-9))
    error = torch.stack(errors).amin(0)
    if error.median() > 0.2:
        yield Evidence(scene.names(error > 0.2), f"the slope is wrong by {error.median():.0%} (median)")


@upper_bound(
    "MA021",
    "a step along the gradient is no better than a random one",
    "look for masked gradients; use an attack without gradients",
    needs="a gradient, and the same answer twice",
)
def check_step_along_gradient(scene: Scene) -> Iterator[Evidence]:
    """MA021: a step of eps/8 along the gradient's signs raises the loss by less than twice what the best of 8 random
    steps does, on most cases.

    The gradient may be right at the point and useless a grey level away (shattered), or it is masked.

    What to do: Smooth the step that shatters it, average gradients over nearby images, or use an attack without
    gradients.
    """
    own = slope(scene, scene.objective)
    step = scene.eps / 8
    start = scene.loss(scene.image, scene.objective)
    along = scene.loss(scene.image + step * torch.as_tensor(own).sign(), scene.objective) - start
    tries = [scene.loss(scene.image + step * _signs(scene, i), scene.objective) - start for i in range(RANDOM_STEPS)]
    chance = torch.stack(tries).amax(0)
    weak = (along <= 0) | (along < 2 * chance)
    if weak.double().mean() > 0.5:
        rises = f"by {along.median():.2g}, by {chance.median():.2g} at random (best of {RANDOM_STEPS})"
        yield Evidence(scene.names(weak), f"the loss rises {rises}")


@check_lost_gradients.flag
def check_finite(scene: Scene) -> Iterator[Evidence]:
    """MA022: the output on an untouched image, or the gradient by the image, contains NaN or infinity."""
    values, numbers = scene.log_odds, "the output itself is NaN or infinite"
    if torch.isfinite(values).all() and scene.gradient is not None:
        values, numbers = scene.gradient, "NaN or infinity in the gradient by the image"
    wrong = ~torch.isfinite(values).flatten(1).all(1)
    if wrong.any():
        yield Evidence(scene.names(wrong), numbers)


@invalid("MA025", "image values outside [0, 1]", "keep images in [0, 1] and normalise inside the model")
def check_image_range(scene: Scene) -> Iterator[Evidence]:
    """MA025: an image has values outside [0, 1].

    Every attack cuts its result to [0, 1]; such an image changes by that alone, with no attack at all.

    What to do: Scale images to [0, 1] of their window; z-score inside the model.
    """
    low, high = scene.image.flatten(1).amin(1), scene.image.flatten(1).amax(1)
    wrong = ~((low >= 0) & (high <= 1))  # NaN is wrong, too
    if wrong.any():
        yield Evidence(scene.names(wrong), f"values from {low.min():.3g} to {high.max():.3g}")


@invalid(
    "MA026",
    "the image looks like a z-score cut to [0, 1]",
    "give images in [0, 1] of their window and z-score inside the model",
)
def check_cut_z_score(scene: Scene) -> Iterator[Evidence]:
    """MA026: more than 30 % of all pixels are 0 and more than 10 % are 1.

    A z-scored image that was cut to [0, 1] looks like this. Half of its contrast is gone before the attack.

    What to do: Give images in [0, 1] of their window; z-score inside the model.
    """
    at_zero, at_one = (scene.image <= 0).float().mean().item(), (scene.image >= 1).float().mean().item()
    if at_zero > 0.3 and at_one > 0.1:
        yield Evidence("all cases", f"{at_zero:.0%} of the pixels are 0 and {at_one:.0%} are 1")


@upper_bound(
    "MA036",
    "the gradient is exactly 0 where the model is surest",
    "remove the bound on the output (clamp, hard sigmoid), or use an attack without gradients",
    needs="a gradient",
)
def check_sure_pixels(scene: Scene) -> Iterator[Evidence]:
    """MA036: the gradient by the image of the log-odds of the surest 5 % of a case's right organ pixels is exactly 0 on
    the whole image.

    A bound cuts the output off: a clamp, a hard sigmoid, probabilities that float32 rounds to 1. Pixels beyond it do
    not pull, however an attack weighs them, so that it sees the edges of an organ only.

    What to do: Remove the bound from the model that is attacked; decisions do not need it. Else compare with an attack
    without gradients.
    """
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    right = (scene.batch.target & (log_odds > 0))[:, scene.model.task.scored_channels].flatten(1)
    sure = log_odds[:, scene.model.task.scored_channels].flatten(1).masked_fill(~right, -torch.inf)
    counts = (SUREST * right.sum(1)).ceil().long()
    ranks = sure.argsort(1, descending=True).argsort(1)
    chosen = (ranks < counts[:, None]) & right
    (gradient,) = torch.autograd.grad(torch.where(chosen, sure, 0.0).sum(), x)
    blocked = (gradient == 0).flatten(1).all(1) & (right.sum(1) >= 1 / SUREST)
    if blocked.any():
        bound = sure.amax(1)[blocked].max()
        yield Evidence(scene.names(blocked), f"their log-odds stand at {bound:.3g}")


def _level(image: Tensor) -> float:
    """The step of the lattice that a channel's values lie on, 0 where none can be seen."""
    values = torch.unique(image[(image > 0) & (image < 1)].double())
    if len(values) < 32:
        return 0.0
    gaps = values.diff()
    step = gaps.min()
    near = gaps[gaps < 8 * step] / step  # float32 blurs longer ones
    on_lattice = step > 1e-5 and bool(((near - near.round()).abs() < 0.05).all())
    return float(step) if on_lattice else 0.0


def _gradient(scene: Scene) -> Image:
    return torch.as_tensor(scene.gradient)


def slope(scene: Scene, objective: Objective) -> Image | None:
    """The gradient of the objective by the image; None where there is no path."""
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    if not log_odds.requires_grad:
        return None
    loss = objective(log_odds, scene.batch.target, 0.0).sum()
    gradient: Image | None = torch.autograd.grad(loss, x, allow_unused=True)[0]
    return gradient


def organs(scene: Scene) -> Tensor:
    """A mask of all scored classes, (samples, *grid); the whole image of a case that has none."""
    organ = scene.batch.target[:, scene.model.task.scored_channels].any(1)
    empty = ~organ.flatten(1).any(1)
    return organ | widen(empty, organ)


def _share(part: Tensor, whole: Tensor) -> PerSample:
    share: Tensor = part.flatten(1).sum(1) / whole.flatten(1).sum(1)
    return share


def _distance(a: LogOdds, b: LogOdds) -> PerSample:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a - b).square().sum(1).sqrt() / b.square().sum(1).sqrt().clamp(min=1e-12)


def _signs(scene: Scene, number: int) -> Image:
    return draw_signs(scene.image, [1000 * number + i for i in range(len(scene.image))])
