"""Numbers per sample."""

import torch

from medseg_attack.numerics.samples import straight_through


def test_straight_through_has_the_numbers_of_one_tensor_and_the_gradient_of_another() -> None:
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value, like = 5 * x.sin(), x.square()
    joined = straight_through(value, like)
    assert torch.equal(joined, value)
    (grad,) = torch.autograd.grad(joined.sum(), x)
    assert torch.equal(grad, 2 * x.detach())
