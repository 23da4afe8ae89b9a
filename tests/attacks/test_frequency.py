"""Quantised frequencies: transforms that invert, staircases, and how far a table can move an image."""

import math

import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from medseg_attack import registry
from medseg_attack.attacks.physical.frequency import Quantised, Vafa, at_full_contrast, dct, idct, quantised, staircase
from medseg_attack.types import Task

SHAPES = [((16, 8), (8, 8)), ((8, 16, 8), (8, 8, 8)), ((3, 16, 8), (1, 8, 8)), ((13, 9), (8, 8))]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("grid", "sides"), SHAPES)
def test_the_transform_inverts_and_keeps_energy(grid: tuple[int, ...], sides: tuple[int, ...]) -> None:
    image = random(2, 1, *grid)
    coefficients = dct(image, sides)
    back = idct(coefficients)[(..., *(slice(n) for n in grid))]
    torch.testing.assert_close(back, image)
    if all(n % side == 0 for n, side in zip(grid, sides, strict=True)):
        assert coefficients.square().sum().item() == pytest.approx(image.square().sum().item())
        block = coefficients[0, 0][tuple(0 if n % 2 == 0 else slice(None) for n in range(2 * len(grid)))]
        first = image[(0, 0, *(slice(side) for side in sides))].numpy()
        torch.testing.assert_close(block, torch.from_numpy(dctn(first, norm="ortho")))


@pytest.mark.parametrize(
    ("value", "soft", "expected"),
    [
        (2.25, 0.1, 2.1518),
        (2.5, 0.1, 2.5),
        (2.75, 0.1, 2.8482),
        (2.25, 0.01, 2.0618),
        (2.75, 0.01, 2.9382),
        (-1.25, 0.01, -1.0618),
        (3.0, 0.1, 3.0),
        (3.0, 0.01, 3.0),
    ],
)
def test_the_staircase_has_the_published_values(value: float, soft: float, expected: float) -> None:
    assert staircase(torch.tensor(value, dtype=torch.float64), soft).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("q", [1.0, 8.0, 20.0])
def test_no_block_moves_by_more_than_half_of_the_table(q: float) -> None:
    image = 0.3 + 0.4 * random(2, 1, 24, 16)
    table = torch.full((2, 8, 8), q, dtype=torch.float64)
    rounded = quantised(image, table, 0.0)
    size = Quantised().size(rounded, image)
    assert (size <= q).all()
    # evenly spread errors have a root mean square of q / sqrt(12); twice that is what is measured
    assert (2 * 255 * (rounded - image).square().mean().sqrt()).item() == pytest.approx(2 * q / math.sqrt(12), rel=0.12)
    tiny = quantised(image, torch.full_like(table, 1e-4), 0.0)
    torch.testing.assert_close(tiny, image, atol=1e-6, rtol=0)


def test_a_stretch_fills_every_plane_and_leaves_flat_ones() -> None:
    image = 0.3 + 0.2 * random(1, 1, 3, 8, 8)
    image[:, :, 1] = 0.4
    contrasted = at_full_contrast(image)
    assert contrasted.amin((-2, -1)).flatten().tolist() == pytest.approx([0, 0.4, 0])
    assert contrasted.amax((-2, -1)).flatten().tolist() == pytest.approx([1, 0.4, 1])


@pytest.mark.parametrize("planes", [False, True])
def test_a_search_does_no_less_than_tables_at_random_and_stays_in_its_ball(planes: bool) -> None:
    model = registry.build("oracle", "model")(Task("t", ("organ",))).double().eval()
    image = 0.45 + 0.1 * random(4, 1, 8, 16, 8)
    target = model.decide(model(image))
    ball = Quantised(20, planes=planes)
    result = Vafa(ball, steps=20)(model, image, target, [1, 2, 3, 4])
    drawn = Vafa(ball, steps=0)(model, image, target, [1, 2, 3, 4])
    assert result.harm.mean() >= drawn.harm.mean() > 0
    assert (result.size <= 20).all()
    assert (result.size > 1).all()


def test_likeness_is_taken_off_the_objective() -> None:
    image = 0.3 + 0.4 * random(2, 1, 16, 16)
    attack = Vafa(ssim=2.0)
    still = attack.render(torch.full((2, 64), -1.0, dtype=torch.float64), image, 1.0).penalty
    coarse = attack.render(torch.full((2, 64), 1.0, dtype=torch.float64), image, 1.0).penalty
    assert still is not None
    assert coarse is not None
    assert (coarse > still).all()
    assert (still >= 0).all()
    assert (coarse <= 4).all()


def test_the_staircase_hardens_until_it_rounds() -> None:
    """Its slopes fall from 0.1 to 0 as the attack goes on, so that the last image is what is stored."""
    attack, image = Vafa(Quantised(20)), random(2, 1, 16, 16)
    numbers = attack.start(image, [1, 2])
    table = (1 + 19 * (numbers + 1) / 2).view(2, *attack.ball.sides(2))  # type: ignore[attr-defined]
    for progress, soft in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        torch.testing.assert_close(attack.render(numbers, image, progress).image, quantised(image, table, soft))
    assert not torch.allclose(quantised(image, table, 0.1), quantised(image, table, 0.0), atol=1e-4)


def test_a_stretch_may_go_from_black_to_white_and_that_is_its_limit() -> None:
    ball = Quantised(stretch=True)
    black = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    assert ball.size(black + 1, black).item() == pytest.approx(ball.limit)


def test_a_step_of_signs_is_half_the_budget_in_grey_levels() -> None:
    """The size is twice the root mean square in levels of 255, so that such a step is as large as the ball."""
    ball, grey = Quantised(20.0), torch.full((1, 1, 8, 8), 0.5)
    step = ball.step(random(1, 1, 8, 8) - 0.5, grey)
    torch.testing.assert_close(step.abs(), torch.full_like(step, 20 / 255 / 2))
    assert ball.size(grey + step, grey).item() == pytest.approx(20.0, rel=1e-5)
