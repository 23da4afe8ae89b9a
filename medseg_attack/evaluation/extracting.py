"""The worth of a stolen copy: how far it agrees with its victim, and whether attacks on it harm the victim."""

import itertools
import math
from collections.abc import Mapping
from zlib import crc32

import pandas as pd
import torch

from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.data.prepared.reading import Prepared
from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.stats.patients import interval, mean_score
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Image, Mask, Setting

BATCH = 16  # slices at a time
STEPS = 10  # of the attack on the copy, and of that on the victim
# Dice of the student with the victim and with the truth; of the victim with the truth on untouched images, on images
# that were made for the student, and on those made for itself
MEASURES = ("fidelity", "student", "victim", "transferred", "own")


def worth(student: SegModel, victim: SegModel, data: Prepared, eps: float, device: torch.device) -> dict[str, float]:
    """The measures of a copy on unseen patients: means over patients and classes, each with its 95 % interval.

    `transfer` is the transfer ratio: the Dice that images made for the student take from the victim, as a share of
    what images made for the victim take (Bortsova et al., arXiv 2006.06356). NaN where these take nothing, and for a
    victim without gradients.

    Args:
        data: its test patients are scored, slice by slice or in whole scans as the victim takes them.
        eps: budget of PGD in Linf, a fraction of the window.

    Raises:
        InputError: the data have no test patients.
    """
    refs = data.refs("test", 0, victim.dims)
    batch_size = 1 if victim.dims == 3 else BATCH
    if not refs:
        raise InputError(f"expected test patients in {data.name} to measure on, got none; give another --test-data")
    pixels: dict[str, dict[str, torch.Tensor]] = {}
    for _, group in itertools.groupby(refs, key=lambda ref: ref.shape):
        of_shape = list(group)
        for start in range(0, len(of_shape), batch_size):
            batch = Batch.of([data.read(ref) for ref in of_shape[start : start + batch_size]], device)
            with frozen(student), frozen(victim):
                measured = _measured(student, victim, batch, eps)
            for name, of_batch in measured.items():
                for case, of_case in zip(batch.cases, of_batch.cpu(), strict=True):
                    of_patient = pixels.setdefault(case.group, {})
                    of_patient[name] = of_case + of_patient.get(name, 0)
    return _summary(_cases(pixels, data))


def _measured(student: SegModel, victim: SegModel, batch: Batch, eps: float) -> Mapping[str, torch.Tensor]:
    """Pixels (b, k, 3) of each measure."""
    image, target = batch.image, batch.target
    by_victim, by_student = (_decided(model, image, batch) for model in (victim, student))
    pairs = {
        "fidelity": (by_student, by_victim),
        "student": (by_student, target),
        "victim": (by_victim, target),
        "transferred": (_decided(victim, _attacked(student, batch, eps), batch), target),
    }
    if not victim.black_box:
        pairs["own"] = (_decided(victim, _attacked(victim, batch, eps), batch), target)
    return {name: counts(*pair) for name, pair in pairs.items()}


def _decided(model: SegModel, image: Image, batch: Batch) -> Mask:
    with torch.no_grad():
        return model.decide(bind(model, Setting(model.task, batch.cases))(image))


def _attacked(model: SegModel, batch: Batch, eps: float) -> Image:
    """Images that PGD made for a model."""
    setting = Setting(model.task, batch.cases)
    seeds = [crc32(f"extract/{case.id}".encode()) for case in batch.cases]
    attack = bind(PGD(Linf(eps), steps=STEPS), setting)
    return attack(bind(model, setting), batch.image, batch.target, seeds).image


def _cases(pixels: Mapping[str, Mapping[str, torch.Tensor]], data: Prepared) -> pd.DataFrame:
    """Dice of each patient, class and measure; NaN where neither mask holds a pixel."""
    return pd.DataFrame(
        [
            {"group": patient, "unit": patient, "cls": data.task.classes[k]}
            | {name: dice_of(of_measure[k], empty=math.nan).item() for name, of_measure in measured.items()}
            for patient, measured in pixels.items()
            for k in data.task.scored
        ]
    )


def _summary(cases: pd.DataFrame) -> dict[str, float]:
    result: dict[str, float] = {"patients": cases["group"].nunique()}
    for name in MEASURES:
        if name not in cases:
            result |= dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
            continue
        result[name] = mean_score(cases, name)
        result[f"{name}_low"], result[f"{name}_high"] = interval(cases, name)
    taken = result["victim"] - result["own"]
    result["transfer"] = (result["victim"] - result["transferred"]) / taken if taken > 0 else math.nan
    return result
