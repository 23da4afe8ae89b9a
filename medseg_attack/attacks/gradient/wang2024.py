"""The step of the code released with arXiv 2401.11224, as a named variant beside the textbook `fgsm`.

It differs from FGSM in three ways, each of which can be had alone here: it blends the image with the signs instead
of adding them (`Blend`), it hands mask and output to the loss in swapped order (the `*_swapped` objectives), and it
perturbs the three copies of a grey image independently (which no scan can carry).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg_attack.attacks.judging import judge
from medseg_attack.errors import InputError
from medseg_attack.numerics.samples import draw
from medseg_attack.registry import About, register, spec
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.threat.objectives.swapped import SWAPPED
from medseg_attack.types import Adversarial, Ball, Image, Mask, Model, Objective


@register("blend", kind="ball")
@dataclass(frozen=True)
class Blend(Linf):
    """(1 - eps) x + eps sign(g), cut to [0, 1]: moves bright pixels down by up to 2 eps, and darkens where g = 0."""

    eps: float = 0.009

    @property
    def limit(self) -> float:
        return 2 * self.eps

    def step(self, grad: Image, image: Image) -> Image:
        return self.eps * (grad.sign() - image)

    def project(self, x: Image, x0: Image) -> Image:
        return x.clamp(0, 1)

    def sample(self, x0: Image, seeds: Sequence[int]) -> Image:
        return self.project(x0 + self.step(draw(torch.rand, x0, seeds) - 0.5, x0), x0)


@register(
    "fgsm_wang2024",
    kind="attack",
    about=About(
        paper="Wang & Xu, arXiv 2401.11224, as released", reaches="its ball", shown_by="fgsm_wang2024(channels=1)"
    ),
)
@dataclass(frozen=True)
class FgsmWang2024:
    """One blended step with swapped arguments on three independent copies of the grey channel.

    The result has three channels and cannot be stored as a scan. The network must take three channels. A scan of
    several channels is not copied: its own are perturbed, and it can be stored.

    Attributes:
        objective: as the paper calls it; what is climbed is its swapped form.
        swapped: False hands the arguments over in the right order, to tell what the swap alone does.
    """

    ball: Ball = Blend()
    objective: Objective = bce
    swapped: bool = True
    channels: int = 3

    def __post_init__(self) -> None:
        if self.swapped and self.objective not in SWAPPED:
            known = ", ".join(map(spec, SWAPPED))
            raise InputError(
                f"expected an objective that the paper used ({known}), got {spec(self.objective)}; or set swapped=False"
            )

    def __call__(self, model: Model, image: Image, target: Mask, seeds: Sequence[int]) -> Adversarial:
        copies = image.expand(-1, self.channels, *image.shape[2:]) if image.shape[1] == 1 else image
        x = copies.detach().clone().requires_grad_()
        objective = SWAPPED[self.objective] if self.swapped else self.objective
        (grad,) = torch.autograd.grad(objective(model(x), target, 0.0).sum(), x)
        moved = self.ball.project(copies + self.ball.step(grad, copies), copies)
        return judge(model, self.ball, moved, copies, target)
