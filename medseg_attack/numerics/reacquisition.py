"""Steps of a scan between the machine and the reader: export in 8 bits, another window or grid, a codec.

Every function takes images (b, c, *s) in [0, 1] and returns such images. What acts in plane takes the last two axes.
"""

import io

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image as Picture
from torch import Tensor
from torch.nn import functional as F

from medseg_attack.types import Image

EIGHT_BITS = 255


def exported(image: Image) -> Image:
    """The image as 8 bits hold it; its gradient is 0."""
    return (image * EIGHT_BITS).round() / EIGHT_BITS


def rewindowed(image: Image, low: float, high: float) -> Image:
    """The image seen through another window and brought back: what lies outside of it is cut off.

    Args:
        low: lower end of that window, as a share of the first one.
        high: its upper end.
    """
    return image.clamp(low, high)


def resampled(image: Image, factor: float) -> Image:
    """The image on a grid of another spacing in plane, and back; linear, without a filter before.

    Args:
        factor: pixels of that grid for each pixel, above 0.
    """
    planes = image.flatten(0, -3)[:, None]
    grid = [max(1, round(n * factor)) for n in planes.shape[2:]]
    coarse = F.interpolate(planes, grid, mode="bilinear", align_corners=False)
    return F.interpolate(coarse, planes.shape[2:], mode="bilinear", align_corners=False).view_as(image)


def jpeg2000(image: Image, ratio: float) -> Image:
    """Slices written as JPEG 2000 in 8 bits and read again; there is no gradient.

    Args:
        ratio: of the sizes before and after, 1 or more; 1 loses nothing but the rounding to 8 bits.
    """
    pixels = (image.detach().cpu() * EIGHT_BITS).round().clamp(0, EIGHT_BITS).to(torch.uint8).flatten(0, -3)
    decoded = torch.stack([_decoded(one_slice, ratio) for one_slice in pixels])
    return decoded.view(image.shape).to(image) / EIGHT_BITS


def _decoded(pixels: Tensor, ratio: float) -> Tensor:
    file = io.BytesIO()
    sides = max(1, min(6, int(np.log2(max(1, min(pixels.shape))))))
    options = {"quality_mode": "rates", "quality_layers": [ratio]} if ratio > 1 else {"irreversible": False}
    Picture.fromarray(pixels.numpy()).save(file, "JPEG2000", num_resolutions=sides, **options)
    file.seek(0)
    with Picture.open(file) as picture:
        return torch.from_numpy(np.array(picture))


def averaged_slices(image: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
    """Slices twice as thick, and back: each is the mean of itself and its neighbours, with weights 1, 2, 1."""
    padded = torch.cat([image[:, :, :1], image, image[:, :, -1:]], 2)
    return (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
