"""Smooth fields against their closed forms: splines, Legendre polynomials, coarse grids, Gaussian blurs."""

import math

import numpy as np
import pytest
import torch

from medseg_attack.numerics.fields import blurred, legendre, polynomial, smooth, splines, stretched, zeros


def test_a_coarse_grid_is_at_most_as_fine_as_the_image() -> None:
    image = torch.ones(2, 3, 10, 6)
    assert zeros(image, 8).shape == (2, 3, 8, 6)
    assert zeros(image, 0).shape == image.shape
    assert not zeros(image, 4).any()


def test_a_stretched_change_is_linear_between_the_middles_of_its_pixels() -> None:
    line = torch.tensor([0.0, 1.0])
    long = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(stretched(line.view(1, 1, 2), (4,)).flatten(), long)
    plane = stretched(line.view(1, 1, 2, 1) + 10 * line, (4, 4))[0, 0]
    torch.testing.assert_close(plane, long[:, None] + 10 * long)
    volume = stretched(line.view(1, 1, 2, 1, 1) + 10 * line.view(2, 1) + 100 * line, (4, 4, 4))[0, 0]
    torch.testing.assert_close(volume, long.view(4, 1, 1) + 10 * long[:, None] + 100 * long)
    assert stretched(plane[None, None], (4, 4)) is not None
    assert torch.equal(stretched(plane[None, None], (4, 4))[0, 0], plane)


@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_blurred_point_is_a_gaussian_of_a_sixth_of_the_width(width: int) -> None:
    point = torch.zeros(1, 2, 9, 11, dtype=torch.float64)
    point[0, 1, 4, 5] = 1
    sd = (width - 1) / 6 or 1.0
    offsets = np.arange(width) - width // 2
    line = np.exp(-0.5 * (offsets / sd) ** 2)
    line /= line.sum()
    expected = np.zeros((9, 11))
    half = width // 2
    expected[4 - half : 5 + half, 5 - half : 6 + half] = np.outer(line, line)
    result = blurred(point, width)
    np.testing.assert_allclose(result[0, 1].numpy(), expected, atol=1e-12)
    assert not result[0, 0].any()


def test_the_blur_takes_zeros_from_outside() -> None:
    line = math.exp(-4.5) / (1 + 2 * math.exp(-4.5))
    result = blurred(torch.ones(1, 1, 5, 5, dtype=torch.float64), 3)
    assert result[0, 0, 0, 0].item() == pytest.approx((1 - line) ** 2)
    assert result[0, 0, 0, 2].item() == pytest.approx(1 - line)
    assert result[0, 0, 2, 2].item() == pytest.approx(1)


def test_splines_at_their_knots_and_between_them_have_the_textbook_values() -> None:
    knots = torch.tensor([[1, 4, 1, 0, 0], [0, 1, 4, 1, 0], [0, 0, 1, 4, 1]], dtype=torch.float64) / 6
    torch.testing.assert_close(splines(3, 5), knots)
    between = torch.tensor([1, 23, 23, 1, 0], dtype=torch.float64) / 48
    torch.testing.assert_close(splines(5, 5)[1], between)
    torch.testing.assert_close(splines(5, 5)[[0, 2, 4]], knots)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_legendre_polynomials_are_numpys(order: int) -> None:
    expected = np.polynomial.legendre.legvander(np.linspace(-1, 1, 11), order - 1)
    np.testing.assert_allclose(legendre(11, order).numpy(), expected, atol=1e-12)


def test_a_smooth_field_is_the_product_of_splines_along_its_axes() -> None:
    weights = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    weights[0, 1, 2, 3] = 2
    field = smooth(weights, (7, 9))
    torch.testing.assert_close(field[0, 1], 2 * splines(7, 4)[:, 2, None] * splines(9, 5)[:, 3])
    assert not field[0, 0].any()


def test_a_polynomial_field_has_the_products_whose_degree_is_below_the_order() -> None:
    rows, columns = legendre(7, 3), legendre(9, 3)
    for n, m in ((0, 0), (1, 1), (2, 0), (0, 2), (2, 1), (1, 2), (2, 2)):
        weights = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
        weights[0, 0, n, m] = 1
        expected = rows[:, n, None] * columns[:, m] * (n + m < 3)
        torch.testing.assert_close(polynomial(weights, (7, 9))[0, 0], expected)
