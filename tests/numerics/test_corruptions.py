"""Natural corruptions: levels that change nothing, moments that can be written down, seeds."""

import pytest
import torch
from torch import Tensor

from medseg_attack.attacks.controls.corruption import LADDERS, Ladder
from medseg_attack.numerics import corruptions as natural

EVERY = {f"{modality} {kind}": ladder for modality, ladders in LADDERS.items() for kind, ladder in ladders.items()}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scan(*shape: int) -> Tensor:
    """A bright disc with texture on black."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape[-2:]], indexing="ij")
    disc = ((axes[0] ** 2 + axes[1] ** 2) < 0.5).float() * 0.6
    return (disc + 0.05 * torch.rand(shape, generator=rng(9))).double()


def at(ladder: Ladder, severity: float, image: Tensor, seed: int = 0) -> Tensor:
    return ladder.corrupt(image, ladder.at(severity), rng(seed))


@pytest.mark.parametrize("name", EVERY)
def test_each_keeps_the_shape_and_the_kind_of_numbers(name: str) -> None:
    for shape in ((1, 20, 30), (3, 24, 20), (1, 4, 20, 22)):
        for image in (scan(*shape), scan(*shape).float()):
            changed = at(EVERY[name], 3, image)
            assert changed.shape == image.shape
            assert changed.dtype == image.dtype
            assert torch.isfinite(changed).all()


@pytest.mark.parametrize("name", [name for name in EVERY if "jpeg" not in name])
def test_a_severity_near_0_changes_next_to_nothing(name: str) -> None:
    image = scan(1, 60, 56)
    assert (at(EVERY[name], 0, image) - image).abs().mean() < 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_the_change_grows_with_the_severity(name: str) -> None:
    image = scan(1, 64, 60)
    sizes = [
        sum((at(EVERY[name], severity, image, seed) - image).abs().mean().item() for seed in range(40))
        for severity in range(6)
    ]
    assert sizes[1] > 0
    assert sizes[5] > sizes[1] > sizes[0]
    assert sizes[5] > sizes[3]
    if "pixelate" not in name:  # whose pixels of 3 and 2 beside each other cost more than pixels of 2 alone
        assert sizes[3] > sizes[1]


@pytest.mark.parametrize("name", EVERY)
def test_the_seed_alone_decides(name: str) -> None:
    image = scan(1, 30, 30)
    torch.manual_seed(0)
    first = at(EVERY[name], 4, image, seed=5)
    torch.manual_seed(1)
    assert torch.equal(first, at(EVERY[name], 4, image, seed=5))


def test_noise_has_the_moments_of_its_level() -> None:
    grey = torch.full((1, 400, 400), 0.5, dtype=torch.float64)
    assert (natural.gaussian_noise(grey, [0.1], rng()) - grey).std() == pytest.approx(0.1, rel=0.01)
    assert (natural.speckle_noise(grey, [0.1], rng()) - grey).std() == pytest.approx(0.05, rel=0.01)
    shot = natural.shot_noise(grey, [1 / 50], rng())
    assert shot.mean() == pytest.approx(0.5, rel=0.01)
    assert shot.std() == pytest.approx((0.5 / 50) ** 0.5, rel=0.01)
    impulse = natural.impulse_noise(grey, [0.04], rng())
    assert (impulse == 0).double().mean() == pytest.approx(0.02, abs=0.002)
    assert (impulse == 1).double().mean() == pytest.approx(0.02, abs=0.002)


def test_rician_noise_is_relative_to_the_spread_of_the_image() -> None:
    """Far from 0 the deviation of the magnitude is that of one channel."""
    image = 10 + torch.randn(1, 300, 300, generator=rng(3), dtype=torch.float64)
    noisy = natural.rician_noise(image, [0.2], rng())
    assert (noisy - image).std() == pytest.approx(0.2, rel=0.02)


def test_intensities_follow_their_formulas() -> None:
    image = torch.tensor([[[0.2, 0.4], [0.6, 0.8]]], dtype=torch.float64)
    torch.testing.assert_close(natural.brightness(image, [1.5], rng()), 1.5 * image)
    torch.testing.assert_close(natural.contrast(image, [0.5], rng()), 0.5 + 0.5 * (image - 0.5))
    torch.testing.assert_close(natural.gamma(image, [2], rng()), image**2)


@pytest.mark.parametrize("blur", [natural.gaussian_blur, natural.defocus_blur, natural.motion_blur])
def test_a_blur_keeps_constants_and_the_sum_of_a_point(blur: natural.Corruption) -> None:
    grey = torch.full((2, 40, 40), 0.3, dtype=torch.float64)
    torch.testing.assert_close(blur(grey, [10], rng()), grey)
    point = torch.zeros(1, 224, 224, dtype=torch.float64)
    point[0, 112, 112] = 1
    blurred = blur(point, [5], rng())
    assert blurred.sum() == pytest.approx(1)
    assert blurred.max() < 0.2


def test_the_spread_of_a_gaussian_blur_is_its_level_at_224_pixels() -> None:
    point = torch.zeros(1, 224, 224, dtype=torch.float64)
    point[0, 112, 112] = 1
    columns = natural.gaussian_blur(point, [3], rng())[0].sum(0)
    offset = torch.arange(224) - 112
    assert (columns * offset**2).sum().sqrt() == pytest.approx(3, rel=0.01)


def test_pixels_are_the_means_of_those_they_stand_for() -> None:
    image = torch.arange(16.0).view(1, 4, 4)
    assert (
        natural.pixelate(image, [0.5], rng())[0].tolist() == [[2.5] * 2 + [4.5] * 2] * 2 + [[10.5] * 2 + [12.5] * 2] * 2
    )


def test_ghosts_stand_a_share_of_the_image_apart() -> None:
    """Every fourth line weakened: copies a quarter of the field apart, of an eighth of the intensity."""
    image = torch.zeros(1, 64, 64, dtype=torch.float64)
    image[0, 32, 32] = 1
    ghosted = natural.ghosting(image, [4, 0.5], rng())
    line = ghosted[0, :, 32] if ghosted[0, 16, 32] > ghosted[0, 32, 16] else ghosted[0, 32]
    assert line[[0, 16, 48]].tolist() == pytest.approx([0.125] * 3, abs=0.02)
    assert line[32] == pytest.approx(0.875, abs=0.02)


def test_movement_of_nothing_changes_nothing_and_the_centre_of_k_space_holds_the_pose() -> None:
    image = scan(1, 60, 60)
    torch.testing.assert_close(natural.motion(image, [0, 0, 4], rng()), image)
    moved = natural.motion(image, [5, 10, 6], rng(2))
    inside = image[0] > 0.5
    assert (moved[0][inside] > 0.3).double().mean() > 0.9
