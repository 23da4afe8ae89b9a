"""Patches: all intensities of a small area may change, wherever and however it lies; the rest is scored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.attacks.climbing import Climbing
from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.attacks.physical.ascent import require_ball
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import register
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, PerSample

SURE = 50.0  # log-odds of pixels that are left out: no objective gains from them


@register("area", kind="ball")
@dataclass(frozen=True)
class Area(Ball):
    """At most a share `eps` of the pixels may change, each to any intensity; they are not scored.

    Attributes:
        eps: share of the image's area, from 0 to below 1.
        margin: width in pixels, 0 or more, of the rim around them that is not scored either.

    Raises:
        InputError: `eps` is no share of the image that a patch may have, or `margin` is below 0.
    """

    unit = "share of the image's area"
    restrictable = False

    eps: float = 0.02
    margin: int = 0

    def __post_init__(self) -> None:
        require(self)
        if not 0 <= self.eps < 1 or self.margin < 0:
            raise InputError(
                f"expected a patch smaller than the image, eps from 0 to 1 of its area, and a margin >= 0, got "
                f"{self.eps:g} and {self.margin}; write area(0.02)"
            )

    def step(self, grad: Image, image: Image) -> Image:
        return grad.sign()

    def project(self, x: Image, x0: Image) -> Image:
        """`x` with as many of its largest changes as fit into the area; elsewhere `x0`."""
        change = (x - x0).abs().amax(1, keepdim=True)
        return torch.where(_largest(change, self._pixels(x0)), x, x0).clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(draw(torch.rand, x0, seeds), x0)

    def size(self, x: Image, x0: Image) -> PerSample:
        return (x != x0).any(1).flatten(1).to(x).mean(1)

    def covered(self, x: Image, x0: Image) -> Bool[Tensor, "b 1 *s"]:
        changed = (x != x0).any(1, keepdim=True)
        pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        return pool(changed.to(x), 2 * self.margin + 1, 1, self.margin) > 0

    def _pixels(self, x0: Image) -> int:
        return math.floor(self.eps * x0[0, 0].numel() + 1e-6)


def _largest(value: Float[Tensor, "b 1 *s"], n: int) -> Bool[Tensor, "b 1 *s"]:
    """Marks the `n` largest values of each sample, of those above 0."""
    flat = value.flatten(1)
    chosen = torch.zeros_like(flat, dtype=torch.bool).scatter(1, flat.topk(n, 1).indices, True)
    return (chosen & (flat > 0)).view_as(value)


@register(
    "patch",
    kind="attack",
    cost="steps * samples + 1 forward, steps * samples backward",
    reaches="its ball",
    shown_by="patch(steps=3)",
)
@dataclass(frozen=True)
class Patch(Climbing):
    """A patch that harms at any place, turn and size (EOT; Brown et al., arXiv 1712.09665; Nesti et al., WACV 2022).

    Every image has a square of its own. Signed steps on its pixels fit it to random placements; then it is put down
    once more at a random place that it was not fitted to. While it is fitted, the model counts as right below it; the
    loop leaves those pixels out of truth and predictions, clean and attacked. In 3-D it is a cube, turned in plane.

    Attributes:
        ball: `area`, which says how large the patch is.
        steps: of signed ascent on its pixels, 0 or more; 0 leaves a random patch, which is the control.
        step_size: change of every pixel of the patch in a step, absolute, 0 or more, in intensities of [0, 1].
        samples: number of random placements in each step, 1 or more.
        degrees: largest rotation to either side, in degrees, 0 or more.
        scale: share by which a placement may be smaller than the ball allows along each axis, from 0 to below 1.

    Raises:
        InputError: a field is out of range, or the patch is as large as the image.
    """

    ball: Ball = Area()
    steps: int = 40
    step_size: float = 0.1
    samples: int = 4
    degrees: float = 22.5
    scale: float = 0.2

    def __post_init__(self) -> None:
        require(self, steps=0, step_size=0, samples=1, degrees=0, scale=0)
        if self.scale >= 1:
            raise InputError(f"expected 0 <= scale < 1, got {self.scale}; write a smaller one, such as 0.2")
        require_ball(self.ball, Area, "the ball area for patch", "area(0.02)")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        n = self._pixels_of_side(image)
        texture = draw(torch.rand, image.new_empty(len(image), image.shape[1], *(n for _ in image.shape[2:])), seeds)
        objective = self.climbed(model)
        for step in range(self.steps):
            texture = texture.detach().requires_grad_()
            loss = torch.zeros_like(image[:, 0].flatten(1)[:, 0])
            for sample in range(self.samples):
                x, under = self._placed(texture, image, seeds, f"{step}/{sample}")
                loss = loss + objective(_right(model(x), target, under), target, step / self.steps)
            (grad,) = torch.autograd.grad(loss.sum(), texture)
            texture = (texture + self.step_size * grad.sign()).clamp(0, 1)
        x, _ = self._placed(texture.detach(), image, seeds, "last")
        with torch.no_grad():
            pred = model.decide(model(x))
        scored = ~self.ball.covered(x, image)
        return judge_prediction(model, self.ball, x, image, pred & scored, target & scored)

    def control(self) -> "Patch":
        """A random patch."""
        return replace(self, steps=0)

    def _pixels_of_side(self, image: Image) -> int:
        """The side of the patch in its own pixels; refuses one that is longer than the image."""
        side = self._side(image)
        if side > min(image.shape[2:]):
            raise InputError(
                f"expected a patch smaller than the image, got a side of {side:.1f} pixels in an image of "
                f"{tuple(image.shape[2:])}; take a smaller eps"
            )
        return max(2, math.ceil(side))

    def _side(self, image: Image) -> float:
        return float((self.ball.eps * image[0, 0].numel()) ** (1 / (image.ndim - 2)))

    def _placed(
        self, texture: Tensor, image: Image, seeds: Sequence[int], which: str
    ) -> tuple[Image, Bool[Tensor, "b 1 *s"]]:
        """The image with the patch on it at a place drawn for `which`, and the pixels below it."""
        coordinates = self._coordinates(image, [crc32(f"{seed}/{which}".encode()) for seed in seeds])
        # rotated, a square holds more pixels than its area on some places: the outermost give way
        depth = 1 - coordinates.abs().amax(1, keepdim=True)
        under = _largest(depth.clamp(min=0), self.ball._pixels(image))  # type: ignore[attr-defined]
        resampled = F.grid_sample(
            texture, coordinates.flip(1).movedim(1, -1), align_corners=False, padding_mode="border"
        )
        return torch.where(under, resampled, image), under

    def _coordinates(self, image: Image, seeds: Sequence[int]) -> Float[Tensor, "b n *s"]:
        """The place of each pixel on the patch, which reaches from -1 to 1 along each axis."""
        axes, b = image.ndim - 2, len(image)
        numbers = draw(torch.rand, image.new_empty(b, 2 + axes), seeds)
        one_per_sample = (b, *(1 for _ in range(axes)))
        angle = math.radians(self.degrees) * (2 * numbers[:, 0] - 1)
        half = self._side(image) / 2 * (1 - self.scale * numbers[:, 1])
        places = []
        for axis, n in enumerate(image.shape[2:]):
            half_extent = half * (angle.cos() + angle.sin().abs()) if axis >= axes - 2 else half
            room = (n / 2 - half_extent).clamp(min=0)
            middle = (n - 1) / 2 + room * (2 * numbers[:, 2 + axis] - 1)
            along = torch.arange(n, device=image.device, dtype=image.dtype)
            along = along.view(1, *(n if other == axis else 1 for other in range(axes)))
            places.append((along - middle.view(one_per_sample)).expand(b, *image.shape[2:]))
        y, x = places[-2:]
        cos, sin = angle.cos().view(one_per_sample), angle.sin().view(one_per_sample)
        places[-2:] = [cos * y - sin * x, sin * y + cos * x]
        return torch.stack(places, 1) / half.clamp(min=1e-6).view(b, 1, *(1 for _ in range(axes)))


def _right(log_odds: LogOdds, target: Mask, under: Bool[Tensor, "b 1 *s"]) -> LogOdds:
    """Log-odds in which the model counts as right where the patch lies."""
    return torch.where(under, torch.where(target, SURE, -SURE).to(log_odds), log_odds)
