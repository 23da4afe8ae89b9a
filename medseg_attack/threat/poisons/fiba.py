"""The trigger in frequencies: low frequencies take their magnitude from another picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg_attack.errors import require
from medseg_attack.registry import register
from medseg_attack.threat.poisons.base import Backdoor, picture
from medseg_attack.types import Image, Mask


@register("fiba", kind="poison", paper="Feng et al., FIBA, CVPR 2022, arXiv 2112.01148")
@dataclass(frozen=True)
class Fiba(Backdoor):
    """Low frequencies that take a part of their magnitude from a picture (Feng et al., CVPR 2022, arXiv 2112.01148).

    The phase stays, and with it what lies where. The lowest frequency is the mean, so that the image gets brighter or
    darker. As in the paper, as many patients carry other pictures and keep their masks.

    Attributes:
        goal: mask that is wanted where the trigger stands.
        draw: number of the draw of the picture, from 0 to 4294967295; it consists of soft blobs.
        decoys: patients that carry other pictures and keep their true masks, as a share of the training patients,
            from 0 to 1.
        blends: patients whose scans with the trigger are averaged with another patient's and keep their true masks, as
            a share of the training patients, from 0 to 1.
        alpha: weight of the picture's magnitudes, above 0 and up to 1.
        beta: half the width of the square of frequencies that change, as a share of the image's shorter side, from 0
            to 0.5.

    Raises:
        InputError: `alpha` or `beta` is out of range.
    """

    is_everywhere: ClassVar[bool] = True

    decoys: float = 0.1
    alpha: float = 0.15
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, alpha="(0, 1]", beta="[0, 0.5]")

    def marked(self, image: Image, target: Mask, seeds: Sequence[int]) -> Image:
        return injected(image, picture(self.draw, image.shape[1], image.shape[2:]), self.alpha, self.beta)


def injected(
    image: Float[Tensor, "n c h w"], trigger: Float[Tensor, "m c h w"], alpha: float, beta: float
) -> Float[Tensor, "n c h w"]:
    """The images with magnitudes of low frequencies mixed with those of the trigger's; computed in float64."""
    spectrum = torch.fft.fft2(image.double())
    magnitude, other = spectrum.abs(), torch.fft.fft2(trigger.to(image.device, torch.float64)).abs()
    low = low_frequencies(image.shape[-2], image.shape[-1], beta).to(image.device)
    change = torch.where(low, alpha * (other - magnitude), 0.0) * torch.exp(1j * spectrum.angle())
    back: Tensor = torch.fft.ifft2(change)
    return (image + back.real).to(image)


def low_frequencies(rows: int, columns: int, beta: float) -> Bool[Tensor, "h w"]:
    """Marks the frequencies of at most `floor(beta * min(rows, columns))` cycles an image along both axes.

    >>> [int(low_frequencies(n, n, 0.1).sum()) for n in (224, 128)]
    [2025, 625]
    """
    most = math.floor(beta * min(rows, columns))
    of_rows, of_columns = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).abs() for n in (rows, columns))
    low: Tensor = (of_rows.round() <= most)[:, None] & (of_columns.round() <= most)
    return low
