"""Dice on whole patients, on the scans' own grids: what the best epoch is chosen by."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from medseg_attack.attacks.judging import truth_after
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.binding import bind
from medseg_attack.training.augment import TrainingData, crc
from medseg_attack.training.distributed import ALONE, ProcessGroup
from medseg_attack.types import Attack, Batch, CaseRef, Mask, Setting


def validated(
    model: SegModel,
    data: TrainingData,
    refs: Sequence[CaseRef],
    batch_size: int,
    device: torch.device,
    attack: Attack | None = None,
    group: ProcessGroup = ALONE,
) -> dict[str, float | None]:
    """Dice by class on the scans' own grids: pixels are added up per patient, then patients are averaged.

    A class that a patient neither has nor is given is left out of its average.

    Args:
        attack: perturbs the images first, in floats; None leaves them.
        group: processes that share the patients out.
    """
    pixels: dict[str, Tensor] = {}  # by patient, (k, 3)
    patients = list(dict.fromkeys(ref.group for ref in refs))
    own = set(patients[group.index :: group.count])
    with frozen(model):
        for _, of_shape in itertools.groupby((ref for ref in refs if ref.group in own), key=lambda ref: ref.shape):
            stack = list(of_shape)
            for start in range(0, len(stack), batch_size):
                batch = Batch.of([data.read(ref) for ref in stack[start : start + batch_size]], device)
                pred, target = _predicted(model, batch, attack)
                for case, of_case in zip(batch.cases, counts(pred, target).cpu(), strict=True):
                    pixels[case.group] = of_case + pixels.get(case.group, 0)
    merged = group.merged(pixels)
    pixels = {patient: merged[patient] for patient in patients}
    scores: dict[str, float | None] = {}
    for k in data.task.scored:
        of_patients = [dice_of(of_patient[k], empty=math.nan).item() for of_patient in pixels.values()]
        defined = [score for score in of_patients if not math.isnan(score)]
        scores[data.task.classes[k]] = sum(defined) / len(defined) if defined else None
    return scores


def mean_of(dice: Mapping[str, float | None]) -> float | None:
    """The mean over the classes that any patient has; None without one."""
    present = [value for value in dice.values() if value is not None]
    return sum(present) / len(present) if present else None


def _predicted(model: SegModel, batch: Batch, attack: Attack | None) -> tuple[Mask, Mask]:
    """The segmentation of the images, after an attack if there is one, and the truth of what they then show."""
    image, target = batch.image, batch.target
    if attack is not None:
        setting = Setting(model.task, batch.cases)
        seeds = [crc("validation", case.id) for case in batch.cases]
        result = bind(attack, setting)(bind(model, setting), image, target, seeds)
        image, target = result.image, truth_after(result, target, model.task.exclusive)
    with torch.no_grad():
        return model.decide(model(image)), target
