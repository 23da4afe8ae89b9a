"""Harm: the score of an attack, on hard masks and without a gradient; `attacks.judging` gives it to an image.

While they search, attacks that look for the least change rank by their progress instead: `attacks.minimal.search`.
"""

from medseg_attack.metrics.overlap import dice
from medseg_attack.types import Mask, PerSample


def harm(pred: Mask, target: Mask) -> PerSample:
    """The harm of each sample, in [0, 1]: 1 - Dice, mean over classes; one absent from both masks counts as right."""
    return (1 - dice(pred, target, empty=1.0)).mean(1)
