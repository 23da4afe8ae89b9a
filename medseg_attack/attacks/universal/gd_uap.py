"""One perturbation for every image that is learned without any: it over-fills the network's layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.attacks.learning import Learning
from medseg_attack.attacks.universal.uap import Universal, usual_grid
from medseg_attack.errors import InputError, require
from medseg_attack.models.hidden_maps import maps_of
from medseg_attack.numerics.samples import TINY
from medseg_attack.registry import register
from medseg_attack.threat.balls.base import scale_of
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Ball, Batch, Model

GREY = 0.5  # what the perturbation is added to, as no image is known


@register(
    "gd_uap",
    kind="attack",
    cost="1 forward, 0 backward",
    threat="white box, without images",
    reaches="its ball",
    shown_by="gd_uap(steps=4)",
)
@dataclass(frozen=True)
class GdUap(Learning):
    """One perturbation for all images, learned without any: GD-UAP (Mopuri et al., TPAMI 2019, arXiv 1801.08092).

    Adam ascends the sum over hidden maps of the logarithm of each map's length, on the perturbation itself. The
    perturbation lies on mid-grey here, where the paper's networks take inputs around 0; maps are one of each size on
    the way to the deepest one, and the last one before the answer. Of images it takes the size alone. The last iterate
    is returned: the paper keeps the best on validation images, and scales the perturbation down where it saturates.

    Attributes:
        steps: of Adam, 1 or more.
        step_size: Adam's learning rate as a share of how far each value may go, above 0: eps in linf,
            eps / sqrt(n) in l2, 1 in l0.

    Raises:
        InputError: a field is out of range, or it is run before it was fitted.
    """

    ball: Ball = Linf(10 / 255)
    steps: int = 200
    step_size: float = 0.1

    def __post_init__(self) -> None:
        require(self, steps=1, step_size="(0, inf)")

    def fit(self, model: Model, batches: Sequence[Batch], seed: int) -> dict[str, Tensor]:
        """The learned perturbation as `change` (1, c, *grid); `seed` draws its start, uniform in the ball.

        Raises:
            InputError: there is no batch, whose grid is the one that most images have.
        """
        if not batches:
            raise InputError("expected images to fit gd_uap on, got none; prepare data with patients to train on")
        grid = usual_grid(batches)
        first = next(batch.image for batch in batches if tuple(batch.image.shape[2:]) == grid)[:1]
        ball, grey = self.ball.unrestricted, torch.full_like(first, GREY)
        change = (ball.sample(grey, [seed]) - grey).requires_grad_()
        adam = torch.optim.Adam([change], lr=max(self.step_size * float(scale_of(ball, grey).amax()), TINY))
        for _ in range(self.steps):
            maps = maps_of(model, (grey + change).clamp(0, 1))[1]
            filled = torch.stack([(each.square().sum() + TINY).log() / 2 for each in maps]).sum()
            (change.grad,) = torch.autograd.grad(-filled, change)
            adam.step()
            with torch.no_grad():
                change.copy_(ball.clipped(change))
        return {"change": change.detach()}

    def with_learned(self, learned: Mapping[str, Tensor]) -> Universal:
        """The attack that adds a learned perturbation."""
        return Universal(self.ball, "resize", learned["change"], bce)
