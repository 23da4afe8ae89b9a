"""Feature matching: the image moves to a guide's hidden features, as far as its ball lets it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import blobs
from helpers.detectors import calibrated, of_own_patients, scores
from torch import nn

from medseg_attack import registry
from medseg_attack.attacks.evading.feature_matching import FeatureMatching
from medseg_attack.attacks.evading.watched import WatchedModel
from medseg_attack.attacks.gradient.pgd import PGD
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.threat.balls.norms import L2, Linf
from medseg_attack.threat.binding import bind
from medseg_attack.threat.objectives.losses import bce
from medseg_attack.types import Case, CaseRef, Donors, Image, LogOdds, Mask, Model, PerSample, Setting, Task

MASK = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
IMAGE = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
FAR, NEAR = torch.ones_like(IMAGE), IMAGE.clone()
FAR[..., 2:, :], FAR[..., :, 0] = 0.0, 0.55  # beyond the ball upwards and downwards; and inside it
NEAR[..., 0] = 0.75


@dataclass(frozen=True)
class Distant:
    """A detector that is as suspicious as an image is far from another one, and always raises an alarm."""

    other: Image

    def looks_at_scans(self) -> bool:
        return False

    def watch(self, model: Model, image: Image, cases: Sequence[Case]) -> tuple[LogOdds, PerSample, PerSample]:
        distance = 1 + (image - self.other).flatten(1).square().sum(1)
        return model(image), distance, distance


class Shelf:
    """Cases by their names."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = {case.id: case for case in cases}

    def read(self, ref: CaseRef) -> Case:
        return self.cases[ref.id]


def donors(*images: Image) -> Donors:
    (one,) = blobs.batch(1).cases
    names = [f"other{n}" for n in range(len(images))]
    cases = [
        replace(one, id=name, volume=name, group=name, image=image[0], target=MASK[0])
        for name, image in zip(names, images, strict=True)
    ]
    return Donors(Shelf(cases), tuple(CaseRef(name, name, name, (4, 4)) for name in names))


def brightness(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    return log_odds.flatten(1).sum(1)


def darkness(log_odds: LogOdds, target: Mask, progress: float = 1.0) -> PerSample:
    return -brightness(log_odds, target)


def linear_model() -> SegModel:
    """A network whose one hidden map is the image."""
    return SegModel(nn.Identity(), Task("one", ("organ",))).double()


def matched(inner: PGD, guide: Image, *images: Image) -> Image:
    """The image that is kept where the detector likes it the better, the nearer it is to the guide."""
    attack = FeatureMatching(inner, Distant(guide), guides=8)
    with frozen(linear_model()) as model:
        (case,) = blobs.batch(1).cases
        setting = Setting(model.task, (case,), donors(*images))
        return bind(attack, setting)(model, IMAGE, MASK, [0]).image


def test_features_that_are_the_image_itself_go_to_the_guide_in_each_pixel() -> None:
    """The nearest point of an Linf ball is the guide, cut to the ball."""
    result = matched(PGD(Linf(0.2), bce, steps=8, random_start=False), FAR, FAR)
    expected = torch.minimum(torch.maximum(FAR, IMAGE - 0.2), IMAGE + 0.2)
    assert result == pytest.approx(expected, abs=1e-12)
    assert float((result - IMAGE).abs().min()) == pytest.approx(0.05)


def test_features_that_are_the_image_itself_go_straight_to_the_guide_in_l2() -> None:
    """The nearest point of an L2 ball is on the line to the guide."""
    result = matched(PGD(L2(0.2), bce, steps=8, random_start=False), FAR, FAR)
    assert result == pytest.approx(IMAGE + 0.2 * (FAR - IMAGE) / (FAR - IMAGE).norm(), abs=1e-9)


@pytest.mark.parametrize(("objective", "guide"), [(brightness, NEAR), (darkness, FAR)], ids=["bright", "dark"])
def test_the_guide_is_the_image_whose_own_answer_the_attack_wants_most(objective: object, guide: Image) -> None:
    """The two sums are 9 and 6.6; so the objective says which of them the image goes to."""
    assert float(NEAR.sum()) > float(FAR.sum())
    inner = PGD(L2(0.2), objective, steps=8, random_start=False)  # type: ignore[arg-type]
    result = matched(inner, guide, FAR, NEAR)
    assert result == pytest.approx(IMAGE + 0.2 * (guide - IMAGE) / (guide - IMAGE).norm(), abs=1e-9)


@pytest.mark.parametrize("way", [0.0, 0.25, 1.0])
def test_of_linear_maps_of_any_scale_the_share_of_the_distance_falls_with_the_square_of_the_way(way: float) -> None:
    up = nn.Upsample(scale_factor=2)
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.AvgPool2d(2), up, nn.Conv2d(2, 1, 1))
    (case,) = blobs.batch(1).cases
    with frozen(SegModel(net, Task("one", ("organ",))).double()) as model:
        attack = bind(FeatureMatching(PGD(), Distant(FAR)), Setting(model.task, (case,), donors(FAR)))
        watched = WatchedModel(model, attack.detector, Linf(0.5), IMAGE, MASK, (case,))
        (climbed,) = attack.climbs(watched)
        height = climbed(brightness)(watched(IMAGE + way * (FAR - IMAGE)), MASK)
    assert height == pytest.approx(-torch.tensor([(1 - way) ** 2]).double(), abs=1e-12)


def test_it_hides_from_a_detector_of_features() -> None:
    batch, training = of_own_patients(blobs.batch(6, 3200)), of_own_patients(blobs.batch(12, 3000))
    guides = of_own_patients(blobs.batch(8, 3400))
    refs = tuple(CaseRef(case.id, case.volume, case.group, case.image.shape[1:]) for case in guides.cases)
    with frozen(blobs.healthy()) as model:
        detector = calibrated("mgm", model, training, of_own_patients(blobs.batch(19, 3100)))
        inner = PGD(Linf(12 / 255), bce, steps=10)
        setting = Setting(model.task, batch.cases, Donors(Shelf(guides.cases), refs))
        each = [inner, FeatureMatching(inner, detector)]
        images = [bind(a, setting)(bind(model, setting), batch.image, batch.target, [1] * 6).image for a in each]
        plain, matching = (float(scores(detector.detector, model, x, batch.cases).mean()) for x in images)
    assert matching < plain


def test_what_has_no_guide_is_refused() -> None:
    with pytest.raises(InputError, match="expected guides"):
        registry.build("feature_matching(guides=0)", "attack")
    with frozen(linear_model()) as model, pytest.raises(InputError, match="takes images of other patients of a data"):
        FeatureMatching(PGD(steps=1), Distant(FAR))(model, IMAGE, MASK, [0])
