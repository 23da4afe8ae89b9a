"""The sign-gradient family: one loop, of which FGSM, BIM, PGD and MI-FGSM are configurations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from zlib import crc32

import torch

from medseg_attack.attacks.baselines import judged, scored
from medseg_attack.balls import TINY, Linf
from medseg_attack.errors import InputError
from medseg_attack.objectives import bce
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective


@register("pgd", kind="attack")
@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent (Madry et al., arXiv 1706.06083), keeping each sample's worst iterate.

    Attributes:
        step_size: of one step, as a fraction of the ball.
        momentum: decay of the accumulated direction (Dong et al., arXiv 1710.06081, eq. 6-7: each gradient is
            first divided by its mean magnitude, so the objective's scale does not matter).
        random_start: begin at a random point of the ball instead of at the image.
        restarts: independent runs, of which each sample keeps its worst.
        keep_worst: False returns the last iterate, as FGSM, BIM and MI-FGSM were published; True never returns
            anything less harmful than the untouched image.
    """

    ball: Ball = Linf()
    objective: Objective = bce
    steps: int = 20
    step_size: float = 0.25
    momentum: float = 0.0
    random_start: bool = True
    restarts: int = 1
    keep_worst: bool = True

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("restarts", 1), ("step_size", 0), ("momentum", 0)):
            if getattr(self, name) < least:
                raise InputError(f"expected {name} >= {least}, got {getattr(self, name)}; check the attack")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        runs = (self._climb(model, image, target, _reseeded(seeds, run)) for run in range(self.restarts))
        return reduce(or_, runs)

    def sweep(
        self, model: Model, image: Image, target: Mask, seeds: Sequence[int], balls: Sequence[Ball]
    ) -> Iterator[Adversarial]:
        """The same attack in several balls; a single step from the image shares one gradient among them."""
        if self.steps > 1 or self.random_start or self.keep_worst:
            yield from (replace(self, ball=ball)(model, image, target, seeds) for ball in balls)
            return
        direction = _scaled(self._gradient(model, image, target, 0.0)[1])
        for ball in balls:
            x = ball.project(image + self.step_size * ball.step(direction, image), image)
            yield judged(model, ball, x, image, target)

    def _climb(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        x = self.ball.sample(image, seeds) if self.random_start else image
        best = judged(model, self.ball, image, image, target) if self.keep_worst else None
        direction = torch.zeros_like(image)
        for step in range(self.steps):
            log_odds, grad = self._gradient(model, x, target, step / self.steps)
            if best is not None and (step or self.random_start):
                best |= scored(model, self.ball, x, image, model.decide(log_odds), target)
            direction = self.momentum * direction + _scaled(grad)
            x = self.ball.project(x + self.step_size * self.ball.step(direction, x), image)
        last = judged(model, self.ball, x, image, target)
        return last if best is None else best | last

    def _gradient(self, model: Model, x: Image, target: Mask, progress: float) -> tuple[LogOdds, Image]:
        x = x.detach().requires_grad_()
        log_odds = model(x)
        loss = self.objective(log_odds, target, progress).sum()
        return log_odds.detach(), torch.autograd.grad(loss, x)[0]


def _scaled(grad: Image) -> Image:
    """Each sample's gradient divided by its mean magnitude; a zero gradient stays zero."""
    return grad / (grad.abs().mean(tuple(range(1, grad.ndim)), keepdim=True) + TINY)


def _reseeded(seeds: Sequence[int], run: int) -> list[int]:
    return [crc32(f"{seed}/{run}".encode()) for seed in seeds] if run else list(seeds)


@register("fgsm", kind="attack")
def fgsm(ball: Ball = Linf(), objective: Objective = bce) -> PGD:
    """One full step along the gradient (Goodfellow et al., arXiv 1412.6572)."""
    return PGD(ball, objective, steps=1, step_size=1.0, random_start=False, keep_worst=False)


@register("bim", kind="attack")
def bim(ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, step_size: float = 0.25) -> PGD:
    """FGSM in small steps (Kurakin et al., arXiv 1607.02533): PGD from the image itself, last iterate."""
    return PGD(ball, objective, steps, step_size, random_start=False, keep_worst=False)


@register("mi_fgsm", kind="attack")
def mi_fgsm(ball: Ball = Linf(), objective: Objective = bce, steps: int = 10, momentum: float = 1.0) -> PGD:
    """BIM with momentum (Dong et al., arXiv 1710.06081), steps of 1/steps of the ball."""
    return PGD(ball, objective, steps, 1 / steps, momentum, random_start=False, keep_worst=False)
