"""The noise that an image has of its own."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.numerics.slabs import SLAB
from medseg_attack.types import Image, PerSample


def noise_of(image: Image) -> PerSample:
    """Standard deviation of the noise in [0, 1], from the second differences in plane, robust to edges.

    Immerkaer's operator (doi 10.1006/cviu.1996.0060) with the median absolute deviation in place of the mean, over
    pixels that are not exactly 0 or 1: air and clipped values hold no noise.
    """
    planes = image.reshape(-1, 1, *image.shape[-2:])
    if min(planes.shape[-2:]) < 3:  # as of an image without one pixel that holds noise
        return image.new_zeros(len(image))

    def magnitudes(planes: Tensor) -> Tensor:
        inner = planes[..., 1:-1, 1:-1]
        return second_differences(planes)[(inner > 0) & (inner < 1)].abs()

    def deviation(planes: Tensor) -> Tensor:
        n = max(1, SLAB // planes[0].numel())
        return lower_median(lambda: (magnitudes(planes[i : i + n]) for i in range(0, len(planes), n)))

    deviations = [deviation(planes) for planes in planes.reshape(len(image), -1, 1, *image.shape[-2:])]
    return torch.stack(deviations) / 0.6744897501960817 / 6


def second_differences(planes: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h-2 w-2"]:
    """Immerkaer's operator, which is blind to planes; of white noise it has 6 times the standard deviation."""
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]).to(planes)
    return torch.nn.functional.conv2d(planes, kernel[None, None])


def lower_median(parts: Callable[[], Iterable[Tensor]]) -> Tensor:
    """The median of numbers of float32 that are 0 or more and come in parts; of an even count the lower one.

    Several parts are never put together. Their bits are in the order of the numbers, so that the upper half of them
    is counted first, and only the numbers that share it with the median are looked at.

    Args:
        parts: gives the same parts again; 0 is the median of none.
    """
    iterator = iter(parts())
    first = next(iterator)
    if next(iterator, None) is None:
        return first.median() if len(first) else first.new_zeros(())
    n_upper = torch.zeros(2**16, dtype=torch.long, device=first.device)
    for part in parts():
        n_upper += torch.bincount(part.view(torch.int32) >> 16, minlength=2**16)
    total = int(n_upper.sum())
    if not total:
        return first.new_zeros(())
    rank = (total - 1) // 2
    upper = int(torch.searchsorted(n_upper.cumsum(0), rank, right=True))
    near = torch.cat([part[part.view(torch.int32) >> 16 == upper] for part in parts()])
    return near.sort().values[rank - int(n_upper[:upper].sum())]
