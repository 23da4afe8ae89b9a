"""Pixel deflection with wavelet denoising."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import require
from medseg_attack.numerics.neighbourhoods import mirrored
from medseg_attack.registry import register
from medseg_attack.types import Image

LEVELS = 3  # of the wavelets
TINY = 1e-12


@register(
    "pixel_deflection",
    kind="defence",
    paper="Prakash et al., CVPR 2018, arXiv 1801.08926",
    cost="1 forward",
    attacked_with="averaged(bpda(pgd(steps=40)))",
)
@dataclass(frozen=True)
class PixelDeflection(InputDefence):
    """Random pixels replaced by a near one, then wavelet denoising (Prakash et al., arXiv 1801.08926).

    All channels move together, as in the paper; its released code counts channels one by one. Without its map of
    important regions, which belongs to a classifier. Sources lie in the same slice. Denoising is soft thresholding of
    Haar wavelets with BayesShrink's thresholds.

    Attributes:
        share: replaced pixels as a share of all, 0 or more; the paper's 200 of 224 x 224 are 0.004.
        half_width: half of the width of the window of sources in pixels, 1 or more.
        sigma: standard deviation of the noise that denoising takes for granted, 0 or more; 0 leaves it out.

    Raises:
        InputError: a field is out of range.
    """

    differentiable = False  # a replaced pixel gets no gradient in this draw, and thresholds stop small waves

    share: float = 0.004
    half_width: int = 10
    sigma: float = 0.04

    def __post_init__(self) -> None:
        require(self, half_width=1, share="[0, 1]", sigma=0)

    @property
    def stochastic(self) -> bool:
        return self.share > 0

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        if self.share:
            image = torch.stack([self._deflected(x, seed) for x, seed in zip(image, seeds, strict=True)])
        return _denoised(image, self.sigma).clamp(0, 1) if self.sigma else image

    def _deflected(self, x: Tensor, seed: int) -> Tensor:
        """One image with its pixels replaced, all at once."""
        rng = torch.Generator().manual_seed(seed)
        rows, columns = x.shape[-2:]
        n = x[0].numel()
        k = round(self.share * n)
        place = torch.randint(n, (k,), generator=rng)
        layer, row, column = place // (rows * columns), place // columns % rows, place % columns
        moves = torch.randint(-self.half_width, self.half_width + 1, (2, k), generator=rng)
        row, column = (row + moves[0]).clamp(0, rows - 1), (column + moves[1]).clamp(0, columns - 1)
        source = torch.arange(n)
        source[place] = (layer * rows + row) * columns + column
        return x.flatten(1)[:, source.to(x.device)].view_as(x)


def _denoised(image: Image, sigma: float) -> Image:
    """Soft thresholding of Haar wavelets, slice by slice, with the thresholds of Chang et al. (BayesShrink, 2000)."""
    multiple = 2**LEVELS
    slices = image.flatten(1, -3)
    rows, columns = image.shape[-2:]
    # a frame on all sides, cut so that waves of every scale fit
    framed = mirrored(slices, multiple)
    height, width = ((n + 2 * multiple) // multiple * multiple for n in (rows, columns))
    result = _shrunk(framed[..., :height, :width], sigma, LEVELS)
    return result[..., multiple : multiple + rows, multiple : multiple + columns].reshape(image.shape)


def _shrunk(x: Tensor, sigma: float, levels: int) -> Tensor:
    """The image with its waves of the first `levels` scales shrunk."""
    if levels == 0:
        return x
    a, b, c, d = (x[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    low = (a + b + c + d) / 2
    waves = [_soft(wave / 2, sigma) for wave in (a - b + c - d, a + b - c - d, a - b - c + d)]
    low = _shrunk(low, sigma, levels - 1)
    h, v, g = waves
    parts = ((low + h + v + g) / 2, (low - h + v - g) / 2, (low + h - v - g) / 2, (low - h - v + g) / 2)
    top, bottom = (torch.stack(pair, -1).flatten(-2) for pair in (parts[:2], parts[2:]))
    return torch.stack((top, bottom), -2).flatten(-3, -2)


def _soft(wave: Tensor, sigma: float) -> Tensor:
    """One band nearer to 0 by sigma^2 over the deviation of its signal; all of it where there is no signal."""
    signal = (wave.square().mean((-2, -1), keepdim=True) - sigma**2).clamp(min=0)
    most = wave.abs().amax((-2, -1), keepdim=True)
    threshold = torch.where(signal > 0, sigma**2 / (signal + TINY).sqrt(), most)
    return wave.sign() * (wave.abs() - threshold).clamp(min=0)
