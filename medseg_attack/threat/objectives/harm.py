"""Harm: the score of an attack, on hard masks and without a gradient."""

from medseg_attack.metrics.overlap import dice
from medseg_attack.types import Mask, PerSample


def harm(pred: Mask, target: Mask) -> PerSample:
    """The harm of each sample: 1 - Dice of hard masks, mean over classes; a class absent from both counts as right."""
    return (1 - dice(pred, target, empty=1.0)).mean(1)
