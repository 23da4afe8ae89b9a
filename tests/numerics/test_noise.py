"""The noise of an image, also of one that is smaller than the operator that measures it."""

import pytest
import torch

from medseg_attack.numerics.noise import noise_of


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 3, 2, 5), (1, 1, 4, 1, 1)])
def test_an_image_of_a_few_pixels_has_no_noise(shape: tuple[int, ...]) -> None:
    assert noise_of(torch.rand(shape)).tolist() == [0.0] * shape[0]
