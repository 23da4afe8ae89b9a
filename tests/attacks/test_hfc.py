"""The hierarchical feature constraint: hidden features are led back to those of clean scans."""

from collections.abc import Sequence

import pytest
import torch
from helpers import blobs
from helpers.detectors import calibrated, of_own_patients, scores
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.evading.evading import Evading
from medseg_attack.attacks.evading.hfc import HFC
from medseg_attack.attacks.evading.watched import WatchedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.balls.norms import Linf
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Batch, Case, Image, LogOdds, Mask, Model, PerSample, Task

MASK = torch.zeros(1, 1, 6, 6, dtype=torch.bool)


class Quiet:
    """A detector that never raises an alarm."""

    def looks_at_scans(self) -> bool:
        return False

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        return model(image), image.flatten(1)[:, 0] * 0, image.flatten(1)[:, 0] * 0 - 1


def flat(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    return 0 * log_odds.flatten(1).sum(1)


def linear_model() -> SegModel:
    """Two hidden channels, once and minus twice the image; their mean is the answer."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False))
    for layer, weights in zip(net, ([1.0, -2.0], [0.5, 0.5]), strict=True):
        layer.weight.data = torch.tensor(weights).view_as(layer.weight)
    return SegModel(net, Task("one", ("organ",))).double()


@pytest.mark.parametrize(("level", "sign"), [(0.9, -1.0), (0.1, 1.0)])
def test_images_whose_features_are_off_are_led_back_along_the_distance(level: float, sign: float) -> None:
    grey = torch.linspace(0.4, 0.6, 8, dtype=torch.float64).view(8, 1, 1, 1).expand(8, 1, 6, 6).contiguous()
    with frozen(linear_model()) as model:
        learned = HFC().fit(model, [Batch(grey, MASK.expand(8, -1, -1, -1), ())], 0)
        attack = HFC(PGD(steps=1), Quiet(), 3.0).with_learned(learned)
        image = torch.full((1, 1, 6, 6), level, dtype=torch.float64)
        watched = WatchedModel(model, attack.detector, Linf(0.5), image, MASK, ())
        (climbed,) = attack.climbs(watched)
        x = image.clone().requires_grad_()
        climbed(flat)(watched(x), MASK).sum().backward()  # type: ignore[no-untyped-call]
    # z is the scaled grey; the answer has distance z^2, the two channels v S^-1 v z^2 / 2 with v = (1, -1), S v = 1.9 v
    spread = float(grey[:, 0, 0, 0].std(correction=0))
    slope = 2 * (level - 0.5) / spread**2 * (1 + (2 / 1.9) / 2) / 2 / 36
    assert x.grad is not None
    assert (x.grad.sign() == sign).all()
    assert x.grad == pytest.approx(torch.full_like(x.grad, -3.0 * slope), rel=1e-6)


def test_it_hides_from_a_detector_of_features_that_it_was_not_made_for() -> None:
    batch, training = of_own_patients(blobs.batch(6, 3200)), of_own_patients(blobs.batch(12, 3000))
    clean = of_own_patients(blobs.batch(19, 3100))
    with frozen(blobs.healthy()) as model:
        other = calibrated("mgm", model, training, clean)
        own = calibrated("entropy", model, training, clean)
        inner = PGD(Linf(12 / 255), bce, steps=10)
        learned = HFC().fit(model, [training], 0)
        hidden = HFC(inner, own, (1.0, 10.0)).with_learned(learned)
        each = [a(model, batch.image, batch.target, [1] * 6) for a in (inner, Evading(inner, own, (1.0, 10.0)), hidden)]
        plain, evading, hfc = (float(scores(other.detector, model, a.image, batch.cases).mean()) for a in each)
    assert hfc < evading
    assert hfc < plain


def test_what_cannot_hide_is_refused() -> None:
    with pytest.raises(InputError, match="expected a detector that was fitted for hfc"):
        registry.build("hfc(detector=entropy)", "attack")
    with pytest.raises(InputError, match="expected an attack that needs no fit for hfc"):
        registry.build("hfc(attack=uap)", "attack")
    with frozen(linear_model()) as model, pytest.raises(InputError, match="expected hfc to be fitted"):
        HFC(PGD(steps=1), Quiet())(model, torch.rand(1, 1, 6, 6).double(), MASK, [0])
