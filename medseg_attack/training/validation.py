"""Dice on whole patients, on the scans' own grids: what the best epoch is chosen by."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.training.augment import TrainingData
from medseg_attack.types import Batch, CaseRef


def validated(
    model: SegModel, data: TrainingData, refs: Sequence[CaseRef], batch_size: int, device: torch.device
) -> dict[str, float | None]:
    """Dice by class on the scans' own grids: pixels are added up per patient, then patients are averaged.

    A class that a patient neither has nor is given is left out of its average.
    """
    pixels: dict[str, Tensor] = {}  # by patient, (k, 3)
    with frozen(model), torch.no_grad():
        for _, of_shape in itertools.groupby(refs, key=lambda ref: ref.shape):
            stack = list(of_shape)
            for start in range(0, len(stack), batch_size):
                batch = Batch.of([data.read(ref) for ref in stack[start : start + batch_size]], device)
                pred = model.decide(model(batch.image))
                for case, of_case in zip(batch.cases, counts(pred, batch.target).cpu(), strict=True):
                    pixels[case.group] = of_case + pixels.get(case.group, 0)
    scores: dict[str, float | None] = {}
    for k in data.task.scored:
        of_patients = [dice_of(of_patient[k], empty=math.nan).item() for of_patient in pixels.values()]
        defined = [score for score in of_patients if not math.isnan(score)]
        scores[data.task.classes[k]] = sum(defined) / len(defined) if defined else None
    return scores
