"""Factors of an organ: its volume, and how much of the model's gradient lies where it is."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medseg_attack.certificates.smoothing.volume import pixel_ml
from medseg_attack.errors import InputError
from medseg_attack.evaluation.factors.images import dilated
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.samples import gradient_of
from medseg_attack.registry import register
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import soft_dice
from medseg_attack.types import Batch, Setting

SLICES = 16  # of a scan, whose gradient is taken at a time


@register("organ_volume", kind="factor")
def organ_volume(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Volume of an organ on the scan in ml, from the truth."""
    return scan.target.flatten(2).sum((0, 2)).cpu().double() * pixel_ml(scan.cases[0])


@register("gradient_concentration", kind="factor", bounds={"margin": "[0, inf)"})
def gradient_concentration(scan: Batch, model: SegModel, card: Mapping[str, Any], *, margin: int = 3) -> Tensor:
    """Share of the gradient's size that lies inside an organ or near it; 1: all of it (Ma's attraction maps 2021).

    The size is the sum of absolute values, the gradient that of the organ's soft Dice loss with respect to the image.
    NaN of an organ that is not on the scan, and where the gradient is 0.

    Args:
        margin: width of what counts as near, in pixels, 0 or more.

    Raises:
        InputError: the model is a black box.
    """
    if model.black_box:
        raise InputError("expected a model with a gradient for gradient_concentration, got a black box; leave it out")
    inside, everywhere = torch.zeros(2, len(model.task.classes), dtype=torch.float64)
    for begin in range(0, len(scan.cases), SLICES):
        part = slice(begin, begin + SLICES)
        target = scan.target[part]
        bound = bind(model, Setting(model.task, scan.cases[part]))
        image = scan.image[part].clone().requires_grad_()
        log_odds = bound(image)
        for k in range(target.shape[1]):
            loss = soft_dice(log_odds[:, k : k + 1], target[:, k : k + 1])
            size = gradient_of(loss, image, retain_graph=True).abs().sum(1).double().cpu()
            inside[k] += size[dilated(target[:, k].cpu(), margin)].sum()
            everywhere[k] += size.sum()
    defined = scan.target.flatten(2).any(2).any(0).cpu() & (everywhere > 0)
    return torch.where(defined, inside / everywhere, torch.nan)
