"""Random change of the size that an attack may have."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.registry import About, register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model

DRAWS = ("sign", "uniform", "gaussian")


@register("noise", kind="attack", about=About(threat="no model", reaches="its ball"))
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
            raise InputError(f"expected draw to be one of {', '.join(DRAWS)}, got {self.draw!r}; write one of them")

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judge(model, self.ball, self._drawn(image, seeds), image, target)

    def _drawn(self, image: Image, seeds: Sequence[int]) -> Image:
        if self.draw == "sign":
            signs = (draw(torch.rand, image, seeds) < 0.5).to(image) * 2 - 1
            return self.ball.project(image + self.ball.step(signs, image), image)
        uniform = self.ball.sample(image, seeds)
        if self.draw == "uniform":
            return uniform
        rms = widen((uniform - image).flatten(1).square().mean(1).sqrt(), image)
        return self.ball.project(image + rms * draw(torch.randn, image, [seed ^ 1 for seed in seeds]), image)
