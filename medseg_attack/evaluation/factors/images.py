"""Factors of the image: how bright a body is, and how well an organ stands out from what surrounds it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.threat.balls.regions import body
from medseg_attack.types import Batch


@register("luminosity", kind="factor")
def luminosity(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Mean intensity in the patient's body, from 0 to 1 of the window: the hypothesis of arXiv 2401.11224."""
    return torch.full((len(model.task.classes),), float(_in_body(scan).mean()), dtype=torch.float64)


@register("luminosity_spread", kind="factor")
def luminosity_spread(scan: Batch, model: SegModel, card: Mapping[str, Any]) -> Tensor:
    """Standard deviation of the intensity in the patient's body, in parts of the window."""
    return torch.full((len(model.task.classes),), float(_in_body(scan).std()), dtype=torch.float64)


@register("contrast_to_noise", kind="factor", bounds={"ring": "[1, inf)"})
def contrast_to_noise(scan: Batch, model: SegModel, card: Mapping[str, Any], *, ring: int = 3) -> Tensor:
    """Difference of an organ's mean intensity from its surroundings', over the standard deviation there.

    NaN of an organ that is not on the scan, or has no surroundings.

    Args:
        ring: width of the surroundings in pixels, 1 or more.
    """
    image = scan.image.mean(1).double()
    values = []
    for k in range(len(model.task.classes)):
        organ = scan.target[:, k].cpu()
        around = dilated(organ, ring) & ~organ
        if not organ.any() or around.sum() < 2:
            values.append(float("nan"))
            continue
        outside = image.cpu()[around]
        values.append(float((image.cpu()[organ].mean() - outside.mean()).abs() / outside.std()))
    return torch.tensor(values, dtype=torch.float64)


def dilated(mask: Tensor, pixels: int) -> Tensor:
    """The mask (b, *s) of each case with every pixel within `pixels` steps along the axes."""
    if not pixels:
        return mask
    cross = ndimage.generate_binary_structure(mask.ndim - 1, 1)
    grown = [ndimage.binary_dilation(one, cross, iterations=pixels) for one in mask.numpy()]
    return torch.from_numpy(np.stack(grown))


def _in_body(scan: Batch) -> NDArray[np.float64]:
    """Intensities in the bodies on all cases of a scan, the mean of its channels."""
    images = scan.image.mean(1).double().cpu().numpy()
    return np.concatenate([image[body(image)] for image in images])
