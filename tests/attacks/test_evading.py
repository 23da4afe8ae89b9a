"""An attack that knows a detector: as harmful as it can be without an alarm, and never harmful at the price of one."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from helpers import blobs
from helpers.detectors import calibrated, of_own_patients

from medseg_attack import registry
from medseg_attack.attacks.composed.best_of import BestOf
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.watched import WatchedModel
from medseg_attack.attacks.gradient.apgd import APGD
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.detectors.base import Calibrated
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce, soft_dice
from medseg_attack.types import Adversarial, Attack, Batch, Case, Image, LogOdds, Model, PerSample, Setting

BALL = Linf(12 / 255)


@pytest.fixture(scope="module")
def squeezing() -> Calibrated:
    with frozen(blobs.healthy()) as model:
        fit, calibration = of_own_patients(blobs.batch(4, 3000)), of_own_patients(blobs.batch(19, 3100))
        return calibrated("feature_squeezing", model, fit, calibration)


def attacked(attack: Attack, batch: Batch) -> Adversarial:
    with frozen(blobs.healthy()) as model:
        setting = Setting(model.task, batch.cases)
        return bind(attack, setting)(bind(model, setting), batch.image, batch.target, [1] * len(batch.cases))


def alarms(detector: Calibrated, image: torch.Tensor, batch: Batch) -> torch.Tensor:
    with frozen(blobs.healthy()) as model, torch.no_grad():
        return detector.watch(model, image, batch.cases)[2] > 0


@pytest.mark.parametrize(
    "inner", [PGD(BALL, bce, steps=10), APGD(BALL, steps=12), BestOf((PGD(BALL, soft_dice, 6), APGD(BALL, bce, 8)))]
)
def test_it_does_harm_without_an_alarm_where_the_attack_alone_raises_one(inner: Attack, squeezing: Calibrated) -> None:
    batch = of_own_patients(blobs.batch(6, 3200))
    plain, evading = attacked(inner, batch), attacked(Evading(inner, squeezing), batch)
    clean = attacked(PGD(Linf(0.0), steps=1), batch).harm
    assert alarms(squeezing, plain.image, batch).float().mean() >= 0.8
    assert not alarms(squeezing, evading.image, batch).any()
    assert (evading.harm >= clean - 1e-6).all()
    assert (evading.harm > clean + 0.05).all()
    assert (evading.size <= BALL.eps * (1 + 1e-6) + 1e-6).all()


def test_a_weight_of_0_climbs_the_objective_alone_and_still_keeps_what_raises_no_alarm(squeezing: Calibrated) -> None:
    batch = of_own_patients(blobs.batch(6, 3200))
    swept = attacked(Evading(PGD(BALL, bce, 10), squeezing), batch)
    alone = attacked(Evading(PGD(BALL, bce, 10), squeezing, 0.0), batch)
    assert not alarms(squeezing, alone.image, batch).any()
    assert swept.harm.mean() > alone.harm.mean()


class TwoBright:
    """A detector that raises an alarm where more than one slice of a scan is bright."""

    def looks_at_scans(self) -> bool:
        return True

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        bright = (image.flatten(1).mean(1) > 0.5).sum().expand(len(image)).to(image)
        return model(image), bright, bright - 1


def test_the_slices_of_a_scan_are_kept_as_they_were_asked_about_together() -> None:
    batch = of_own_patients(blobs.batch(2, 3200))
    batch = replace(batch, cases=tuple(replace(case, volume="scan") for case in batch.cases))
    dark, bright = torch.full_like(batch.image, 0.1), torch.full_like(batch.image, 0.9)
    with frozen(blobs.healthy()) as model:
        watched = WatchedModel(model, TwoBright(), Linf(0.99), batch.image, batch.target, batch.cases)
        for first, second in ((bright, dark), (dark, bright), (bright, bright)):
            watched(torch.stack([first[0], second[1]]))
    assert (watched.kept.flatten(1).mean(1) > 0.5).sum() == 1


class Silent:
    """A detector that never raises an alarm."""

    def looks_at_scans(self) -> bool:
        return False

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        return model(image), image.new_zeros(len(image)), image.new_full((len(image),), -1.0)


@pytest.mark.parametrize(
    ("eps", "outlier", "is_kept"),
    [
        (0.5, 0.75, True),
        (0.9, 0.0, True),
        (0.9, 1.0, True),
        (0.9, -0.01, False),
        (0.9, 1.01, False),
        (0.49, 0.75, False),
    ],
)
def test_what_is_outside_of_the_ball_or_of_0_to_1_is_not_kept(eps: float, outlier: float, is_kept: bool) -> None:
    """A flat image, on which nothing is found, is the most harmful one; one of its pixels differs."""
    batch = of_own_patients(blobs.batch(2, 3200))
    image = batch.image.clamp(0.15, 0.85)
    image[:, 0, 4, 5] = 0.25
    flat = torch.full_like(image, 0.5)
    flat[:, 0, 4, 5] = outlier
    with frozen(blobs.healthy()) as model:
        watched = WatchedModel(model, Silent(), Linf(eps), image, batch.target, batch.cases)
        watched(flat)
    assert torch.equal(watched.kept, flat if is_kept else image)


def test_without_a_detector_it_is_the_attack_itself() -> None:
    batch = blobs.batch(3)
    assert torch.equal(attacked(Evading(PGD(BALL, bce, 4)), batch).image, attacked(PGD(BALL, bce, 4), batch).image)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("evading(detector=entropy)", "expected a detector that was fitted"),
        ("evading(weight=-1)", "expected weights of 0 or more"),
        ("evading(attack=deformation)", "expected an attack that leaves anatomy where it is"),
    ],
)
def test_what_cannot_be_evaded_is_refused(spec: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        registry.build(spec, "attack")
