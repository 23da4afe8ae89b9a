"""The noise of an image, also of one that is smaller than the operator that measures it."""

import pytest
import torch

from medseg_attack.numerics.noise import noise_of

TO_DEVIATION = 0.6744897501960817  # the median of the magnitude of a normal number of deviation 1


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (2, 3, 2, 5), (1, 1, 4, 1, 1)])
def test_an_image_of_a_few_pixels_has_no_noise(shape: tuple[int, ...]) -> None:
    assert noise_of(torch.rand(shape)).tolist() == [0.0] * shape[0]


def test_a_pixel_and_its_eight_neighbours_are_weighted_by_the_operator() -> None:
    """Of white noise the operator's answer has the deviation 6."""
    weights = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
    assert weights.square().sum().sqrt() == 6
    image = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[3, 0, 1, 1], image[4, 0, 1, 1] = 0.0, 1.0  # nothing was measured there
    expected = (image[:, 0] * weights).sum((1, 2)).abs() / TO_DEVIATION / 6
    expected[3:] = 0
    torch.testing.assert_close(noise_of(image), expected, rtol=1e-12, atol=0)


def test_noise_is_the_median_over_all_channels_and_slices_of_each_image() -> None:
    single = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    levels = noise_of(single).sort().values
    together = single.view(2, 3, 1, 3, 3)
    expected = [noise_of(single[3 * n : 3 * n + 3]).median() for n in range(2)]
    assert noise_of(together).tolist() == pytest.approx([value.item() for value in expected])
    assert noise_of(single.view(1, 6, 3, 3)).item() == pytest.approx(levels[2].item())


def test_pixels_without_noise_are_left_out_of_the_median() -> None:
    image = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    image[0, 0, 1, 2] = 1.0
    known = [noise_of(image[..., n : n + 3]).item() for n in (0, 1, 2)]
    assert known[1] == 0
    assert noise_of(image).item() == pytest.approx(min(known[0], known[2]))  # the lower of the two in the middle
