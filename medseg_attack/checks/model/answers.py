"""Checks of what a model answers: log-odds of the right form, the same twice, of the organs in their places."""

import math
from collections.abc import Iterator
from itertools import chain, combinations, islice, permutations
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg_attack.checks.flags import Evidence, invalid, upper_bound
from medseg_attack.checks.model.scene import Scene
from medseg_attack.checks.rows.strength import check_same_clean_dice
from medseg_attack.checks.rows.validity import IMPLAUSIBLE, check_clean_dice
from medseg_attack.threat.binding import bind
from medseg_attack.types import LogOdds, Mask, PerSample, Setting

REPEATS = 3  # passes of the same image
BETTER_FIT, PLAUSIBLE_FIT = 1 / 3, 0.5  # what another order of labels must gain of the Dice that lacks, and reach
GOOD_FIT = 0.9  # of Dice: labels in a wrong order cannot have it
AXES = ("slices", "rows", "columns")
AS_TRAINED = "give own(...) the order of axes that the network was trained on, such as axes='yx' or axes='xy'"
HALF = (torch.float16, torch.bfloat16)


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
    """MA014: on a few cases, the mean Dice gains a third of what it lacks to 1, and is 0.5 or more, if classes of the
    prediction change places or its axes are reversed or exchanged, or, of slices, if the model gets them so.
    """
    pred, target = scene.model.decide(scene.log_odds), scene.batch.target
    present = [k for k in scene.model.task.scored if target[:, k].any()]
    if not present:
        return
    mean = float(_dice_of_pairs(pred, target).diagonal()[present].mean())
    if mean > GOOD_FIT:
        return
    fits = [(*_best_order(turned, target, present), axes, flips) for turned, axes, flips in _orientations(pred)]
    best, order, axes, flips = max(fits, key=lambda fit: fit[0])  # the first of several: the least change
    if best >= max(PLAUSIBLE_FIT, mean + BETTER_FIT * (1 - mean)):
        classes = scene.model.task.classes
        moved = [f"its {classes[own]} is {classes[k]}" for k, own in zip(present, order, strict=True) if own != k]
        turns = " and ".join([*moved, *_turns(axes, flips, "its ")])
        yield Evidence("clean images", f"Dice {mean:.3f} on these cases, {best:.3f} if {turns}")
    elif mean < IMPLAUSIBLE and scene.image.ndim == 4:  # of whole scans there are too many turns to ask for
        yield from _other_input(scene, mean, present)


def _other_input(scene: Scene, mean: float, present: list[int]) -> Iterator[Evidence]:
    """The order of axes of its input that a model segments well in: a network may know organs in one position alone."""
    fits = []
    with torch.no_grad():
        for turned, axes, flips in islice(_orientations(scene.image), 1, None):
            pred = scene.model.decide(scene.model(turned))
            back = pred.flip([n + 2 for n in flips]).permute(0, 1, *(axes.index(n) + 2 for n in range(len(axes))))
            fits.append((float(_dice_of_pairs(back, scene.batch.target).diagonal()[present].mean()), axes, flips))
    best, axes, flips = max(fits, key=lambda fit: fit[0])
    if best >= max(PLAUSIBLE_FIT, mean + BETTER_FIT * (1 - mean)):
        turns = " and ".join(_turns(axes, flips, ""))
        numbers = f"Dice {mean:.3f} on these cases, {best:.3f} if it gets images whose {turns}"
        yield Evidence("clean images", numbers, todo=AS_TRAINED)


def _turns(axes: tuple[int, ...], flips: tuple[int, ...], whose: str) -> list[str]:
    """The exchanged and the reversed axes, in words."""
    names = AXES[-len(axes) :]
    exchanged = [names[n] for n, axis in enumerate(axes) if axis != n]
    turns = [f"{whose}{' and '.join(exchanged)} are exchanged"] if exchanged else []
    return turns + ([f"{whose}{' and '.join(names[n] for n in flips)} are reversed"] if flips else [])


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


def _orientations(image: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...], tuple[int, ...]]]:
    """An image or mask, then turned: its spatial axes in another order, where their sides allow it, and reversed."""
    grid = image.shape[2:]
    axes = tuple(range(len(grid)))
    for order in permutations(axes):
        if tuple(grid[n] for n in order) == tuple(grid):
            exchanged = image.permute(0, 1, *(n + 2 for n in order))
            for flips in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)):
                yield exchanged.flip([n + 2 for n in flips]), order, flips


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
    needs="a gradient",
)
def check_precision(scene: Scene) -> Iterator[Evidence]:
    """MA017: the log-odds, or the gradient on its way to the image, are in half precision.

    Small gradients become 0 in float16 and lose their sign's reliability in bfloat16. A cast of the output to float32
    does not bring them back. Logits that are rounded while their gradient stays in float32, as nnU-Net's, do no harm.

    What to do: Craft in float32; keep half precision for training.
    """
    precision = scene.log_odds.dtype
    if precision in HALF:
        yield Evidence("all cases", f"log-odds are {precision}".replace("torch.", ""))
        return
    x = scene.image.detach().requires_grad_()
    log_odds = scene.model(x)
    with Precisions() as back:
        torch.autograd.grad(log_odds.sum(), x)
    if back.half:
        names = ", ".join(sorted(str(dtype).replace("torch.", "") for dtype in back.half))
        yield Evidence("all cases", f"the gradient is computed in {names}, the log-odds are float32")


def _distance(a: LogOdds, b: LogOdds) -> PerSample:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    return (a - b).square().sum(1).sqrt() / b.square().sum(1).sqrt().clamp(min=1e-12)
