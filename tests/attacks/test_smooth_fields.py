"""Thin plates and pyramids: splines through their points, and pyramids that add up to their image."""

import pytest
import torch

from medseg_attack import registry
from medseg_attack.attacks.physical.ascent import Parametrised
from medseg_attack.attacks.physical.exposure import BRACKET
from medseg_attack.attacks.physical.pyramid import laplacian
from medseg_attack.attacks.physical.thin_plate import bent_coordinates, polynomial_at
from medseg_attack.errors import InputError
from medseg_attack.numerics.fields import polynomial, stretched


@pytest.mark.parametrize("axes", [2, 3])
def test_a_plate_goes_through_its_points_and_bends_affinely_without_strain(axes: int) -> None:
    grid = (7, 10, 13)[:axes]  # the points lie on pixels where 3 divides a side less 1
    flat = torch.zeros(1, axes, 4**axes, dtype=torch.float64)
    still = bent_coordinates(flat, grid)
    lines = torch.meshgrid(*[torch.linspace(-1, 1, n, dtype=torch.float64) for n in grid], indexing="ij")
    torch.testing.assert_close(still[0], torch.stack(lines), atol=1e-10, rtol=0)
    moves = 0.1 * (torch.rand(1, axes, 4**axes, generator=torch.Generator().manual_seed(1)).double() - 0.5)
    inner = [slice((n - 1) // 3, n - 1, (n - 1) // 3) for n in grid]  # at the border they are cut
    bent = bent_coordinates(moves, grid)[(0, slice(None), *inner)]
    at_points = torch.stack(lines)[(slice(None), *inner)]
    expected = at_points + moves.view(axes, *(4,) * axes)[(slice(None), *(slice(1, 3),) * axes)]
    torch.testing.assert_close(bent, expected, atol=1e-9, rtol=0)
    assert bent_coordinates(5 * moves, grid).abs().max() <= 1


def test_polynomials_on_still_coordinates_are_those_of_a_bias_field() -> None:
    weights = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    still = bent_coordinates(torch.zeros(2, 2, 16, dtype=torch.float64), (12, 9))
    torch.testing.assert_close(polynomial_at(weights, still), polynomial(weights[:, None], (12, 9)))


def test_without_weights_a_field_is_one_and_strength_is_its_bound() -> None:
    image = torch.rand(2, 1, 12, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    attack: Parametrised = registry.build("adv_sbf(gain(0.2))", "attack")
    numbers = attack.start(image, [1, 2])
    numbers[:, :36] = 0
    assert torch.equal(attack.render(numbers, image, 1.0).image, image)
    field = attack.render(attack.start(image, [1, 2]), image, 1.0).image / image
    assert field.min() >= 0.8 - 1e-9
    assert field.max() <= 1.2 + 1e-9
    assert (field - 1).abs().max() > 0.05


@pytest.mark.parametrize("shape", [(16, 12), (9, 13), (5, 6, 7)])
def test_a_pyramid_adds_up_to_its_image(shape: tuple[int, ...]) -> None:
    image = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    levels = laplacian(image, 3)
    result = levels[-1]
    for detail in reversed(levels[:-1]):
        result = detail + stretched(result, tuple(detail.shape[2:]))
    torch.testing.assert_close(result, image, atol=1e-15, rtol=0)


@pytest.mark.parametrize("shape", [(16, 12), (5, 6, 7)])
def test_all_weight_on_the_exposure_of_the_image_is_the_image(shape: tuple[int, ...]) -> None:
    """The softmax leaves the others less than 1 % each: within 2 % of the darkest and the brightest."""
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 2
    attack: Parametrised = registry.build("bef_pyramid", "attack")
    numbers = -torch.ones_like(attack.start(image, [1])).view(1, 3, len(BRACKET), -1)
    numbers[:, :, BRACKET.index(0.0)] = 1
    torch.testing.assert_close(attack.render(numbers.flatten(1), image, 1.0).image, image, atol=0.02, rtol=0)


def test_a_coarse_level_may_be_brighter_while_details_stay() -> None:
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(6), dtype=torch.float64) / 2
    attack: Parametrised = registry.build("bef_pyramid", "attack")
    numbers = -torch.ones_like(attack.start(image, [1])).view(1, 3, len(BRACKET), -1)
    numbers[:, :2, BRACKET.index(0.0)] = 1  # details as they are
    numbers[:, 2, -1] = 1  # the coarsest level half a stop brighter
    x = attack.render(numbers.flatten(1), image, 1.0).image
    fine, half, coarse = laplacian(image, 3)
    expected = fine + stretched(half + stretched(2**0.5 * coarse, (16, 16)), (32, 32))
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", ["adv_sbf(order=0)", "adv_sbf(bend=1)", "bef_pyramid(levels=0)", "bef_pyramid(linf)"])
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        registry.build(text, "attack")
