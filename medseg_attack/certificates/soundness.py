"""Attacks that check certificates: no change within the radius may contradict the bound."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from medseg_attack.numerics.samples import TINY, draw, gradient_of, length, reseeded
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Batch, Image, LogOdds, Mask, Model, Setting

STEPS, PASSES = 20, 4
Climbed: TypeAlias = Callable[[LogOdds, Mask], Tensor]


def worst_within(
    model: Model,
    scan: Batch,
    sigma: float,
    radius: float,
    seed: int,
    objective: Climbed = soft_dice,
    *,
    steps: int = STEPS,
) -> Image:
    """The scan changed by at most `radius` in L2 over all of its slices, so that the noisy model does worse.

    PGD in L2 on the objective, whose gradient is averaged over 4 draws of noise in each step (expectation
    over transformation, Athalye et al. 2018). Steps are 2.5 radius / steps long. Without noise, one pass is enough.

    Args:
        objective: from log-odds and truth to numbers, whose sum is climbed.
    """
    model = bind(model, Setting(model.task, scan.cases))
    seeds = [reseeded([seed], case.id, "attack")[0] for case in scan.cases]
    change = torch.zeros_like(scan.image)
    for step in range(steps):
        grad = torch.zeros_like(change)
        for number in range(PASSES if sigma else 1):
            noise = sigma * draw(torch.randn, change, reseeded(seeds, step, number)) if sigma else 0.0
            x = (scan.image + change + noise).requires_grad_()
            grad += gradient_of(objective(model(x), scan.target), x)
        change = change + 2.5 * radius / steps * grad / _norm(grad).clamp(min=TINY)
        change = change * (radius / _norm(change).clamp(min=max(radius, TINY)))
    return scan.image + change


def worst_columns(model: Model, scan: Batch, columns: int, *, steps: int = STEPS) -> Image:
    """The scan with `columns` neighbouring columns of each case changed within [0, 1], so that the model does worse.

    They stand where the gradient of the soft Dice loss is largest, and follow its sign.
    """
    if columns == 0:
        return scan.image
    model = bind(model, Setting(model.task, scan.cases))
    image, free = scan.image, torch.ones_like(scan.image, dtype=torch.bool)
    for step in range(steps + 1):
        x = image.clone().requires_grad_()
        grad = gradient_of(soft_dice(model(x), scan.target), x)
        if step == 0:
            sums = grad.abs().flatten(1, -2).sum(1).unfold(1, columns, 1).sum(2)
            place = torch.arange(image.shape[-1], device=image.device) - sums.argmax(1)[:, None]
            free = ((place >= 0) & (place < columns)).view(len(image), *(1 for _ in image.shape[1:-1]), -1)
        image = torch.where(free, (image + 2.5 / steps * grad.sign()).clamp(0, 1), image)
    return image


def _norm(change: Image) -> torch.Tensor:
    """The length of the change of a whole scan."""
    return length(change.unsqueeze(0))[0]
