"""Blur and contrast: controls of one number, with ends that can be written down."""

import pytest
import torch
from helpers.oracle_scene import ORGAN, images, oracle, truth

from medseg_attack import registry
from medseg_attack.attacks.controls.blur import BlurWidth
from medseg_attack.attacks.controls.contrast import ContrastLoss
from medseg_attack.errors import InputError
from medseg_attack.types import Adversarial, Attack

SEEDS = [1, 2, 3]
IMAGE = images(0.5)


def result(text: str, image: torch.Tensor = IMAGE) -> Adversarial:
    model = oracle(ORGAN)
    attack: Attack = registry.build(text, "attack")
    return attack(model, image, truth(model, image), SEEDS[: len(image)])


@pytest.mark.parametrize("text", ["blur(blur_width(0))", "contrast(contrast_loss(0))"])
def test_nothing_of_it_is_the_image_itself(text: str) -> None:
    assert torch.equal(result(text).image, IMAGE)


def test_all_contrast_lost_is_one_intensity() -> None:
    flat = result("contrast(contrast_loss(1))").image
    assert flat.flatten(1).std(1).max() < 1e-15
    torch.testing.assert_close(flat.flatten(1).mean(1), IMAGE.flatten(1).mean(1))
    half = result("contrast(contrast_loss(0.5))")
    torch.testing.assert_close(half.image.flatten(1).std(1), IMAGE.flatten(1).std(1) / 2)
    assert half.size.tolist() == pytest.approx([0.5] * 3)


def test_a_blur_has_the_variance_that_it_is_named_by() -> None:
    """A point becomes a kernel without negative weights, of sum 1; two blurs add their variances."""
    point = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1
    kernel = result("blur(blur_width(2))", point).image[0, 0]
    assert kernel.sum().item() == pytest.approx(1)
    offset = torch.arange(41).double() - 20
    assert (kernel.sum(0) * offset.square()).sum().item() == pytest.approx(4, rel=1e-6)
    once = result("blur(blur_width(1.5))").image
    twice = result("blur(blur_width(2))", once).image
    torch.testing.assert_close(twice, result("blur(blur_width(2.5))").image, atol=1e-12, rtol=0)


@pytest.mark.parametrize("ball", [BlurWidth(1.3), ContrastLoss(0.4)])
def test_the_size_of_a_change_is_its_level(ball: BlurWidth | ContrastLoss) -> None:
    text = "blur(blur_width(1.3))" if isinstance(ball, BlurWidth) else "contrast(contrast_loss(0.4))"
    least = result(text)
    assert least.size.tolist() == pytest.approx([ball.eps] * 3)
    assert (ball.size(1 - IMAGE, IMAGE) > ball.eps).all()


def test_the_least_loss_of_contrast_that_halves_the_dice_is_found() -> None:
    """Organ pixels at 0.5 + d, d uniform, among others at 0.1: half the Dice is lost where a third is left."""
    distance = torch.linspace(0.01, 0.3, 60, dtype=torch.float64)
    image = torch.full((1, 1, 12, 10), 0.1, dtype=torch.float64)
    image.view(-1)[:60] = 0.5 + distance
    mean = image.mean()
    needed = (distance / (0.5 + distance - mean)).sort().values  # the loss that brings each to 1/2
    at_half = needed[39]  # 2 n / (60 + n) <= 1/2 first holds for n = 20
    least = result("contrast(contrast_loss(1), bisections=30)", image)
    assert least.size.item() == pytest.approx(at_half.item(), abs=1e-6)
    assert least.harm.item() == pytest.approx(0.5)


def test_volumes_are_blurred_slice_by_slice() -> None:
    volume = torch.rand(1, 1, 3, 14, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = result("blur", volume).image
    for n in range(3):
        torch.testing.assert_close(whole[:, :, n], result("blur", volume[:, :, n]).image)


def test_they_are_controls_in_a_study() -> None:
    attack = registry.build("blur", "attack")
    assert attack.control() is attack
    assert registry.find("blur").family == registry.find("contrast").family == "controls"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blur(linf)", "the ball blur_width"),
        ("contrast(bisections=-1)", "bisections"),
        ("contrast(l2)", "the ball contrast_loss"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.build(text, "attack")


def test_half_of_the_dice_is_half_of_what_the_clean_image_has() -> None:
    """The model finds a fifth of the truth: half the Dice is lost where a third, or less, of that is left."""
    distance = torch.linspace(0.01, 0.3, 60, dtype=torch.float64)
    image = torch.full((1, 1, 30, 12), 0.1, dtype=torch.float64)
    image.view(-1)[:60] = 0.5 + distance
    target = torch.zeros_like(image, dtype=torch.bool)
    target.view(-1)[:300] = True
    clean = 2 * 60 / (60 + 300)
    needed = (distance / (0.5 + distance - image.mean())).sort().values
    kept = next(n for n in range(60, -1, -1) if 2 * n / (n + 300) <= clean / 2)
    attack: Attack = registry.build("contrast(contrast_loss(1), bisections=30)", "attack")
    least = attack(oracle(ORGAN), image, target, [1])
    assert 1 - least.harm.item() == pytest.approx(2 * kept / (kept + 300))
    assert least.size.item() == pytest.approx(needed[59 - kept].item(), abs=1e-6)


def test_a_step_of_lost_contrast_goes_the_share_of_the_way_where_that_climbs() -> None:
    ball = ContrastLoss(0.4)
    image = torch.tensor([0.2, 0.4, 0.9, 0.5], dtype=torch.float64).view(1, 1, 2, 2)  # their mean is 0.5
    grad = torch.tensor([1.0, -1.0, -2.0, 3.0], dtype=torch.float64).view(1, 1, 2, 2)
    expected = torch.tensor([0.4 * 0.3, 0.0, -0.4 * 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ball.step(grad, image).flatten(), expected)
