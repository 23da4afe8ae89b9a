"""The boundary attack, which sees the masks that a model decides on, no scores and no gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import stretched, zeros
from medseg_attack.numerics.samples import draw, reseeded, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import even_change
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample

# queries: images to begin from; images between the best of them and the untouched one
STARTS, HALVINGS = 4, 8
LEAST = 1 + STARTS + HALVINGS + 2  # with the untouched image, one step and the result


@register(
    "boundary",
    kind="attack",
    cost="queries forward, 0 backward",
    threat="queries, decisions alone",
    reaches="its ball",
    shown_by="boundary(linf(0.1), queries=90)",
)
@dataclass(frozen=True)
class Boundary:
    """A walk from a ruined image towards the untouched one, guided by masks alone (Brendel et al., arXiv 1712.04248).

    An image is adversarial if its Dice is at most `goal` times that of the untouched image. The walk begins at the
    best of four starts (inverse, black, white, random), moved towards the untouched image by halvings. Each query then
    tries a change that is smaller by `shrink` and moved by low-frequency noise, and keeps it if it is still
    adversarial. Both lengths adapt to how often that happens (the paper's two steps, with the norm of the ball in
    place of L2). Inside the ball the walk looks for more harm. The result's `success` says whether the ball was
    reached. Where it was not, the walk's last image is cut to the ball, and the untouched image is returned if that
    does no harm.

    Attributes:
        queries: number of times that the model may be asked about each image, the untouched one and the result
            included; 15 or more.
        goal: share of the untouched image's Dice that an adversarial image may have, between 0 and 1.
        spread: length of the noise at first, as a share of the distance that is left, between 0 and 1.
        shrink: share by which a step shortens the distance at first, between 0 and 1.
        grid: number of the noise's values per axis, 0 or more; 0 is one per pixel.

    Raises:
        InputError: a field is out of range.
    """

    ball: Ball = Linf()
    queries: int = 1000
    goal: float = 0.5
    spread: float = 0.3
    shrink: float = 0.1
    grid: int = 8

    def __post_init__(self) -> None:
        if self.queries < LEAST:
            raise InputError(
                f"expected queries >= {LEAST} for one step, got {self.queries}; write queries={LEAST} or more"
            )
        require(self, goal="(0, 1)", spread="(0, 1)", shrink="(0, 1)", grid=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        clean = judge(model, self.ball, image, image, target)
        need = 1 - self.goal * (1 - clean.harm)  # harm from which an image is adversarial
        walk = self._start(model, image, target, seeds, need)
        even = even_change(self.ball, image) / (self.ball.eps or 1.0)  # so that the noise has the length in any norm
        spread, shrink = torch.full_like(need, self.spread), torch.full_like(need, self.shrink)
        for step in range(self.queries - LEAST + 1):
            inside = walk.size <= self.ball.eps
            size = torch.where(inside, torch.full_like(shrink, self.ball.eps), walk.size * (1 - shrink))
            coarse = draw(torch.randn, zeros(image, self.grid), reseeded(seeds, step))
            noise = widen(spread * walk.size, image) * even * stretched(coarse, tuple(image.shape[2:]))
            trial = self._evaluate(model, image, target, _cut(self.ball, walk.image - image + noise, size))
            better = torch.where(
                inside,
                (trial.harm > walk.harm) & (trial.size <= self.ball.eps),
                (trial.harm >= need) & (trial.size < walk.size),
            )
            walk = walk.where(better, trial)
            spread = (spread * torch.where(better, 1.1, 0.97)).clamp(1e-3, 1)
            shrink = (shrink * torch.where(better, 1.3, 0.9)).clamp(1e-3, 0.5)
        best = clean | judge(model, self.ball, self.ball.project(walk.image, image), image, target)
        return Adversarial(best.image, best.harm, best.size, success=best.harm >= need)

    def _start(self, model: Model, image: Image, target: Mask, seeds: Sequence[int], need: PerSample) -> Adversarial:
        """The nearest adversarial image on the way from the most harmful start to the untouched image."""
        random = draw(torch.rand, image, seeds)
        fixed = ~self.ball.free(image)
        starts = [
            (start - image).masked_fill(fixed, 0)
            for start in (1 - image, torch.zeros_like(image), torch.ones_like(image), random)
        ]
        nearest = self._evaluate(model, image, target, starts[0])
        for start in starts[1:]:
            trial = self._evaluate(model, image, target, start)
            nearest = nearest.where(trial.harm > nearest.harm, trial)
        low, high, change = torch.zeros_like(need), torch.ones_like(need), nearest.image - image
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            trial = self._evaluate(model, image, target, widen(middle, image) * change)
            harmful = trial.harm >= need
            nearest = nearest.where(harmful, trial)
            low, high = torch.where(harmful, low, middle), torch.where(harmful, middle, high)
        return nearest

    def _evaluate(self, model: Model, image: Image, target: Mask, change: Tensor) -> Adversarial:
        """The changed image, cut to [0, 1], with its harm and the change's size; one query."""
        return judge(model, self.ball, (image + change).clamp(0, 1), image, target)


def _cut(ball: Ball, change: Tensor, sizes: PerSample) -> Tensor:
    """The change cut to a ball of another radius in each sample, in `sizes`: scaled to `ball`'s radius and back."""
    scale = widen(ball.eps / sizes.clamp(min=1e-12), change)
    return ball.clipped(change * scale) / scale if ball.eps > 0 else torch.zeros_like(change)
