"""What every attack must beat: no change, and change without a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.balls import Linf, drawn
from medseg_attack.errors import InputError
from medseg_attack.objectives import harm
from medseg_attack.registry import About, register
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model

DRAWS = ("sign", "uniform", "gaussian")


def judged(model: Model, ball: Ball, x: Image, image: Image, target: Mask) -> Adversarial:
    """`x` with its harm on the classes that tables report, and its size."""
    with torch.no_grad():
        pred = model.decide(model(x))
    return scored(model, ball, x, image, pred, target)


def scored(model: Model, ball: Ball, x: Image, image: Image, pred: Mask, target: Mask) -> Adversarial:
    """`x` with its harm, where the prediction on it is already known."""
    classes = list(model.task.scored)
    return Adversarial(x.detach(), harm(pred[:, classes], target[:, classes]).to(x), ball.size(x.detach(), image))


@register("clean", kind="attack", about=About(threat="no model"))
@dataclass(frozen=True)
class Clean:
    """The untouched image."""

    @property
    def ball(self) -> Ball:
        return Linf(0.0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judged(model, self.ball, image, image, target)


@register("noise", kind="attack", about=About(threat="no model"))
@dataclass(frozen=True)
class Noise:
    """Random change of the ball's size: the control that says what of an attack's effect is mere disturbance.

    Attributes:
        draw: "sign" (random signs at full size: the same norms as FGSM, hence the fair control), "uniform" (in the
            ball) or "gaussian" (the uniform draw's root mean square, cut to the ball).
    """

    ball: Ball = Linf()
    draw: str = "sign"

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise InputError(f"expected draw to be one of {', '.join(DRAWS)}, got {self.draw!r}; check it")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judged(model, self.ball, self._drawn(image, seeds), image, target)

    def _drawn(self, image: Image, seeds: Sequence[int]) -> Image:
        if self.draw == "sign":
            signs = (drawn(torch.rand, image, seeds) < 0.5).to(image) * 2 - 1
            return self.ball.project(image + self.ball.step(signs, image), image)
        uniform = self.ball.sample(image, seeds)
        if self.draw == "uniform":
            return uniform
        rms = (uniform - image).flatten(1).square().mean(1).sqrt().view(-1, *(1 for _ in image.shape[1:]))
        return self.ball.project(image + rms * drawn(torch.randn, image, [seed ^ 1 for seed in seeds]), image)
