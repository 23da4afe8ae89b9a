"""No operation mixes tensors of two devices: what a GPU would show, on a device that is pretended.

The tests are those of `test_cuda`, but for the ones that torch cannot run there: windows and recomputed activations ask
for the automatic precision of a device that it knows.
"""

from collections.abc import Iterator

import pytest
import torch
from helpers.pretended import DEVICE, Elsewhere, PretendedDevice
from test_cuda import (
    EPS,
    TASK,
    Net,
    cases_of_noise,
    test_a_ball_projects_to_the_same_image,
    test_a_certificate_has_the_same_bounds,
    test_a_detector_fits_and_scores_alike,
    test_a_goal_is_the_same_mask,
    test_an_attack_finds_the_same_image_on_both_devices,
    test_an_objective_and_its_gradient_are_the_same,
    test_harm_of_masks_is_the_same,
    test_random_draws_are_the_same_numbers_on_both_devices,
)

from medseg_attack import registry
from medseg_attack.attacks.composed.strongest import PERIOD
from medseg_attack.models.segmodel import SegModel, frozen
from medseg_attack.types import Batch

__all__ = [
    "test_a_ball_projects_to_the_same_image",
    "test_a_certificate_has_the_same_bounds",
    "test_a_detector_fits_and_scores_alike",
    "test_a_goal_is_the_same_mask",
    "test_an_attack_finds_the_same_image_on_both_devices",
    "test_an_objective_and_its_gradient_are_the_same",
    "test_harm_of_masks_is_the_same",
    "test_random_draws_are_the_same_numbers_on_both_devices",
]


@pytest.fixture
def scope() -> Iterator[PretendedDevice]:
    with PretendedDevice() as scope:
        yield scope


@pytest.fixture
def device(scope: PretendedDevice) -> torch.device:
    return DEVICE


def test_it_refuses_what_a_gpu_refuses(scope: PretendedDevice) -> None:
    x = torch.rand(2, 3).to(DEVICE)
    assert isinstance(x, Elsewhere)
    assert x.device == DEVICE
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        x + torch.rand(2, 3)
    with pytest.raises(RuntimeError, match="tensors of two devices"):
        torch.nn.functional.conv2d(x[None, None], torch.rand(1, 1, 2, 2))
    with pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.rand(3, generator=torch.Generator(), device=DEVICE)
    with pytest.raises(TypeError, match="lives elsewhere"):
        x.numpy()
    x += 1.0 + torch.tensor(1.0)  # a single number may come from the CPU
    assert x.cpu().min() >= 2


def test_it_computes_what_the_cpu_does(scope: PretendedDevice) -> None:
    x = torch.rand(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = x.to(DEVICE)
    for function in (
        lambda t: t[:, [0, 2]],
        lambda t: torch.fft.ifft2(torch.fft.fft2(t).conj() * 2j).imag,
        lambda t: t.new_tensor([1.0, 2.0]) + torch.tensor([3.0, 4.0], dtype=t.dtype, device=t.device),
        lambda t: torch.autograd.grad((t.requires_grad_() ** 3).sum(), t)[0],
        lambda t: t.detach().clone().flatten().mul_(2).view(2, 10),
    ):
        assert torch.equal(function(y).cpu(), function(x))


@pytest.mark.parametrize(
    ("text", "period"), [("pgd(steps={})", 0), ("apgd(steps={})", 0), ("strongest(gradients={})", PERIOD)]
)
def test_no_step_waits_for_an_answer(text: str, period: int, scope: PretendedDevice) -> None:
    """As few numbers come back to the CPU, however many steps there are; `strongest` asks at times if it may stop."""
    model, batch = SegModel(Net(1, 2), TASK).to(DEVICE), Batch.of(cases_of_noise(2, torch.float32), DEVICE)
    waits = []
    for gradients in (20, 60):
        attack = registry.with_eps(registry.build(text.format(gradients), "attack"), EPS)
        before = scope.waits
        with frozen(model):
            attack(model, batch.image, batch.target, [0, 1])
        waits.append(scope.waits - before)
    assert waits[1] - waits[0] == (40 // period if period else 0)
