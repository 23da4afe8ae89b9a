"""Gradient ascent on the numbers that describe a change: the one loop of attacks that imitate scanners and bodies.

Each attack says how its numbers become an image; its ball says how large the change may be.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge, judge_prediction
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.flows import moved, warped
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import shown
from medseg_attack.types import Adversarial, Ball, Flow, Image, LogOdds, Mask, Model, PerSample

Numbers = Float[Tensor, "b m"]  # in [-1, 1]; 0 of all is no change, 1 the most that the ball allows


def require_ball(ball: Ball, kind: type, needed: str, example: str) -> None:
    """Refuses a ball that is of another kind, or held to a region and of another kind there.

    Args:
        needed: the ball and the attack in words, such as "the ball pose for affine".
    """
    if not isinstance(ball.unrestricted, kind):
        raise InputError(f"expected {needed}, got {shown(ball)}; write {example}")


class Rendered(NamedTuple):
    """The image that some numbers describe.

    Attributes:
        flow: how anatomy moved; None where nothing moves.
        back: the flow that undoes it.
        penalty: number of each sample that is taken off its objective; None for none.
    """

    image: Image
    flow: Flow | None = None
    back: Flow | None = None
    penalty: PerSample | None = None


@dataclass(frozen=True)
class Parametrised(Climbing, ABC):
    """An attack whose change some numbers describe; `steps=0` is a random draw of them, which is its control.

    Attributes:
        steps: of signed ascent, 0 or more.
        step_size: change of every number in a step, 0 or more; the numbers range over [-1, 1].
    """

    steps: int = 20
    step_size: float = 0.25

    def __post_init__(self) -> None:
        require(self, steps=0, step_size=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return ascend(self, model, image, target, seeds)

    def control(self) -> "Parametrised":
        """A random change of the kind that the attack describes."""
        return replace(self, steps=0)

    @abstractmethod
    def start(self, image: Image, seeds: Sequence[int]) -> Numbers:
        """The numbers at which the ascent begins, (b, m) in [-1, 1]."""

    @abstractmethod
    def render(self, numbers: Numbers, image: Image, progress: float) -> Rendered:
        """The image that the numbers describe; `progress` in [0, 1] is the fraction of the ascent that is done."""


def random_numbers(image: Image, m: int, seeds: Sequence[int]) -> Numbers:
    """`m` numbers of each sample, uniform in [-1, 1]."""
    return 2 * draw(torch.rand, image.new_empty(len(image), m), seeds) - 1


def ascend(attack: Parametrised, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
    """The most harmful image that `steps` signed steps visit, of each sample; the image itself counts as visited.

    Where anatomy moves, the output is carried back to be compared with the truth as it was: that has a gradient in
    the movement, which a truth that is carried along and decided again has not. Harm is measured the other way round:
    it compares the prediction on the moved image with the moved truth.
    """
    numbers = attack.start(image, seeds)
    best = judge(model, attack.ball, image, image, target)
    if attack.steps == 0:  # a control is the draw itself, be it harmless
        return _evaluate(attack, model, numbers, image, target, 1.0)[0]
    for step in range(attack.steps + 1):
        last = step == attack.steps
        numbers = numbers.detach().requires_grad_(not last)
        candidate, loss = _evaluate(attack, model, numbers, image, target, step / attack.steps)
        best |= candidate
        if not last:
            (grad,) = torch.autograd.grad(loss.sum(), numbers)
            numbers = (numbers + attack.step_size * grad.sign()).clamp(-1, 1)
    return best


def _evaluate(
    attack: Parametrised, model: Model, numbers: Numbers, image: Image, target: Mask, progress: float
) -> tuple[Adversarial, PerSample]:
    """The image of these numbers, judged, and the objective there."""
    with torch.set_grad_enabled(numbers.requires_grad):
        rendered = attack.render(numbers, image, progress)
        still = image if rendered.flow is None else warped(image, rendered.flow.detach())
        x = rendered.image + (attack.ball.project(rendered.image.detach(), still) - rendered.image.detach())
        log_odds = model(x)
        loss = attack.climbed(model)(carried_back(log_odds, rendered.back), target, progress)
        loss = loss if rendered.penalty is None else loss - rendered.penalty
    flow = None if rendered.flow is None else rendered.flow.detach()
    x = attack.ball.project(rendered.image.detach(), still)
    truth = moved(target, flow, model.task.exclusive)
    return judge_prediction(model, attack.ball, x, still, model.decide(log_odds.detach()), truth, flow), loss


def carried_back(log_odds: LogOdds, back: Flow | None) -> LogOdds:
    """Log-odds on the grid of the untouched image; as they are where nothing moved."""
    return log_odds if back is None else warped(log_odds, back)
