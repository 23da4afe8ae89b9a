"""The control that changes nothing: every other result is compared with it."""

from collections.abc import Sequence
from dataclasses import dataclass

from medseg_attack.attacks.judging import judge
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Adversarial, Image, Mask, Model


@register("clean", kind="attack", cost="1 forward, 0 backward", threat="no model", reaches="its ball")
@dataclass(frozen=True)
class Clean:
    """The untouched image, scored like any other result."""

    ball = Linf(0.0)

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        return judge(model, self.ball, image, image, target)
