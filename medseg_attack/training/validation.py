"""Dice on whole patients, on the scans' own grids: what the best epoch is chosen by."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.training.augment import TrainingData
from medseg_attack.types import Batch, CaseRef


def validated(
    model: SegModel, data: TrainingData, refs: Sequence[CaseRef], batch_size: int, device: torch.device
) -> dict[str, float | None]:
    """Dice by class on the scans' own grids: pixels are added up per patient, then patients are averaged.

    A class that a patient neither has nor is given is left out of its average.
    """
    counts: dict[str, Tensor] = {}
    with frozen(model), torch.no_grad():
        for _, alike in itertools.groupby(refs, key=lambda ref: ref.shape):
            stack = list(alike)
            for start in range(0, len(stack), batch_size):
                batch = Batch.of([data.read(ref) for ref in stack[start : start + batch_size]], device)
                pred = model.decide(model(batch.image))
                found = torch.stack(
                    [(pred & batch.target).flatten(2).sum(2), pred.flatten(2).sum(2), batch.target.flatten(2).sum(2)]
                ).cpu()
                for index, case in enumerate(batch.cases):
                    counts[case.group] = counts.get(case.group, torch.zeros(3, pred.shape[1])) + found[:, index]
    dice: dict[str, float | None] = {}
    for k in data.task.scored:
        each = [float(2 * c[0, k] / (c[1, k] + c[2, k])) for c in counts.values() if c[1, k] + c[2, k] > 0]
        dice[data.task.classes[k]] = sum(each) / len(each) if each else None
    return dice
