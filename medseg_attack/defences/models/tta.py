"""Test-time augmentation: the mean answer on changed copies of an image."""

import math
from itertools import chain, combinations
from typing import Any

import torch

from medseg_attack.defences.models.around import AroundModels, as_model, member
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel
from medseg_attack.numerics.log_odds import mean_probabilities
from medseg_attack.registry import register
from medseg_attack.types import Image, LogOdds, Task

TINY = 1e-6  # at 0 a root has an infinite slope


@register("tta", kind="model", trained=True, wraps="base")
def tta(
    task: Task, base: Any = None, *, mirror: tuple[int, ...] = (0, 1), gammas: tuple[float, ...] = (1.0,)
) -> SegModel:
    """Test-time augmentation: the mean probability over mirrored copies of an image, and over its gammas.

    It draws nothing at random and has a gradient: an ensemble of one model.

    Args:
        base: the model: name or folder of a checkpoint, or a spec that brings its weights.
        mirror: spatial axes, from 0, along which copies are mirrored, in all combinations; (): none.
        gammas: exponents of the intensities, above 0; each has its own copies.

    Raises:
        InputError: the model is not trained or has no such axis, or an exponent is not above 0.
    """
    if not gammas or not all(0 < gamma < math.inf for gamma in gammas):
        raise InputError(f"expected gammas above 0 for tta, got {gammas}; write gammas=(1.0,)")
    model = member(base, task, "tta")
    if any(axis not in range(model.dims) for axis in mirror):
        raise InputError(f"expected axes below {model.dims} to mirror for tta, got {mirror}; write mirror=(0, 1)")
    return as_model(Augmented(model, mirror, gammas))


class Augmented(AroundModels):
    """The network of `tta`."""

    def __init__(self, base: SegModel, mirror: tuple[int, ...], gammas: tuple[float, ...]) -> None:
        super().__init__([base])
        axes = sorted(set(mirror))
        flips = list(chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1)))
        self.copies = [(gamma, [axis + 2 for axis in flip]) for gamma in gammas for flip in flips]

    @property
    def passes(self) -> int:
        return len(self.copies) * super().passes

    def forward(self, image: Image) -> LogOdds:
        (model,) = self.models
        answers: list[LogOdds] = []
        for gamma, axes in self.copies:
            changed = image if gamma == 1 else image.clamp(min=TINY) ** gamma
            answers.append(model(changed.flip(axes)).flip(axes))
        if len(answers) == 1:
            return answers[0]
        stacked = torch.stack(answers)
        return mean_probabilities(stacked, stacked.new_full((len(answers),), 1 / len(answers)))
