"""Pixel counts, from which every overlap score is derived later and exactly."""

import torch
from jaxtyping import Int
from torch import Tensor

from medseg_attack.types import Mask


def counts(pred: Mask, target: Mask) -> Int[Tensor, "b k 3"]:
    """Pixels in the truth, in the prediction and in both, per sample and class."""
    pred, target = pred.flatten(2), target.flatten(2)
    return torch.stack([target.sum(2), pred.sum(2), (pred & target).sum(2)], dim=-1)
