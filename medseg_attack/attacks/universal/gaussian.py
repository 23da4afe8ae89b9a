"""One Gaussian noise pattern for every image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import DRAWS, InputError, require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model


@register(
    "uap_gaussian",
    kind="attack",
    cost="1 forward, 0 backward",
    paper="Cheng & Ji, IEEE Access 8:206009, 2020",
    threat="no model",
    reaches="its ball",
)
@dataclass(frozen=True)
class GaussianUAP:
    """One Gaussian noise pattern for every patient, cut to the ball (Cheng & Ji, IEEE Access 8:206009, 2020).

    The ball `channels(linf(4/255), channels=(0, 2))` puts it on these modalities only. Images of one grid get one
    pattern; images of another grid get another.

    Attributes:
        deviation: standard deviation of the pattern as a share of eps, above 0.
        draw: seed of the pattern, from 0 to 4294967295.

    Raises:
        InputError: a field is out of range.
    """

    ball: Ball = Linf()
    deviation: float = 0.5
    draw: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.deviation < math.inf:
            raise InputError(f"expected deviation above 0, got {self.deviation}; write a larger one")
        require(self, draw=DRAWS)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        rng = torch.Generator().manual_seed(self.draw)
        pattern = torch.randn(image.shape[1:], generator=rng, dtype=torch.float64).to(image)
        x = self.ball.project(image + self.deviation * self.ball.eps * pattern, image)
        return judge(model, self.ball, x, image, target)
