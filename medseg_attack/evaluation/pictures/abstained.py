"""Maps of the pixels that a certificate abstains from, over the scan."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from torch import Tensor

from medseg_attack.storage.files import whole
from medseg_attack.types import Batch

ABSTAINED = (0.90, 0.45, 0.0)  # orange, told from grey by those who see no red or no green, too
OPACITY = 0.6


def abstained_picture(scan: Batch, certain: Bool[Tensor, "b *s"]) -> NDArray[np.uint8]:
    """Slices side by side in grey, (rows, columns, 3), and in orange where the certificate abstains.

    Args:
        scan: slices of it in their order, or the whole 3-D scan as one case; the first channel is drawn.
        certain: the pixels that are not abstained from.
    """
    grey = scan.image[:, 0].float().clamp(0, 1).cpu().numpy()
    grey = grey.reshape(-1, *grey.shape[-2:])
    sure = certain.cpu().numpy().reshape(grey.shape)
    coloured = np.repeat(grey[..., None], 3, -1)
    coloured[~sure] = (1 - OPACITY) * coloured[~sure] + OPACITY * np.array(ABSTAINED, np.float32)
    across = math.ceil(math.sqrt(len(grey)))
    down = math.ceil(len(grey) / across)
    page = np.zeros((down * grey.shape[1], across * grey.shape[2], 3), np.float32)
    for n, each in enumerate(coloured):
        row, column = n // across * grey.shape[1], n % across * grey.shape[2]
        page[row : row + grey.shape[1], column : column + grey.shape[2]] = each
    return np.round(page * 255).astype(np.uint8)


def draw_abstained(scan: Batch, certain: Bool[Tensor, "b *s"], path: Path) -> None:
    """Writes the picture to a PNG."""
    from PIL import Image

    with whole(path) as part:
        Image.fromarray(abstained_picture(scan, certain)).save(part, "PNG")
