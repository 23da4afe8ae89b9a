"""Interpolation and composed steps against scipy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg_attack.numerics.flows import SQUARINGS, exponential, moved, pixel_indices, warped


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("grid", [(6,), (5, 7), (1, 6), (4, 1, 5)])
def test_a_flow_interpolates_linearly_and_repeats_the_border_as_scipy_does(grid: tuple[int, ...]) -> None:
    x = torch.rand(2, 3, *grid, generator=rng(0), dtype=torch.float64)
    flow = 6 * torch.rand(2, len(grid), *grid, generator=rng(1), dtype=torch.float64) - 3
    result = warped(x, flow)
    for sample in range(2):
        place = np.indices(grid) + flow[sample].numpy()
        for channel in range(3):
            expected = ndimage.map_coordinates(x[sample, channel].numpy(), place, order=1, mode="nearest")
            np.testing.assert_allclose(result[sample, channel].numpy(), expected, atol=1e-12)


def test_the_index_of_a_pixel_is_along_every_axis() -> None:
    assert np.array_equal(pixel_indices(torch.zeros(2, 3, 4, 5))[0].numpy(), np.indices((4, 5)))


def test_half_of_an_organ_is_enough_where_classes_do_not_exclude_each_other() -> None:
    target = torch.tensor([True, False, False, True]).view(1, 1, 4)
    for by, expected in ((0.5, [True, False, True, True]), (0.51, [False, False, True, True])):
        flow = torch.full((1, 1, 4), by)
        assert moved(target, flow, exclusive=False).flatten().tolist() == expected
    assert torch.equal(moved(target, None, exclusive=False), target)


def test_of_classes_that_exclude_each_other_the_one_with_the_largest_share_stays() -> None:
    kinds = torch.tensor([0, 1, 2, 2])
    target = (kinds == torch.arange(3)[:, None])[None]
    result = moved(target, torch.full((1, 1, 4), 0.6), exclusive=True)
    assert result[0].int().argmax(0).tolist() == [1, 2, 2, 2]
    assert result.dtype == torch.bool


def test_a_velocity_is_followed_in_64_steps() -> None:
    """v = a x makes of x the 64-th power of 1 + a / 64, as long as no step leaves the image."""
    assert SQUARINGS == 6
    place = torch.arange(41, dtype=torch.float64) - 20
    result = exponential((-0.3 * place).view(1, 1, 41))
    torch.testing.assert_close(result[0, 0], ((1 - 0.3 / 64) ** 64 - 1) * place)
