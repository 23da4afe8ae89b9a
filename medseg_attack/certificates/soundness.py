"""The check of a certificate by an attack: no change within the radius may contradict the bound."""

import torch

from medseg_attack.numerics.samples import draw, length, reseeded
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Batch, Image, Model, Setting

STEPS, PASSES = 20, 4


def worst_within(
    model: Model, scan: Batch, sigma: float, radius: float, seed: int, *, steps: int = STEPS, passes: int = PASSES
) -> Image:
    """The scan changed by at most `radius` in L2 over all of its slices, so that the noisy model does worse.

    PGD in L2 on the soft Dice loss, whose gradient is averaged over `passes` draws of noise in each step (expectation
    over transformation, Athalye et al. 2018). Steps are 2.5 radius / steps long.
    """
    model = bind(model, Setting(model.task, scan.cases))
    seeds = [reseeded([seed], case.id, "attack")[0] for case in scan.cases]
    change = torch.zeros_like(scan.image)
    for step in range(steps):
        grad = torch.zeros_like(change)
        for number in range(passes):
            noise = sigma * draw(torch.randn, change, reseeded(seeds, step, number))
            x = (scan.image + change + noise).requires_grad_()
            loss = soft_dice(model(x), scan.target)
            grad += torch.autograd.grad(loss.sum(), x)[0]
        change = change + 2.5 * radius / steps * grad / _norm(grad).clamp(min=1e-12)
        change = change * (radius / _norm(change).clamp(min=radius))
    return scan.image + change


def _norm(change: Image) -> torch.Tensor:
    """The length of the change of a whole scan."""
    return length(change.unsqueeze(0))[0]
