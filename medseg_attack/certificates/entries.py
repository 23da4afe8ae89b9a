"""Answers that are certified one by one: of each pixel where classes exclude each other, else of each channel."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medseg_attack.certificates.base import Bound
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.types import Batch, Mask, Model


def agreement(mask: Mask, answer: Mask, exclusive: bool) -> Bool[Tensor, "b h *s"]:
    """Whether a decision is the answer: of each pixel where classes exclude each other, else of each channel."""
    return (mask & answer).any(1, keepdim=True) if exclusive else mask == answer


def entry_bounds(
    scan: Batch, model: Model, radius: float, answer: Mask, certified: Bool[Tensor, "b h *s"], clean: Int[Tensor, "k 3"]
) -> list[Bound]:
    """The least Dice of each class if all answers that are not certified are as wrong as can be.

    Args:
        answer: of the certified model.
        clean: pixels of truth, prediction and both of the plain model.
    """
    plain = dice_of(clean, empty=1.0, dtype=torch.float64)
    value = dice_of(counts(answer, scan.target).sum(0), empty=1.0, dtype=torch.float64)
    yes, no = certified & answer, certified & ~answer
    # what is not certified to be of another class may be taken for this one: nothing is better than that
    worst = torch.where(scan.target, yes, ~no)
    dice = dice_of(counts(worst, scan.target).sum(0), empty=1.0, dtype=torch.float64)
    pixels = counts(yes, scan.target).sum(0)
    return [
        Bound.of(
            scan,
            model.task.classes[k],
            radius,
            clean=plain[k].item(),
            value=value[k].item(),
            low=dice[k].item(),
            abstained=1 - certified.double().mean().item(),
            n_target=int(pixels[k, 0]),
            n_certified=int(pixels[k, 1]),
            hit_certified=int(pixels[k, 2]),
        )
        for k in model.task.scored
    ]
