"""Visibility of changes: closed forms, an independent implementation, and what no neighbour in a batch may move."""

import math

import pytest
import torch
from torch import Tensor

from medseg_attack.metrics.visibility import Visibility, body, ssim_map, visibility
from medseg_attack.numerics.noise import noise_of


def tissue(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 + 0.4 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seen(changed: Tensor, image: Tensor) -> list[Visibility]:
    return visibility(changed, image, noise_of(image).tolist())


@pytest.mark.parametrize(("levels", "expected"), [(1, 48.13), (2, 42.11), (4, 36.09), (8, 30.07)])
def test_every_pixel_at_the_budget_gives_the_psnr_of_the_closed_form(levels: int, expected: float) -> None:
    image = tissue(1, 1, 32, 32)
    sign = torch.where(tissue(1, 1, 32, 32, seed=1) > 0.5, 1.0, -1.0)
    (result,) = seen(image + sign * levels / 255, image)
    assert result.psnr == pytest.approx(expected, abs=0.005)


def test_uniform_noise_in_a_ball_has_4_77_db_more_than_its_budget() -> None:
    image = tissue(1, 1, 400, 400)
    change = torch.linspace(-1, 1, 160_000).view(1, 1, 400, 400) * 4 / 255
    assert seen(image + change, image)[0].psnr == pytest.approx(36.09 + 4.77, abs=0.005)


def test_ssim_of_two_constants_is_that_of_the_formula() -> None:
    half, brighter = torch.full((1, 1, 16, 16), 0.5), torch.full((1, 1, 16, 16), 0.6)
    assert seen(brighter, half)[0].ssim == pytest.approx(0.98361, abs=5e-6)


def test_equal_images_are_alike_to_the_last_digit() -> None:
    image = tissue(1, 1, 24, 24)
    (result,) = seen(image, image)
    assert result == (1.0, 1.0, 1.0, math.inf, 0.0)


def test_ssim_is_that_of_another_implementation() -> None:
    from monai.metrics.regression import compute_ssim_and_cs

    first, second = tissue(2, 3, 20, 25), tissue(2, 3, 20, 25, seed=1)
    expected, _ = compute_ssim_and_cs(first, second, 2, [11, 11], [1.5, 1.5], data_range=torch.tensor(1.0))
    assert torch.allclose(ssim_map(first, second).float(), expected.float(), atol=1e-4)  # MONAI's variances are float32


def test_ssim_lies_in_air() -> None:
    """Sign noise of 8/255 halves SSIM on a flat region and is hardly seen on texture: hence the column of the body."""
    sign = torch.where(tissue(1, 1, 200, 200, seed=3) > 0.5, 1.0, -1.0) * 8 / 255
    flat = torch.full((1, 1, 200, 200), 0.5)
    textured = 0.5 + 0.1 * torch.randn(1, 1, 200, 200, generator=torch.Generator().manual_seed(4))
    assert seen(flat + sign, flat)[0].ssim == pytest.approx(0.478, abs=0.01)
    assert seen(textured + sign, textured)[0].ssim == pytest.approx(0.955, abs=0.01)


def test_a_change_of_air_lowers_ssim_and_not_that_of_the_body() -> None:
    image = tissue(1, 1, 40, 40)
    image[..., :20] = 0
    changed = image.clone()
    changed[..., :8] += 0.05
    (result,) = seen(changed, image)
    assert result.ssim < 0.9
    assert result.ssim_body == 1.0
    assert body(image)[..., 20:].all()
    assert not body(image)[..., :20].any()


def test_an_image_of_air_has_no_body_and_none_below_the_window_has_ssim() -> None:
    (air,) = seen(torch.full((1, 1, 16, 16), 0.05), torch.zeros(1, 1, 16, 16))
    assert math.isnan(air.ssim_body)
    assert math.isnan(air.noise_units)
    (small,) = seen(tissue(1, 1, 16, 10) + 0.01, tissue(1, 1, 16, 10))
    assert all(math.isnan(value) for value in small[:3])
    assert small.psnr == pytest.approx(40, abs=0.01)


def test_the_least_of_a_scan_is_that_of_its_worst_slice() -> None:
    scan = tissue(1, 2, 3, 20, 20)
    changed = scan.clone()
    changed[:, :, 1] += 0.1
    (result,) = seen(changed, scan)
    slices = [seen(changed[:, :, n], scan[:, :, n])[0] for n in range(3)]
    assert result.ssim_min == pytest.approx(slices[1].ssim)
    assert result.ssim == pytest.approx(sum(each.ssim for each in slices) / 3)
    assert result.ssim_min < result.ssim < slices[0].ssim == 1


def test_neighbours_in_a_batch_change_nothing() -> None:
    image = tissue(3, 1, 30, 30)
    changed = image + 0.02 * tissue(3, 1, 30, 30, seed=5)
    together = seen(changed, image)
    assert together == [seen(changed[n : n + 1], image[n : n + 1])[0] for n in range(3)]


def test_noise_units_are_multiples_of_the_noise_of_the_image() -> None:
    image = tissue(1, 1, 60, 60)
    (result,) = visibility(image + 0.02, image, [0.01])
    assert result.noise_units == pytest.approx(2, rel=1e-5)
