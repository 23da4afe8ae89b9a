"""An attack that sees decisions alone: hard masks, no scores, no gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.fields import stretched, zeros
from medseg_attack.numerics.samples import draw, reseeded, widen
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, PerSample

STARTS, HALVINGS = 4, 8  # queries: images to begin from; between the best of them and the untouched image


LEAST = 1 + STARTS + HALVINGS + 2  # with the untouched image, one step and the result


@register(
    "boundary",
    kind="attack",
    about=About(threat="queries, decisions alone", reaches="its ball", shown_by="boundary(linf(0.1), queries=90)"),
)
@dataclass(frozen=True)
class Boundary:
    """A walk from a ruined image towards the untouched one (Brendel et al., arXiv 1712.04248), on hard masks.

    An image is adversarial if its Dice is below `goal` times that of the untouched image. From the best of four
    starts (inverse, black, white, random) and halvings of the way, each query tries a change that is smaller by
    `shrink` and moved by low-frequency noise, and keeps it if it is adversarial still; both lengths adapt to what is
    kept (the paper's two steps, with the norm of the ball in place of L2). Once inside the ball, it looks for more
    harm there. `success` says whether the ball was reached; where it was not, the walk's last image is cut to the
    ball, and the untouched one is returned if that does no harm.

    Attributes:
        queries: that the model may be asked about each image, all included.
        goal: of the untouched image's Dice.
        spread: of the noise at first, as a fraction of the distance that is left.
        shrink: of the distance at first.
        grid: values per axis of the noise; 0: every pixel.
    """

    ball: Ball = Linf()
    queries: int = 1000
    goal: float = 0.5
    spread: float = 0.3
    shrink: float = 0.1
    grid: int = 8

    def __post_init__(self) -> None:
        if self.queries < LEAST:
            raise InputError(f"expected queries >= {LEAST} to begin with, got {self.queries}; allow more")
        for name, value in (("goal", self.goal), ("spread", self.spread), ("shrink", self.shrink)):
            if not 0 < value < 1:
                raise InputError(f"expected 0 < {name} < 1, got {value}; write {name}=0.5")
        require(self, grid=0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        clean = judge(model, self.ball, image, image, target)
        need = 1 - self.goal * (1 - clean.harm)  # harm from which an image is adversarial
        at = self._begun(model, image, target, seeds, need)
        spread, shrink = torch.full_like(need, self.spread), torch.full_like(need, self.shrink)
        for step in range(self.queries - LEAST + 1):
            inside = at.far <= self.ball.eps
            aim = torch.where(inside, torch.full_like(shrink, self.ball.eps), at.far * (1 - shrink))
            noise = widen(spread * at.far, image) * self._noise(image, reseeded(seeds, step))
            tried = self._at(model, image, target, _cut(self.ball, at.image - image + noise, aim))
            better = torch.where(
                inside,
                (tried.harm > at.harm) & (tried.far <= self.ball.eps),
                (tried.harm >= need) & (tried.far < at.far),
            )
            at = _taken(better, tried, at)
            spread = (spread * torch.where(better, 1.1, 0.97)).clamp(1e-3, 1)
            shrink = (shrink * torch.where(better, 1.3, 0.9)).clamp(1e-3, 0.5)
        best = clean | judge(model, self.ball, self.ball.project(at.image, image), image, target)
        return Adversarial(best.image, best.harm, best.size, success=best.harm >= need)

    def _begun(self, model: Model, image: Image, target: Mask, seeds: Sequence[int], need: PerSample) -> "_Place":
        """The nearest adversarial image on the way from the most harmful start to the untouched image."""
        random = draw(torch.rand, image, seeds)
        held_still = ~self.ball.free(image)
        starts = [
            (start - image).masked_fill(held_still, 0)
            for start in (1 - image, torch.zeros_like(image), torch.ones_like(image), random)
        ]
        at = self._at(model, image, target, starts[0])
        for start in starts[1:]:
            tried = self._at(model, image, target, start)
            at = _taken(tried.harm > at.harm, tried, at)
        low = torch.zeros_like(need)
        high, whole = torch.ones_like(need), at.image - image
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = self._at(model, image, target, widen(middle, image) * whole)
            good = tried.harm >= need
            at, low, high = _taken(good, tried, at), torch.where(good, low, middle), torch.where(good, middle, high)
        return at

    def _at(self, model: Model, image: Image, target: Mask, change: Tensor) -> "_Place":
        x = (image + change).clamp(0, 1)
        found = judge(model, self.ball, x, image, target)
        return _Place(found.image, found.harm, found.size)

    def _noise(self, image: Image, seeds: Sequence[int]) -> Tensor:
        return stretched(draw(torch.randn, zeros(image, self.grid), seeds), tuple(image.shape[2:]))


class _Place(NamedTuple):
    """Where the walk is: the image, its harm, and how far it is from the untouched one in the ball's norm."""

    image: Tensor
    harm: Tensor
    far: Tensor


def _taken(take: Tensor, theirs: _Place, ours: _Place) -> _Place:
    return _Place(*(torch.where(widen(take, a), a, b) for a, b in zip(theirs, ours, strict=True)))


def _cut(ball: Ball, change: Tensor, sizes: PerSample) -> Tensor:
    """The change cut to a ball of that size, another for every sample: scaled to `ball`'s own, and back."""
    scale = widen(ball.eps / sizes.clamp(min=1e-12), change)
    return ball.clipped(change * scale) / scale if ball.eps > 0 else torch.zeros_like(change)
