"""The step of the code released with arXiv 2401.11224, as a named variant beside the textbook `fgsm`.

It differs from FGSM in three ways, each of which can be had alone here: it blends the image with the signs instead
of adding them (`Blend`), it hands mask and output to the loss in swapped order (the `*_swapped` objectives), and it
perturbs the three copies of a grey image independently (which no scan can carry).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from medseg_attack.attacks.baselines import judged
from medseg_attack.balls import Linf, drawn
from medseg_attack.errors import InputError
from medseg_attack.objectives import bce, dice_focal, focal, soft_dice
from medseg_attack.registry import About, register, spec
from medseg_attack.types import Adversarial, Ball, Image, LogOdds, Mask, Model, Objective, PerSample


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
        return self.project(x0 + self.step(drawn(torch.rand, x0, seeds) - 0.5, x0), x0)


@register("bce_swapped", kind="objective")
def bce_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """BCE-with-logits(input=mask, target=log-odds): its gradient is -mask/N at every confidence."""
    y = target.to(log_odds.dtype)
    return (F.softplus(y) - y * log_odds).flatten(1).mean(1)


@register("focal_swapped", kind="objective")
def focal_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, gamma: float = 2.0) -> PerSample:
    """MONAI's sigmoid focal loss(input=mask, target=log-odds): pushes only organ pixels below log-odds of 1.59."""
    y = target.to(log_odds.dtype)
    weight = torch.sigmoid(-y * (2 * log_odds - 1)) ** gamma
    return (weight * (F.softplus(y) - y * log_odds)).flatten(1).mean(1)


@register("dice_swapped", kind="objective")
def dice_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0, *, smooth: float = 1e-5) -> PerSample:
    """MONAI's sigmoid Dice loss(input=mask, target=log-odds): the sigmoid falls on the mask."""
    a, z = torch.sigmoid(target.to(log_odds.dtype)).flatten(2), log_odds.flatten(2)
    ratio = (2 * (a * z).sum(2) + smooth) / (a.sum(2) + z.sum(2) + smooth)
    return (1 - ratio).mean(1)


@register("dice_focal_swapped", kind="objective")
def dice_focal_swapped(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """dice_swapped + focal_swapped."""
    return dice_swapped(log_odds, target) + focal_swapped(log_odds, target)


SWAPPED: dict[Objective, Objective] = {
    bce: bce_swapped,
    focal: focal_swapped,
    soft_dice: dice_swapped,
    dice_focal: dice_focal_swapped,
}


@register("fgsm_wang2024", kind="attack", about=About(paper="Wang & Xu, arXiv 2401.11224, as released"))
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
        return judged(model, self.ball, moved, copies, target)
