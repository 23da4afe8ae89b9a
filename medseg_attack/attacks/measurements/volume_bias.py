"""An attack on a measurement: the volume of an organ, or the ejection fraction of two phases of a heart."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.attacks.judging import judge_prediction
from medseg_attack.errors import InputError, nearest, require
from medseg_attack.registry import register
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.organs import organ_classes
from medseg_attack.types import Adversarial, Ball, Bindable, Image, Mask, Model, Setting

AIMS = ("larger", "smaller", "more ejected", "less ejected")


@register("volume_bias", kind="attack", cost="steps + 1 forward, steps backward", reaches="its ball")
@dataclass(frozen=True)
class VolumeBias(Bindable):
    """Gradient ascent on the soft volume of an organ; the iterate whose mask is the largest, or the smallest.

    What a clinic measures is attacked, and not the overlap with the truth (the attack on a regressed number of Li et
    al. 2020, as a segmentation has it). A pixel's gradient is `p (1 - p)` times that of its log-odds, whether the
    pixel is right or wrong. A scan's volume is the sum of its slices', so that each slice is attacked by itself.

    Attributes:
        organ: name of a class of the task; "": all organs together.
        aim: "larger" or "smaller" volume; for a heart in two phases "more ejected" (larger at end diastole, smaller at
            end systole) or "less ejected".
        steps: gradients, 1 or more.
        step_size: part of the ball that a step takes.

    Raises:
        InputError: the task has no organ of that name, or the phase of a scan is not known.
    """

    ball: Ball = Linf()
    organ: str = ""
    aim: str = "larger"
    steps: int = 40
    step_size: float = 0.25

    def __post_init__(self) -> None:
        require(self, steps=1, step_size=0)
        if self.aim not in AIMS:
            raise InputError(f"expected an aim of volume_bias, got {self.aim!r}; {nearest(self.aim, AIMS)}")

    def prepare(self, setting: Setting) -> None:
        unknown = [case.id for case in setting.cases if not case.phase]
        if self.aim.endswith("ejected") and unknown:
            raise InputError(
                f"expected cases at end diastole or end systole for aim={self.aim!r}, got {unknown[0]} of no phase; "
                "prepare a data set that says the phase, such as ACDC with its Info.cfg, or write aim='smaller'"
            )

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        classes, sign = organ_classes(model.task, self.organ, "volume_bias"), self._sign(image)
        x, best, most = image, None, torch.full((len(image),), -torch.inf, dtype=torch.float64, device=image.device)
        for step in range(self.steps + 1):
            with torch.set_grad_enabled(step < self.steps):
                x = x.detach().requires_grad_(step < self.steps)
                log_odds = model(x)
            pred = model.decide(log_odds.detach())
            judged = judge_prediction(model, self.ball, x, image, pred, target)
            volume = sign.double() * pred[:, classes].flatten(1).sum(1)
            best = judged if best is None else best.where(volume > most, judged)
            most = torch.maximum(most, volume)
            if step < self.steps:
                soft = sign * log_odds[:, classes].sigmoid().flatten(1).sum(1)
                (grad,) = torch.autograd.grad(soft.sum(), x)
                x = self.ball.project(x.detach() + self.step_size * self.ball.step(grad, x.detach()), image)
        assert best is not None
        return best

    def _sign(self, image: Image) -> Float[Tensor, "b"]:
        """1 for each sample whose volume is to grow, -1 where it is to shrink."""
        if not self.aim.endswith("ejected"):
            return image.new_full((len(image),), 1.0 if self.aim == "larger" else -1.0)
        if self.setting is None or len(self.setting.cases) != len(image):
            raise InputError(f"expected volume_bias with aim={self.aim!r} to be bound to its cases; attack a data set")
        grows = "ED" if self.aim == "more ejected" else "ES"
        return image.new_tensor([1.0 if case.phase == grows else -1.0 for case in self.setting.cases])
