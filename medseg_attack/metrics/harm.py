"""Harm: the score of an attack, on hard masks and without a gradient; `attacks.judging` gives it to an image.

While they search, attacks that look for the least change rank by their progress instead: `attacks.minimal.search`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.types import Mask, PerSample


def harm(pred: Mask, target: Mask) -> PerSample:
    """The harm of each sample, in [0, 1]: 1 - Dice, mean over classes; one absent from both masks counts as right."""
    return harm_of(counts(pred, target))


def harm_of(pixels: Int[Tensor, "n k 3"]) -> Float[Tensor, "n"]:
    """Harm from pixels in the truth, in the prediction and in both, per class; `summed` gives those of volumes."""
    return (1 - dice_of(pixels, empty=1.0)).mean(1)


def summed(values: Tensor, unit: Int[Tensor, "b"]) -> Tensor:
    """The sum of the values of each unit's samples; as many units as samples, those without any are 0.

    Args:
        unit: number of each sample's unit, below the number of samples; slices of one volume share it.
    """
    return torch.zeros_like(values).index_add(0, unit, values)
