"""The control that changes images at random, by as much as an attack may."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import require
from medseg_attack.numerics.samples import draw, draw_signs, widen
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model

DRAWS = ("sign", "uniform", "gaussian")


@register("noise", kind="attack", cost="1 forward, 0 backward", threat="no model", reaches="its ball")
@dataclass(frozen=True)
class Noise:
    """Random noise of the ball's size: what an attack does beyond it is due to its structure.

    Attributes:
        draw: "sign" draws random signs at full size, which have the norms of FGSM and are hence the fair control.
            "uniform" draws from the whole ball. "gaussian" draws with the root mean square of the uniform noise and
            is cut to the ball.

    Raises:
        InputError: `draw` is none of these.
    """

    ball: Ball = Linf()
    draw: str = "sign"

    def __post_init__(self) -> None:
        require(self, draw=DRAWS)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judge(model, self.ball, self._noisy(image, seeds), image, target)

    def _noisy(self, image: Image, seeds: Sequence[int]) -> Image:
        if self.draw == "sign":
            return self.ball.project(image + self.ball.step(draw_signs(image, seeds), image), image)
        uniform = self.ball.sample(image, seeds)
        if self.draw == "uniform":
            return uniform
        rms = widen((uniform - image).flatten(1).square().mean(1).sqrt(), image)
        return self.ball.project(image + rms * draw(torch.randn, image, [seed ^ 1 for seed in seeds]), image)
