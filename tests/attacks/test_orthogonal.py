"""Orthogonal and selective PGD: each step is the gradient that is due, less the part along the other one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import blobs
from helpers.detectors import calibrated, of_own_patients
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.attacks.evading.orthogonal import Orthogonal, selective
from medseg_attack.attacks.evading.watched import WatchedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Case, Image, LogOdds, Mask, Model, PerSample, Setting, Task

TASK = Task("two", ("organ",))
SLOPE = torch.tensor([[3.0, 1.0], [-2.0, 0.5]], dtype=torch.float64)  # of the score, by pixel
ORGAN = torch.tensor([[[[1, 1], [0, 0]]]], dtype=torch.bool)


@dataclass(frozen=True)
class Linear:
    """A detector whose score is a sum of pixels, with a limit."""

    limit: float

    def looks_at_scans(self) -> bool:
        return False

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        score = (image * SLOPE).flatten(1).sum(1)
        return model(image), score, score - self.limit


class Bright(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 4 * (x - 0.5)


def uphill(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    """A linear objective, whose slope is the same everywhere: -4 on the organ, 4 elsewhere."""
    return torch.where(target, -log_odds, log_odds).flatten(1).sum(1)


def step_of(attack: Any, image: Image) -> Tensor:
    """The change of one step from the image, whatever is kept of it."""
    asked: list[Image] = []
    net = Bright()
    net.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    with frozen(SegModel(net, TASK).double()) as model:
        attack(model, image, ORGAN, [0])
    moved = [x - image for x in asked if not torch.equal(x, image) and x.shape == image.shape]
    return moved[0][0, 0]


def stepping(**fields: Any) -> PGD:
    return PGD(L2(0.01), uphill, steps=1, step_size=1.0, random_start=False, keep_worst=False, **fields)


UP = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)


def without(slope: Tensor, other: Tensor) -> Tensor:
    return slope - (slope * other).sum() / other.square().sum() * other


def direction(change: Tensor) -> Tensor:
    return change / change.norm()


@pytest.mark.parametrize("limit", [-10.0, 10.0], ids=["alarm", "no alarm"])
def test_what_did_no_harm_yet_is_climbed_along_the_detectors_level(limit: float) -> None:
    image = torch.where(ORGAN, 0.9, 0.1).double()
    change = step_of(Orthogonal(stepping(), Linear(limit)), image)
    assert direction(change) == pytest.approx(direction(without(UP, SLOPE)), abs=1e-6)
    assert float((change * SLOPE).sum()) == pytest.approx(0, abs=1e-9)
    assert float((change * UP).sum()) > 0
    change = step_of(selective(stepping(), Linear(limit)), image)
    assert direction(change) == pytest.approx(direction(UP), abs=1e-6)


def slope_at(harmed: Image, image: Image, attack: Orthogonal) -> Tensor:
    """The slope that is climbed at an image that is harmed already."""
    with frozen(SegModel(Bright(), TASK).double()) as model:
        watched = WatchedModel(model, attack.detector, Linf(0.9), image, ORGAN, ())
        (climbed,) = attack.climbs(watched)
        x = harmed.clone().requires_grad_()
        climbed(uphill)(watched(x), ORGAN).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return x.grad[0, 0]


def test_what_was_harmed_and_raises_an_alarm_lowers_the_score_along_the_objectives_level() -> None:
    image, harmed = torch.where(ORGAN, 0.9, 0.1).double(), torch.where(ORGAN, 0.1, 0.9).double()
    alarm, quiet = Linear(-10.0), Linear(10.0)
    lowered = slope_at(harmed, image, Orthogonal(stepping(), alarm))
    assert direction(lowered) == pytest.approx(direction(without(-SLOPE, UP)), abs=1e-6)
    assert direction(slope_at(harmed, image, selective(stepping(), alarm))) == pytest.approx(direction(-SLOPE))
    further = slope_at(harmed, image, Orthogonal(stepping(), quiet))
    assert direction(further) == pytest.approx(direction(without(UP, SLOPE)), abs=1e-6)


@pytest.mark.parametrize("name", ["orthogonal", "selective"])
def test_it_does_harm_without_an_alarm_where_the_attack_alone_raises_one(name: str) -> None:
    batch, inner = of_own_patients(blobs.batch(6, 3200)), PGD(Linf(12 / 255), bce, steps=20)
    with frozen(blobs.healthy()) as model:
        detector = calibrated(
            "feature_squeezing", model, of_own_patients(blobs.batch(4, 3000)), of_own_patients(blobs.batch(19, 3100))
        )
        setting = Setting(model.task, batch.cases)
        make = Orthogonal if name == "orthogonal" else selective
        plain, evading = (
            bind(attack, setting)(bind(model, setting), batch.image, batch.target, [1] * 6)
            for attack in (inner, make(inner, detector, 0.2))
        )
        with torch.no_grad():
            loud, quiet = (detector.watch(model, each.image, batch.cases)[2] > 0 for each in (plain, evading))
            clean = 1 - dice(model.decide(model(batch.image)), batch.target)
    assert loud.float().mean() >= 0.8
    assert not quiet.any()
    assert (evading.harm > clean + 0.05).all()
    assert (evading.size <= 12 / 255 * (1 + 1e-6) + 1e-6).all()


def dice(pred: Mask, target: Mask) -> PerSample:
    both = 2 * (pred & target).flatten(2).sum(2) / (pred.flatten(2).sum(2) + target.flatten(2).sum(2)).clamp(min=1)
    return both.mean(1)


def test_without_a_detector_it_is_the_attack_itself() -> None:
    batch = blobs.batch(3)
    with frozen(blobs.healthy()) as model:
        each = [a(model, batch.image, batch.target, [1] * 3) for a in (Orthogonal(PGD(steps=3)), PGD(steps=3))]
    assert torch.equal(each[0].image, each[1].image)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("orthogonal(detector=entropy)", "expected a detector that was fitted"),
        ("orthogonal(share=0)", "expected a share above 0 and up to 1"),
        ("selective(attack=deformation)", "expected an attack that leaves anatomy where it is"),
    ],
)
def test_what_cannot_be_evaded_is_refused(spec: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        registry.build(spec, "attack")
