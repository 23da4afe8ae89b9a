"""JPEG, encoded and decoded again."""

import io

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Slices (..., rows, columns) in [0, 1], each written as JPEG in 8 bits and read again.

    Args:
        quality: 1 to 95, of libjpeg.
    """
    slices = (image.detach().cpu() * 255).round().clamp(0, 255).to(torch.uint8).flatten(0, -3)
    decoded = torch.stack([_decoded(one_slice, quality) for one_slice in slices])
    return decoded.view(image.shape).to(image) / 255


def _decoded(pixels: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Picture.fromarray(pixels.numpy()).save(file, "JPEG", quality=quality)
    file.seek(0)
    with Picture.open(file) as picture:
        return torch.from_numpy(np.array(picture))
