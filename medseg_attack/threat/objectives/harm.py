"""How harm is kept score of: hard masks, no gradient."""

import torch

from medseg_attack.types import Mask, PerSample


def harm(pred: Mask, target: Mask) -> PerSample:
    """1 - Dice of hard masks, mean over classes; a class absent from both counts as right (the Judge of attacks)."""
    pred, target = pred.flatten(2), target.flatten(2)
    both, total = (pred & target).sum(2), pred.sum(2) + target.sum(2)
    dice = torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
    return (1 - dice).mean(1)
