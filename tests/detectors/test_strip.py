"""STRIP on a model with a backdoor that is written down."""

from dataclasses import replace

import pytest
import torch
from helpers import blobs
from helpers.detectors import of_own_patients, scores, training
from torch import Tensor, nn

from medseg_attack import registry
from medseg_attack.detectors.consistency.strip import Strip
from medseg_attack.errors import InputError
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.stats.alarms import auroc


class Backdoored(nn.Module):
    """The healthy network, which gives everything up at the sight of a bright corner, also of half its brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.net = blobs.healthy_net()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.net(x)
        has_trigger = x[:, :, :2, :2].amin((1, 2, 3)) > 0.49
        return torch.where(has_trigger.view(-1, 1, 1, 1), -20.0, answer)


def test_an_image_with_the_trigger_is_too_stable() -> None:
    model = SegModel(Backdoored(), blobs.TASK).eval()
    batches = [of_own_patients(blobs.batch(12, start)) for start in (3000, 4000)]
    batches = [replace(batch, image=batch.image.index_fill(2, torch.arange(2), 0.0)) for batch in batches]
    with frozen(model):
        detector = Strip(copies=6)
        fitted = detector.fitted(training(detector, model, batches[0]))
        triggered = batches[1].image.clone()
        triggered[:, :, :2, :2] = 1.0
        clean = scores(fitted, model, batches[1].image, batches[1].cases)
        bad = scores(fitted, model, triggered, batches[1].cases)
    assert bad.min() > 0.9
    assert auroc(clean.numpy(), bad.numpy()) > 0.95


def test_an_image_that_is_blended_with_itself_scores_1() -> None:
    model = blobs.healthy()
    batch = of_own_patients(blobs.batch(1, 3000))
    with frozen(model):
        detector = Strip(copies=1)
        fitted = detector.fitted(training(detector, model, batch))
        assert scores(fitted, model, batch.image, batch.cases).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("n", [1, 3, 6, 8, 9, 20])
def test_it_is_blended_with_as_many_scans_as_there_are(n: int) -> None:
    model, batch, detector = blobs.healthy(), of_own_patients(blobs.batch(n, 3000)), Strip(copies=8)
    with frozen(model):
        learned = detector.fitted(training(detector, model, batch)).learned
    assert learned is not None
    assert len({tuple(image.flatten().tolist()) for image in learned["images"]}) == min(n, 8)


def test_an_organ_that_the_task_lacks_is_refused() -> None:
    model = blobs.healthy()
    detector = registry.build("strip(organ='liver')", "detector")
    with pytest.raises(InputError, match="expected strip to name an organ of"):
        training(detector, model, blobs.batch(2, 0))
