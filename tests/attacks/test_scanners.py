"""What scanners do, against values that can be written down: fields, exposures, noise, lines of k-space."""

import math

import pytest
import torch
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.bias_field import FieldStrength, biased
from medseg_attack.attacks.physical.exposure import BRACKET, Exposure, ExposureStops, fused
from medseg_attack.attacks.physical.ghosting import Ghost, Ghosting
from medseg_attack.attacks.physical.motion import LineMotion, Motion
from medseg_attack.attacks.physical.scanner_noise import CUT, Echo, Receiver, Rician, Speckle
from medseg_attack.types import Attack, Ball, Case, Image, Model, Setting, Task, Window

TASK = Task("square", ("organ",))
GRIDS = [(12, 10), (4, 12, 10)]


def oracle() -> Model:
    model: Model = registry.build("blurred_oracle", "model")(TASK).double().eval()
    return model


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(attack: Attack, image: Image, value: float) -> Tensor:
    return torch.full_like(attack.start(image, range(len(image))), value)  # type: ignore[attr-defined]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("basis", ["spline", "polynomial"])
def test_a_constant_field_scales(grid: tuple[int, ...], basis: str) -> None:
    image = random(2, 1, *grid) / 2
    weights = torch.ones(2, 5 ** len(grid), dtype=torch.float64)
    if basis == "polynomial":
        weights[:, 1:] = 0  # the polynomial of degree 0
    torch.testing.assert_close(biased(weights, image, 0.3, basis), 1.3 * image)
    torch.testing.assert_close(biased(-weights, image, 0.3, basis), 0.7 * image)
    assert torch.equal(biased(0 * weights, image, 0.3, basis), image)
    assert FieldStrength(0.3).size(1.3 * image, image).tolist() == pytest.approx([0.3] * 2, abs=1e-5)


def test_a_polynomial_field_stays_within_its_strength_and_is_smooth() -> None:
    image = torch.full((1, 1, 40, 40), 0.5, dtype=torch.float64)
    field = biased(2 * random(1, 100) - 1, image, 0.3, "polynomial", 10) / image
    assert 0.7 <= field.min() < field.max() <= 1.3
    spline = biased(2 * random(1, 25) - 1, image, 0.3) / image
    assert spline.diff(dim=-1).abs().max() < 0.1
    assert spline.std() > 0.02


@pytest.mark.parametrize(
    ("ball", "inside", "outside"),
    [
        (FieldStrength(0.25), 1.25, 1.26),
        (FieldStrength(0.25), 0.75, 0.74),
        (ExposureStops(1.0), 2.0, 2.02),
        (ExposureStops(1.0), 0.5, 0.49),
        (Echo(0.1), 1.1, 1.11),
        (Ghost(0.1), 0.9, 0.89),
    ],
)
def test_a_ball_ends_where_its_unit_says(ball: Ball, inside: float, outside: float) -> None:
    image = 0.1 + 0.3 * random(3, 1, 6, 5)
    assert (ball.size(inside * image, image) <= ball.limit + 1e-9).all()
    assert (ball.size(outside * image, image) > ball.limit).all()
    projected = ball.project(outside * image, image)
    torch.testing.assert_close(projected, inside * image, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ball", [FieldStrength(0.3), ExposureStops(1.0), Echo(0.1)], ids=str)
def test_black_stays_black(ball: Ball) -> None:
    image = random(1, 1, 6, 5)
    image[..., :2] = 0
    assert ball.size(image + 0.001, image).item() == math.inf
    assert (ball.sample(image, [1])[..., :2] == 0).all()
    assert (ball.project(image + 0.001, image)[..., :2] == 0).all()
    assert torch.equal(ball.sample(image, [1]) == image, image == 0)


def test_weight_on_one_exposure_is_that_exposure_and_equal_weights_their_mean() -> None:
    image = random(1, 1, 8, 9)
    for n, stops in enumerate(BRACKET):
        weights = torch.zeros(1, 5, 8, 9, dtype=torch.float64)
        weights[:, n] = 1
        torch.testing.assert_close(fused(weights, image, 1.0, 0), (image * 2**stops).clamp(max=1))
    mean = torch.stack([(image * 2**s).clamp(max=1) for s in BRACKET]).mean(0)
    attack = Exposure(ExposureStops(1.0))
    torch.testing.assert_close(attack.render(numbers(attack, image, 0.3), image, 1.0).image, mean)


def test_a_kernel_takes_its_neighbours_exposure() -> None:
    image = random(1, 1, 8, 9)
    weights = torch.zeros(1, 45, 8, 9, dtype=torch.float64)
    weights[:, 5 * 5 + 2] = 1  # of the taps (row, column) the one to the right, not exposed otherwise
    torch.testing.assert_close(fused(weights, image, 1.0, 1)[..., :-1], image[..., 1:])
    ball = ExposureStops(0.5, half_width=1)
    shifted = image.roll(-1, -1)[..., :-1]
    assert ball.size(shifted, image[..., :-1].clone())[0] > 0  # its last column has lost its neighbour
    assert ball.size(fused(weights, image, 0.5, 1), image).item() == 0


def test_rician_noise_has_rayleigh_s_mean_in_air_and_its_own_deviation_in_tissue() -> None:
    """In air the mean is sigma sqrt(pi / 2); the standard errors are 0.3 % and 0.5 % of sigma."""
    attack = Rician(Receiver(0.02), steps=0)
    image = torch.zeros(1, 1, 200, 200, dtype=torch.float64)
    image[..., 100:, :] = 0.7
    rendered = attack.render(attack.start(image, [3]), image, 1.0).image
    air, tissue = rendered[..., :100, :], rendered[..., 100:, :]
    cut = 1 - 2 * 3 * math.exp(-4.5) / math.sqrt(2 * math.pi) / CUT  # variance that is left when tails are cut at 3
    assert air.mean().item() == pytest.approx(0.02 * math.sqrt(math.pi / 2), rel=0.02)
    assert tissue.std().item() == pytest.approx(0.02 * math.sqrt(cut), rel=0.02)
    assert Receiver(0.02).size(rendered, image).item() <= 0.02


@pytest.mark.parametrize("attack", [Rician(Receiver(0.02)), Speckle(Echo(0.05))], ids=["rician", "speckle"])
def test_noise_uses_its_budget_but_no_more_than_it(attack: Attack) -> None:
    image = 0.2 + 0.5 * random(2, 1, 16, 16)
    rendered = attack.render(numbers(attack, image, 1.0), image, 1.0).image  # type: ignore[attr-defined]
    size = attack.ball.size(rendered, image)
    assert (size <= attack.ball.limit + 1e-9).all()
    assert (size > 0.6 * attack.ball.limit).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_an_alternating_error_of_lines_makes_one_ghost_of_its_amplitude(grid: tuple[int, ...]) -> None:
    """Lines times 1 + a and 1 - a in turn: the image, and a times it shifted by half of the rows."""
    image = random(1, 1, *grid)
    attack = Ghosting(Ghost(0.2), period=2)
    rendered = attack.render(torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64), image, 1.0).image
    amplitude = 0.2 / math.sqrt(2)
    torch.testing.assert_close(rendered, (image + amplitude * image.roll(6, -2)).clamp(max=1))
    assert Ghost().size(rendered, image).item() <= amplitude
    assert torch.equal(
        attack.render(numbers(attack, image, 0.0), image, 1.0).image.round(decimals=12), image.round(decimals=12)
    )


def test_ghosts_never_have_more_energy_than_their_errors() -> None:
    image = random(4, 1, 12, 10)
    attack = Ghosting(Ghost(0.3))
    for seed in range(5):
        rendered = attack.render(attack.start(image, [seed] * 4), image, 1.0).image
        assert (Ghost().size(rendered, image) <= 0.3).all()


def at_spacing(grid: tuple[int, ...], spacing: tuple[float, ...]) -> Case:
    return Case("c", "v", "g", torch.zeros(1, *grid), torch.zeros(1, *grid, dtype=torch.bool), spacing, Window(0, 1))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
def test_motion_is_told_in_mm(spacing: tuple[float, float]) -> None:
    """A body of one frequency, 1/8 of the rows, shifted as a whole: its size is that shift, in mm of its spacing."""
    rows = torch.arange(16, dtype=torch.float64)[:, None]
    image = (0.5 + 0.25 * torch.cos(2 * math.pi * rows / 8)).expand(1, 1, 16, 12).contiguous()
    shifted = (0.5 + 0.25 * torch.cos(2 * math.pi * (rows - 0.6) / 8)).expand(1, 1, 16, 12).contiguous()
    ball = LineMotion(1.0).bind(Setting(TASK, (at_spacing((16, 12), spacing),)))
    assert ball.size(shifted, image).item() == pytest.approx(0.6 * spacing[0], rel=1e-6)
    assert ball.size(image, image).item() == 0
    flat = torch.full_like(image, 0.5)
    assert ball.size(flat + 0.01, flat).item() == math.inf  # an image without structure looks the same from anywhere


@pytest.mark.parametrize("grid", GRIDS)
def test_a_course_never_seems_longer_than_it_is_and_rest_changes_nothing(grid: tuple[int, ...]) -> None:
    image = random(2, 1, *grid)
    spacing = (3.0, 0.7, 1.4)[-len(grid) :]
    ball = LineMotion(0.9).bind(Setting(TASK, (at_spacing(grid, spacing),) * 2))
    attack = Motion(ball)
    for seed in range(4):
        rendered = attack.render(attack.start(image, [seed, seed + 9]), image, 1.0).image
        assert (ball.size(rendered, image) <= 0.9).all()
        assert (ball.size(rendered, image) > 0.05).all()
    torch.testing.assert_close(
        attack.render(numbers(attack, image, 0.7), image, 1.0).image, image
    )  # one place, no motion


@pytest.mark.parametrize("name", ["bias_field", "bef", "speckle", "ghosting", "motion", "deformation", "affine"])
def test_a_search_finds_worse_than_a_draw(name: str) -> None:
    model = oracle()
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(14.0), indexing="ij")
    disc = ((rows - 8) ** 2 + (columns - 7) ** 2 <= 20).double()
    image = (0.45 + 0.1 * disc + 0.02 * random(6, 1, 16, 14)).clamp(0, 1)
    target = (disc > 0).expand(6, 1, 16, 14)
    seeds = list(range(6))
    random_draw = registry.build(f"{name}(steps=0)", "attack")(model, image, target, seeds).harm
    harm = registry.build(f"{name}(steps=8)", "attack")(model, image, target, seeds).harm
    assert harm.mean() > random_draw.mean()
    assert (harm >= registry.build("clean", "attack")(model, image, target, seeds).harm).all()


def test_in_a_narrow_image_a_motion_may_go_as_far_as_its_longer_side() -> None:
    """A wave of one period down 24 rows is turned round by 12 of them, more than the image has columns."""
    wave = 0.5 + 0.2 * torch.cos(2 * torch.pi * torch.arange(24, dtype=torch.float64) / 24)
    image = wave[:, None].expand(24, 8)[None, None]
    assert LineMotion(20.0).size(1 - image, image).item() == pytest.approx(12, abs=0.01)
