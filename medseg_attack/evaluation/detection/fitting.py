"""A detector of a model, learned from clean scans and calibrated on those of other patients."""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from medseg_attack.attacks.controls.noise import Noise
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.detectors.base import Calibrated, Detector, Training, suspicious
from medseg_attack.errors import InputError, listed
from medseg_attack.evaluation.crafting import craft
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry.foreign import is_foreign, part_name
from medseg_attack.registry.parts import walk
from medseg_attack.stats.alarms import main_rate
from medseg_attack.threat.binding import bind
from medseg_attack.types import Attack, Batch, Case, Image, Mask, Setting


def fit(
    detector: Detector, model: SegModel, training: Iterable[Batch], calibration: Iterable[Batch], seed: int = 0
) -> Calibrated:
    """The detector, fitted on training patients, with p-values by calibration patients.

    Args:
        model: frozen.
        seed: of the attack that a trained detector learns from.
    """
    learned = detector.fitted(_statistics(detector, model, training, seed))
    scores: dict[str, float] = {}
    for batch in calibration:
        if not scores and is_foreign(learned):
            _require_repeats(learned, model, batch)
        of_batch = torch.tensor(scores_of(learned, model, batch.image, batch), dtype=torch.float64)
        for group, score in suspicious(of_batch, batch.cases).items():
            scores[group] = max(score, scores.get(group, score))
    return Calibrated(learned, tuple(sorted(scores.values())), max(0.1, main_rate(len(scores))))


def _statistics(detector: Detector, model: SegModel, training: Iterable[Batch], seed: int) -> Training:
    clean: list[Tensor] = []
    noisy: list[Tensor] = []
    attacked: list[Tensor] = []
    cases: list[Case] = []
    attack = _own_attack(detector)
    for batch in training:
        bound = bind(model, Setting(model.task, batch.cases))
        with torch.no_grad():
            clean.append(detector.trained_on(bound, batch))
        cases += [*batch.cases]
        for statistics, control in ((noisy, Noise(attack.ball)), (attacked, attack)) if attack else ():
            (crafted,) = craft(model, batch, [control], [None], seed)
            with torch.no_grad():
                statistics.append(detector.asked(bound, crafted.image, batch.cases)[1])
    both = (torch.cat(noisy), torch.cat(attacked)) if attack else (None, None)
    return Training(torch.cat(clean).cpu(), tuple(cases), *(None if each is None else each.cpu() for each in both))


def _require_repeats(detector: Detector, model: SegModel, batch: Batch) -> None:
    """Refuses a detector whose scores differ when it is asked again, or by what else is in the batch: its p-values
    would say nothing of a scan.

    Raises:
        InputError: they differ.
    """
    first, again = (torch.tensor(scores_of(detector, model, batch.image, batch)) for _ in range(2))
    is_close = partial(torch.allclose, rtol=1e-3, atol=1e-6)
    if not model.is_random and not is_close(first, again):
        raise InputError(
            f"expected the same scores from {part_name(detector)} when it is asked again, got {first[0]:g} and "
            f"{again[0]:g} for {batch.cases[0].id}; draw numbers from a generator with a seed of its own"
        )
    if detector.looks_at_scans() or model.is_random:
        return
    alone = scores_of(detector, model, batch.image[:1], Batch(batch.image[:1], batch.target[:1], batch.cases[:1]))
    if not is_close(first[:1], torch.tensor(alone)):
        raise InputError(
            f"expected a score of each case by itself from {part_name(detector)}, got {first[0]:g} for "
            f"{batch.cases[0].id} among others and {alone[0]:g} alone; let no mean run over cases, or return True from "
            "looks_at_scans()"
        )


def _own_attack(detector: Detector) -> Attack | None:
    if detector.learns_from != "attacked":
        return None
    named = [part for part in walk(detector) if isinstance(part, Attack)]
    return named[0] if named else PGD(steps=10)


def scores_of(detector: Detector, model: SegModel, image: Image, batch: Batch) -> list[float]:
    """The score of each case of a batch, whose images may be changed ones."""
    return answer(detector, model, image, batch)[0]


def answer(detector: Detector, model: SegModel, image: Image, batch: Batch) -> tuple[list[float], Mask]:
    """The score of each case of a batch, whose images may be changed ones, and the masks that it was seen with."""
    bound = bind(model, Setting(model.task, batch.cases))
    with torch.no_grad():
        log_odds, statistics = detector.asked(bound, image, batch.cases)
        if is_foreign(detector):  # whose word on the answer is not taken
            log_odds = bind(model, Setting(model.task, batch.cases))(image)
        return numbers(detector.rated(statistics, batch.cases), batch.cases), bound.decide(log_odds)


def numbers(scores: Tensor, cases: Sequence[Case]) -> list[float]:
    """The score of each case.

    Raises:
        InputError: the score of a case is no number.
    """
    values: list[float] = scores.double().tolist()
    if lost := [case.id for case, value in zip(cases, values, strict=True) if math.isnan(value)]:
        raise InputError(
            f"expected a score of {listed(lost)}, got nan; leave it out, and look at it: the model has no answer to it"
        )
    return values
