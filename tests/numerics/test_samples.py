"""Numbers per sample."""

from zlib import crc32

import torch

from medseg_attack.numerics.samples import (
    draw,
    draw_signs,
    gradient_of,
    length,
    reseeded,
    scaled,
    straight_through,
    widen,
)


def test_straight_through_has_the_numbers_of_one_tensor_and_the_gradient_of_another() -> None:
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value, like = 5 * x.sin(), x.square()
    joined = straight_through(value, like)
    assert torch.equal(joined, value)
    (grad,) = torch.autograd.grad(joined.sum(), x)
    assert torch.equal(grad, 2 * x.detach())


def test_a_gradient_is_of_the_sum_and_a_length_is_euclidean() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 2, 1).requires_grad_()
    assert torch.equal(gradient_of(x.flatten(1).square(), x), 2 * x.detach())
    assert length(x.detach()).tolist() == [5.0, 2.0]
    assert widen(length(x.detach()), x).shape == (2, 1, 1, 1)


def test_a_scaled_gradient_has_the_mean_magnitude_1_and_zero_stays_zero() -> None:
    grad = torch.tensor([[1.0, -3.0], [0.0, 0.0], [1e-12, -1e-12]], dtype=torch.float64).view(3, 2, 1)
    expected = torch.tensor([[0.5, -1.5], [0.0, 0.0], [0.5, -0.5]], dtype=torch.float64)
    torch.testing.assert_close(scaled(grad).flatten(1), expected)


def test_seeds_for_a_purpose_are_of_their_text() -> None:
    assert reseeded([7, 8], "restart", 1) == [crc32(b"7/restart/1"), crc32(b"8/restart/1")]


def test_a_sample_is_drawn_from_its_own_seed_with_its_own_generator() -> None:
    like = torch.zeros(2, 1, 50, 50)
    alone = torch.rand((1, 50, 50), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    both = draw(torch.rand, like, [4, 5])
    assert torch.equal(both[1], alone.float())
    assert not torch.equal(both[0], both[1])
    assert both.dtype == like.dtype
    signs = draw_signs(like, [4, 5])
    assert torch.equal(signs[1], torch.where(alone < 0.5, 1.0, -1.0))
