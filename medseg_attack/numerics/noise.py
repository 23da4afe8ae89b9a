"""The noise that an image has of its own."""

import torch

from medseg_attack.types import Image, PerSample


def noise_of(image: Image) -> PerSample:
    """Standard deviation of the noise in [0, 1], from the second differences in plane, robust to edges.

    Immerkaer's operator (doi 10.1006/cviu.1996.0060) with the median absolute deviation in place of the mean, over
    pixels that are not exactly 0 or 1: air and clipped values hold no noise.
    """
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).to(image)
    planes = image.reshape(-1, 1, *image.shape[-2:])
    if min(planes.shape[-2:]) < 3:  # as of an image without one pixel that holds noise
        return image.new_zeros(len(image))
    response = torch.nn.functional.conv2d(planes, kernel[None, None]).reshape(len(image), -1)
    inner = planes[..., 1:-1, 1:-1].reshape(len(image), -1)
    inside = (inner > 0) & (inner < 1)
    deviations = [
        values[mask].abs().median() if mask.any() else values.new_zeros(())
        for values, mask in zip(response, inside, strict=True)
    ]
    return torch.stack(deviations) / 0.6744897501960817 / 6
