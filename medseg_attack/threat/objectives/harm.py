"""How harm is kept score of: hard masks, no gradient."""

from medseg_attack.metrics.overlap import dice
from medseg_attack.types import Mask, PerSample


def harm(pred: Mask, target: Mask) -> PerSample:
    """1 - Dice of hard masks, mean over classes; a class absent from both counts as right (the Judge of attacks)."""
    return (1 - dice(pred, target, empty=1.0)).mean(1)
