"""Detectors fitted and calibrated on cases of blobs, without a data set on disk."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from medseg_attack import registry
from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.detectors.base import Calibrated, Detector, Training
from medseg_attack.models.segmodel import SegModel
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.types import Batch, Model

BALL = Linf(8 / 255)


def training(detector: Detector, model: Model, batch: Batch) -> Training:
    """Statistics of the cases of a batch, also under noise and attack where the detector asks for them."""
    with torch.no_grad():
        clean = detector.training_statistics(model, batch)
    if detector.learns_from != "attacked":
        return Training(clean, batch.cases)
    seeds = list(range(len(batch.cases)))
    changed = [attack(model, batch.image, batch.target, seeds).image for attack in (Noise(BALL), PGD(BALL, steps=6))]
    with torch.no_grad():
        noisy, attacked = (detector.observe(model, image, batch.cases)[1] for image in changed)
    return Training(clean, batch.cases, noisy, attacked)


def scores(detector: Detector, model: Model, image: torch.Tensor, cases: Sequence[Any]) -> torch.Tensor:
    with torch.no_grad():
        return detector.score(detector.observe(model, image, cases)[1], cases)


def calibrated(spec: str | Detector, model: SegModel, fit: Batch, calibration: Batch, level: float = 0.1) -> Calibrated:
    """A fitted detector whose every calibration case is a patient."""
    detector = registry.build(spec, "detector") if isinstance(spec, str) else spec
    fitted = detector.fitted(training(detector, model, fit))
    values = scores(fitted, model, calibration.image, calibration.cases)
    return Calibrated(fitted, tuple(sorted(values.tolist())), level)


def of_own_patients(batch: Batch) -> Batch:
    """The batch with a patient and a scan for each case."""
    cases = tuple(replace(case, group=case.id, volume=case.id) for case in batch.cases)
    return Batch(batch.image, batch.target, cases)
