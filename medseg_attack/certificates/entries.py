"""Answers that are certified one by one: of each pixel where classes exclude each other, else of each channel."""

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medseg_attack.certificates.base import Bound
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.types import Batch, Mask, Model


def agreement(mask: Mask, answer: Mask, exclusive: bool) -> Bool[Tensor, "b h *s"]:
    """Whether a decision is the answer: of each pixel where classes exclude each other, else of each channel.

    Args:
        answer: where classes exclude each other several of them may be the answer: that it is one of these.
    """
    return (mask & answer).any(1, keepdim=True) if exclusive else mask == answer


def entry_bounds(
    scan: Batch,
    model: Model,
    radius: float,
    answer: Mask,
    certified: Bool[Tensor, "b h *s"],
    clean: Int[Tensor, "k 3"],
    leaves: Mask | None = None,
) -> list[Bound]:
    """The least Dice of each class if all answers that are not certified are as wrong as can be.

    Args:
        answer: of the certified model.
        clean: pixels of truth, prediction and both of the plain model.
        leaves: the classes of which each pixel is certified to be one; None: its answer alone.
    """
    plain = dice_of(clean, empty=1.0, dtype=torch.float64)
    value = dice_of(counts(answer, scan.target).sum(0), empty=1.0, dtype=torch.float64)
    own = answer if leaves is None else leaves & (leaves.sum(1, keepdim=True) == 1)
    yes, no = certified & own, certified & ~(answer if leaves is None else leaves)
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
            information=math.nan if leaves is None else information(leaves, certified),
            n_target=int(pixels[k, 0]),
            n_certified=int(pixels[k, 1]),
            hit_certified=int(pixels[k, 2]),
        )
        for k in model.task.scored
    ]


def information(leaves: Mask, certified: Bool[Tensor, "b 1 *s"]) -> float:
    """The mean information of what is certified: 1 for one class, 0 for any of them, and for nothing.

    `(log K - log leaves) / log K` (Anani et al., arXiv 2402.08400).
    """
    gain = 1 - leaves.sum(1, keepdim=True).double().log() / math.log(leaves.shape[1])
    return torch.where(certified, gain, 0.0).mean().item()
