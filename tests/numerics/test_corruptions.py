"""Natural corruptions: levels that change nothing, moments that can be written down, seeds."""

import io
import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from scipy import ndimage
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


def draws(seed: int, n: int) -> list[float]:
    generator = rng(seed)
    return [float(torch.rand((), generator=generator, dtype=torch.float64)) for _ in range(n)]


def noise_image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=rng(8), dtype=torch.float64)


def test_impulses_are_black_below_half_their_share_and_white_above() -> None:
    image = noise_image(1, 40, 40)
    draw = torch.rand(image.shape, generator=rng(), dtype=torch.float64)
    expected = image.clone()
    expected[draw < 0.15], expected[draw > 0.85] = 0, 1
    assert torch.equal(natural.impulse_noise(image, [0.3], rng()), expected)


def test_noise_is_drawn_from_a_normal_distribution_of_the_seed() -> None:
    image = noise_image(1, 9, 9) - 0.3
    normal = torch.randn(image.shape, generator=rng(), dtype=torch.float64)
    torch.testing.assert_close(natural.gaussian_noise(image, [0.2], rng()), image + 0.2 * normal)
    torch.testing.assert_close(natural.speckle_noise(image, [0.2], rng()), image + 0.2 * image * normal)
    generator = rng()
    sd = 0.2 * image.numpy().std()
    one, two = (torch.randn(image.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = ((image + sd * one) ** 2 + (sd * two) ** 2).sqrt()
    torch.testing.assert_close(natural.rician_noise(image, [0.2], rng()), expected)
    counts = torch.poisson(image.clamp(min=0) / 0.1, generator=rng())
    torch.testing.assert_close(natural.shot_noise(image, [0.1], rng()), 0.1 * counts)


@pytest.mark.parametrize(("side", "pixels"), [(224, 2.0), (112, 1.0), (448, 4.0)])
def test_a_gaussian_blur_is_scipys_and_its_length_grows_with_the_image(side: int, pixels: float) -> None:
    image = noise_image(2, side // 4, side).movedim(-1, 1 if side > 112 else -1)
    expected = ndimage.gaussian_filter(image.numpy(), pixels, mode="nearest", axes=(1, 2))
    torch.testing.assert_close(natural.gaussian_blur(image, [2], rng()), torch.from_numpy(expected))
    assert torch.equal(natural.gaussian_blur(image, [0], rng()), image)


def point() -> Tensor:
    image = torch.zeros(1, 224, 224, dtype=torch.float64)
    image[0, 112, 112] = 1
    return image


PLACE = np.indices((224, 224)) - 112.0


@pytest.mark.parametrize("radius", [3.4, 3.8])
def test_a_point_out_of_focus_is_a_disc_with_a_soft_edge(radius: float) -> None:
    disc = np.clip(radius + 0.5 - np.hypot(*PLACE), 0, 1)
    disc[np.abs(PLACE).max(0) > 4] = 0
    result = natural.defocus_blur(point(), [radius], rng())
    np.testing.assert_allclose(result[0].numpy(), disc / disc.sum(), atol=1e-12)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_moved_point_is_a_line_of_a_pixels_width(seed: int) -> None:
    angle = math.pi * draws(seed, 1)[0]
    rows, columns = PLACE
    along = columns * math.cos(angle) + rows * math.sin(angle)
    across = rows * math.cos(angle) - columns * math.sin(angle)
    line = np.clip(5.2 + 0.5 - np.abs(along), 0, 1) * np.clip(1 - np.abs(across), 0, 1)
    line[np.abs(PLACE).max(0) > 6] = 0
    result = natural.motion_blur(point(), [5.2], rng(seed))
    np.testing.assert_allclose(result[0].numpy(), line / line.sum(), atol=1e-12)


def test_a_zoom_is_about_the_centre_and_the_mean_of_eleven() -> None:
    place = torch.arange(40, dtype=torch.float64) - 19.5
    ramp = (place[:, None] + 100 * place).view(1, 40, 40)
    factor = sum(1 / (1 + 0.5 * n / 10) for n in range(11)) / 11
    torch.testing.assert_close(natural.zoom_blur(ramp, [0.5], rng()), factor * ramp, rtol=1e-6, atol=1e-3)


def test_fewer_pixels_are_at_least_one_a_side() -> None:
    image = noise_image(2, 6, 4)
    result = natural.pixelate(image, [0.01], rng())
    torch.testing.assert_close(result, image.mean((1, 2), keepdim=True).expand_as(image))
    third = natural.pixelate(image, [1 / 3], rng())  # two rows, one column
    torch.testing.assert_close(third[:, :3], image[:, :3].mean((1, 2), keepdim=True).expand(2, 3, 4))


def test_jpeg_is_that_of_libjpeg_at_its_quality_slice_by_slice() -> None:
    image = 1.4 * noise_image(2, 3, 16, 24) - 0.2
    result = natural.jpeg_compression(image, [41.6], rng())
    for channel in range(2):
        for n in range(3):
            file = io.BytesIO()
            pixels = np.clip(np.round(image[channel, n].numpy() * 255), 0, 255).astype(np.uint8)
            Picture.fromarray(pixels).save(file, "JPEG", quality=42)
            expected = np.array(Picture.open(file)) / 255
            np.testing.assert_allclose(result[channel, n].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("grid", [(5, 7), (3, 4, 5)])
def test_a_bias_field_is_the_exponential_of_a_polynomial_of_degree_3(grid: tuple[int, ...]) -> None:
    powers = [p for p in product(range(4), repeat=len(grid)) if sum(p) <= 3]
    places = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid), indexing="ij")
    exponent = sum(
        0.3 * (2 * u - 1) * np.prod([place**n for place, n in zip(places, p, strict=True)], axis=0)
        for u, p in zip(draws(3, len(powers)), powers, strict=True)
    )
    image = noise_image(2, *grid)
    result = natural.bias_field(image, [0.3], rng(3))
    np.testing.assert_allclose(result.numpy(), image.numpy() * np.exp(exponent), rtol=1e-10)


@pytest.mark.parametrize("seed", [0, 2, 3])
@pytest.mark.parametrize(("period", "lines"), [(1, 2), (2, 2), (3, 3), (300, 300)])
def test_ghosts_come_of_weakened_lines_beside_the_centre_of_k_space(period: int, lines: int, seed: int) -> None:
    image = noise_image(1, 100, 150)
    axis = 2 - round(draws(seed, 1)[0])
    n = image.shape[axis]
    factor = np.where(np.arange(n) % lines == 0, 0.3, 1.0)
    factor[np.abs(np.arange(n) - n // 2) <= n / 100] = 1
    spectrum = np.fft.fftshift(np.fft.fft(image.numpy(), axis=axis), axes=axis)
    spectrum *= factor.reshape([n if k == axis else 1 for k in range(3)])
    expected = np.abs(np.fft.ifft(np.fft.ifftshift(spectrum, axes=axis), axis=axis))
    result = natural.ghosting(image, [period, 0.7], rng(seed))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-10)


def posed(image: np.ndarray, degrees: float, shift: tuple[float, float], zoom: float = 1.0) -> np.ndarray:
    """Every slice looked up where it was: turned and shrunk about the centre, then shifted by (columns, rows)."""
    middle = (np.array(image.shape[-2:]) - 1)[:, None, None] / 2
    rows, columns = np.indices(image.shape[-2:]) - middle
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    place = np.stack([sin * columns + cos * rows + shift[1], cos * columns - sin * rows + shift[0]]) + middle
    planes = [
        ndimage.map_coordinates(plane, place, order=1, mode="nearest") for plane in image.reshape(-1, *image.shape[-2:])
    ]
    return np.stack(planes).reshape(image.shape)


@pytest.mark.parametrize(("degrees", "shift", "zoom"), [(0, (2, -3), 1), (90, (0, 0), 1), (25, (1.5, 0.25), 1.3)])
def test_a_pose_turns_shifts_and_magnifies_in_pixels(degrees: float, shift: tuple[float, float], zoom: float) -> None:
    image = noise_image(2, 3, 21, 30)
    result = natural._posed(image, degrees, shift, zoom)
    np.testing.assert_allclose(result.numpy(), posed(image.numpy(), degrees, shift, zoom), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("level", [[20, 30, 3], [20, 30, 0.2]])
def test_lines_of_k_space_are_measured_in_the_pose_of_their_time(level: list[float], seed: int) -> None:
    image = noise_image(1, 21, 30)
    moves = max(1, round(level[2]))
    numbers = iter(draws(seed, 1 + 4 * moves))
    axis = 2 - round(next(numbers))
    n = image.shape[axis]
    ends = sorted(int(n * next(numbers)) for _ in range(moves))
    spectrum = np.fft.fftshift(np.fft.fft(image.numpy(), axis=axis), axes=axis).swapaxes(axis, 0)
    centre = n // 2  # where frequency 0 lies
    for start, end in zip(ends, [*ends[1:], n], strict=True):
        degrees, *shift = [(2 * next(numbers) - 1) * most for most in (level[0], *2 * [level[1] * 30 / 224])]
        if not start <= centre < end:
            scan = posed(image.numpy(), degrees, (shift[0], shift[1]))
            other = np.fft.fftshift(np.fft.fft(scan, axis=axis), axes=axis).swapaxes(axis, 0)
            spectrum[start:end] = other[start:end]
    expected = np.abs(np.fft.ifft(np.fft.ifftshift(spectrum.swapaxes(axis, 0), axes=axis), axis=axis))
    result = natural.motion(image, level, rng(seed))
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_fewer_samples_along_an_axis_have_lines_between_them(seed: int) -> None:
    image = noise_image(2, 4, 4)
    axis = 1 + round(draws(seed, 1)[0])
    lines = image.swapaxes(axis, 1)
    first, second = lines[:, 0], lines[:, 2]
    expected = torch.stack([first, 0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second, second], 1)
    result = natural.anisotropy(image, [2], rng(seed)).swapaxes(axis, 1)
    torch.testing.assert_close(result, expected)
    alone = natural.anisotropy(image, [9], rng(seed)).swapaxes(axis, 1)
    torch.testing.assert_close(alone, lines[:, :1].expand_as(lines))
