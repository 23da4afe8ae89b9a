"""Neighbourhoods against numpy's padding and scipy's filters."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg_attack.errors import InputError
from medseg_attack.numerics.neighbourhoods import box_mean, gaussian_filter, mirrored, neighbours, require_odd

GRIDS = [(7, 4), (5, 1), (3, 4, 6)]


def image(*grid: int) -> torch.Tensor:
    return torch.rand(2, 2, *grid, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("width", [0, 1, 3, 9])
def test_the_mirror_stands_on_the_border_pixels_however_often_it_takes(grid: tuple[int, ...], width: int) -> None:
    x = image(*grid)
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *[(width, width)] * len(grid)], mode="reflect")
    assert np.array_equal(mirrored(x, width).numpy(), expected)


@pytest.mark.parametrize("grid", [(7, 6), (5, 6, 4)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_neighbour_is_the_pixel_at_its_offset(grid: tuple[int, ...], size: int) -> None:
    x = image(*grid)
    shifted = dict(neighbours(x, size))
    assert len(shifted) == size ** len(grid)
    inner = (..., *(slice(2, -2) for _ in grid)) if min(grid) > 4 else (..., slice(2, -2), slice(2, -2), slice(0, 0))
    for offset, values in shifted.items():
        assert max(map(abs, offset)) <= size // 2
        rolled = x.roll([-n for n in offset], dims=list(range(2, x.ndim)))
        assert values.shape == x.shape
        assert torch.equal(values[inner], rolled[inner])
    first = shifted[(-(size // 2),) * len(grid)]
    assert torch.equal(first[(0, 0, *(0 for _ in grid))], x[(0, 0, *(size // 2 for _ in grid))])


@pytest.mark.parametrize("grid", GRIDS)
def test_a_mean_and_a_blur_are_those_of_scipy_with_a_mirror(grid: tuple[int, ...]) -> None:
    x = image(*grid)
    axes = tuple(range(2, x.ndim))
    if min(grid) > 1:
        expected = ndimage.uniform_filter(x.numpy(), 3, mode="mirror", axes=axes)
        np.testing.assert_allclose(box_mean(x, 3).numpy(), expected, atol=1e-12)
    for sigma in (0.1, 0.7, 1.5):
        expected = ndimage.gaussian_filter(x.numpy(), sigma, mode="mirror", axes=axes)
        np.testing.assert_allclose(gaussian_filter(x, sigma).numpy(), expected, atol=1e-12)


def test_a_window_without_a_middle_is_refused_with_the_next_that_has_one() -> None:
    require_odd("median", size=1, search=3)
    for size, remedy in ((-2, 1), (-1, 1), (0, 1), (2, 3), (4, 5)):
        with pytest.raises(InputError, match=f"size of median .* got {size}; write size={remedy}$"):
            require_odd("median", search=5, size=size)
