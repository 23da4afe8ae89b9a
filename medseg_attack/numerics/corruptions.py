"""Natural corruptions of one image: what scanners, viewers and files do to it, each with a level and a seed.

Every function takes an image (c, *s) in [0, 1], the level and a generator on the CPU, and returns the changed image,
which may leave [0, 1]. What has a direction acts in plane, the last two axes; a whole scan is one draw. Lengths in
pixels are those of an image with 224 pixels a side, and grow with it.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from medseg_attack.numerics.jpeg import jpeg

Level: TypeAlias = Sequence[float]
Corruption: TypeAlias = Callable[[Tensor, Level, Generator], Tensor]
REFERENCE = 224  # pixels a side
ORDER = 3  # of the polynomial of a bias field
RESTORED = 0.02  # of k-space around its centre has no ghosts


def gaussian_noise(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Normal noise; level: its standard deviation."""
    return x + level[0] * _normal(x, rng)


def speckle_noise(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Normal noise in proportion to the intensity; level: its standard deviation at 1."""
    return x + level[0] * x * _normal(x, rng)


def impulse_noise(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Black and white pixels, as many of either; level: their share."""
    draw = _uniform(x, rng)
    return torch.where(draw < level[0] / 2, 0.0, torch.where(draw > 1 - level[0] / 2, 1.0, x))


def shot_noise(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Poisson noise of counted photons; level: the intensity of one photon, so that white is 1 / level of them."""
    counts = torch.poisson((x.cpu().double().clamp(min=0) / level[0]), generator=rng)
    return (counts * level[0]).to(x)


def rician_noise(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Noise in both channels of a receiver; level: its deviation as a share of that of the image."""
    sd = level[0] * x.std(correction=0)
    return torch.hypot(x + sd * _normal(x, rng), sd * _normal(x, rng))


def gaussian_blur(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Blur in plane; level: standard deviation of the Gaussian in pixels."""
    return _gaussian(x, level[0] * _scale(x))


def defocus_blur(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Blur by a disc; level: its radius in pixels."""
    radius = level[0] * _scale(x)
    n = math.ceil(radius)
    offset = torch.arange(-n, n + 1, dtype=torch.float64)
    kernel = (radius + 0.5 - torch.hypot(offset[:, None], offset[None])).clamp(0, 1)  # soft at its edge
    return _convolved(x, kernel)


def motion_blur(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Blur along a line of random direction; level: its half length in pixels."""
    half, angle = level[0] * _scale(x), math.pi * _number(rng)
    n = math.ceil(half)
    offset = torch.arange(-n, n + 1, dtype=torch.float64)
    along = offset[None] * math.cos(angle) + offset[:, None] * math.sin(angle)
    across = offset[:, None] * math.cos(angle) - offset[None] * math.sin(angle)
    kernel = (half + 0.5 - along.abs()).clamp(0, 1) * (1 - across.abs()).clamp(0, 1)
    return _convolved(x, kernel)


def zoom_blur(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """The mean of the image and of magnified ones; level: the largest magnification less 1."""
    factors = torch.linspace(1, 1 + level[0], 11).tolist()
    return torch.stack([_posed(x, 0.0, (0.0, 0.0), zoom=factor) for factor in factors]).mean(0)


def brightness(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Intensities times the level."""
    return x * level[0]


def contrast(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Distances from the mean intensity times the level."""
    return x.mean() + level[0] * (x - x.mean())


def gamma(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Intensities to the power of the level."""
    return x.clamp(min=0) ** level[0]


def pixelate(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Fewer pixels, each the mean of those it stands for; level: pixels a side as a share of those before."""
    rows, columns = (max(1, round(level[0] * n)) for n in x.shape[-2:])
    planes = F.adaptive_avg_pool2d(x.reshape(-1, 1, *x.shape[-2:]), (rows, columns))
    return F.interpolate(planes, x.shape[-2:], mode="nearest").view_as(x)


def jpeg_compression(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """JPEG of each channel and slice; level: the quality."""
    return jpeg(x, round(level[0]))


def bias_field(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Intensities times the exponential of a random polynomial of degree 3; level: its largest coefficient."""
    axes = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[1:]]
    grid = torch.meshgrid(*axes, indexing="ij")
    field = torch.zeros_like(grid[0])
    for powers in torch.cartesian_prod(*[torch.arange(ORDER + 1)] * len(axes)).view(-1, len(axes)).tolist():
        if sum(powers) <= ORDER:
            term = math.prod(
                (axis**power for axis, power in zip(grid, powers, strict=True)), start=torch.ones_like(field)
            )
            field = field + level[0] * (2 * _number(rng) - 1) * term
    return x * field.exp()


def ghosting(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Every n-th line of k-space is weakened, but for its centre; level: n, and by what share."""
    period, intensity = max(2, round(level[0])), level[1]
    axis = -1 - round(_number(rng))
    n = x.shape[axis]
    factor = torch.ones(n, dtype=x.dtype, device=x.device)
    factor[::period] = 1 - intensity
    lines = torch.arange(n, device=x.device)
    factor = torch.where((lines - n // 2).abs() <= RESTORED * n / 2, 1.0, factor)
    shape = [1] * x.ndim
    shape[axis] = n
    spectrum = torch.fft.fftshift(torch.fft.fft(x, dim=axis), dim=axis) * factor.view(shape)
    return torch.abs(torch.fft.ifft(torch.fft.ifftshift(spectrum, dim=axis), dim=axis))


def motion(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Lines of k-space that were measured in other poses; level: degrees, pixels, and number of movements."""
    degrees, pixels, n_moves = level[0], level[1] * _scale(x), max(1, round(level[2]))
    axis = -1 - round(_number(rng))
    spectrum = torch.fft.fft(x, dim=axis)
    n = x.shape[axis]
    ends = sorted(int(n * _number(rng)) for _ in range(n_moves))
    kept = n // 2  # the pose at the centre of k-space, frequency 0, is that of the image
    order = torch.fft.fftshift(torch.arange(n))
    for start, end in zip(ends, [*ends[1:], n], strict=True):
        angle = degrees * (2 * _number(rng) - 1)
        shift = (pixels * (2 * _number(rng) - 1), pixels * (2 * _number(rng) - 1))
        if start <= kept < end:
            continue
        posed = torch.fft.fft(_posed(x, angle, shift), dim=axis)
        lines = order[start:end].to(x.device)
        spectrum.index_copy_(axis, lines, posed.index_select(axis, lines))
    return torch.abs(torch.fft.ifft(spectrum, dim=axis))


def anisotropy(x: Tensor, level: Level, rng: Generator) -> Tensor:
    """Fewer samples along one axis in plane, with lines between them; level: pixels from one to the next."""
    axis = round(_number(rng))
    shape = list(x.shape[-2:])
    shape[axis] = max(1, round(shape[axis] / level[0]))
    planes = F.interpolate(x.reshape(-1, 1, *x.shape[-2:]), tuple(shape), mode="nearest")
    return F.interpolate(planes, x.shape[-2:], mode="bilinear", align_corners=False).view_as(x)


def _scale(x: Tensor) -> float:
    """Pixels of this image for one of an image of the reference's side."""
    return max(x.shape[-2:]) / REFERENCE


def _normal(x: Tensor, rng: Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng, dtype=torch.float64).to(x)


def _uniform(x: Tensor, rng: Generator) -> Tensor:
    return torch.rand(x.shape, generator=rng, dtype=torch.float64).to(x)


def _number(rng: Generator) -> float:
    """A random number in [0, 1)."""
    return float(torch.rand((), generator=rng, dtype=torch.float64))


def _gaussian(x: Tensor, sd: float) -> Tensor:
    n = math.ceil(4 * sd)
    offset = torch.arange(-n, n + 1, dtype=torch.float64)
    line = torch.exp(-0.5 * (offset / max(sd, 1e-3)).square())
    return _convolved(x, line[:, None] * line[None])


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Slices convolved in plane with a kernel of sum 1, the border pixels repeated outside."""
    kernel = (kernel / kernel.sum()).to(x)
    planes = x.reshape(-1, 1, *x.shape[-2:])
    rows, columns = (n // 2 for n in kernel.shape)
    padded = F.pad(planes, (columns, columns, rows, rows), mode="replicate")
    return F.conv2d(padded, kernel[None, None]).view_as(x)


def _posed(x: Tensor, degrees: float, shift: tuple[float, float], zoom: float = 1.0) -> Tensor:
    """Slices turned, moved by pixels (columns, rows) and magnified about their centre, the border repeated outside."""
    planes = x.reshape(1, -1, *x.shape[-2:])
    rows, columns = x.shape[-2:]
    cos, sin = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    matrix = [[cos, -sin * rows / columns, 2 * shift[0] / columns], [sin * columns / rows, cos, 2 * shift[1] / rows]]
    grid = F.affine_grid(x.new_tensor([matrix]), list(planes.shape), align_corners=False)
    return F.grid_sample(planes, grid, padding_mode="border", align_corners=False).view_as(x)
