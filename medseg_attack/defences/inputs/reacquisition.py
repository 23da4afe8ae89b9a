"""Scans that went through a hospital: exported, seen in another window, resampled, compressed, acquired again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medseg_attack.defences.input_layers import InputDefence
from medseg_attack.errors import InputError, nearest
from medseg_attack.numerics.noise import noise_of
from medseg_attack.numerics.reacquisition import averaged_slices, exported, jpeg2000, resampled, rewindowed
from medseg_attack.numerics.samples import draw, widen
from medseg_attack.registry import register
from medseg_attack.types import Image

WINDOW = (0.02, 0.98)  # of the first one
SPACING = 0.8  # pixels of the other grid for each pixel
RATIO = 10.0  # of JPEG 2000
CODECS = ("export", "jpeg2000")  # links that have no gradient


def _noisy(image: Image, seeds: Sequence[int]) -> Image:
    deviation = widen(noise_of(image.detach()), image)
    return (image + deviation * draw(torch.randn, image, seeds)).clamp(0, 1)


def _thicker(image: Image, seeds: Sequence[int]) -> Image:
    return averaged_slices(image) if image.ndim == 5 else image


LINKS: dict[str, Callable[[Image, Sequence[int]], Image]] = {
    "export": lambda image, seeds: exported(image),
    "window": lambda image, seeds: rewindowed(image, *WINDOW),
    "resample": lambda image, seeds: resampled(image, SPACING),
    "thickness": _thicker,
    "jpeg2000": lambda image, seeds: jpeg2000(image, RATIO),
    "noise": _noisy,
}


@register(
    "reacquisition",
    kind="defence",
    paper="Kurakin et al., arXiv 1607.02533 (photographed examples)",
    cost="1 forward",
    attacked_with="averaged(bpda(pgd(steps=40)), passes=4)",
)
@dataclass(frozen=True)
class Reacquisition(InputDefence):
    """A scan that went through a hospital before a network sees it, link by link (Kurakin et al., arXiv 1607.02533).

    Kurakin et al. photograph printed examples and ask which survive. Here the chain is that of a hospital: export in
    8 bits; a window of 2 to 98 % of the first; a grid of 0.8 pixels a pixel and back; slices twice as thick (of
    volumes); JPEG 2000 at 10:1; a second draw of noise as strong as the image's own. An attack on the chain averages
    over draws, and its gradient passes the codecs as if they did nothing.

    Attributes:
        links: names of what is done, in that order: export, window, resample, thickness, jpeg2000, noise; () does
            nothing.

    Raises:
        InputError: there is no such link.
    """

    links: tuple[str, ...] = ("export", "window", "resample", "thickness", "jpeg2000", "noise")

    def __post_init__(self) -> None:
        unknown = [link for link in self.links if link not in LINKS]
        if unknown:
            raise InputError(f"expected links of reacquisition, got {unknown[0]!r}; {nearest(unknown[0], LINKS)}")

    @property
    def stochastic(self) -> bool:
        return "noise" in self.links

    @property
    def differentiable(self) -> bool:
        return not any(link in CODECS for link in self.links)

    def __call__(self, image: Image, seeds: Sequence[int]) -> Image:
        for link in self.links:
            image = LINKS[link](image, seeds)
        return image

    def smooth(self, image: Image, seeds: Sequence[int]) -> Image:
        """The chain without its codecs, with the same draw of noise."""
        return Reacquisition(tuple(link for link in self.links if link not in CODECS))(image, seeds)
