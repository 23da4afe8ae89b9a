"""The base of certificates by random smoothing: answers on the noisy scan, over many draws of noise."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medseg_attack.certificates.base import Certificate, decided
from medseg_attack.certificates.soundness import worst_within
from medseg_attack.errors import InputError, require
from medseg_attack.numerics.samples import draw, reseeded
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Image, Mask, Model, Setting

SHARES = (0.25, 0.5, 1.0)  # of sigma: the radii where none are asked for


@dataclass(frozen=True)
class Smoothing(Certificate):
    """A bound of a smoothed model: its answers on a scan with Gaussian noise, over many draws of it.

    Noise is added to the whole scan on its own grid, before anything else, and is not cut to [0, 1]. So windows,
    resampling and normalisation are parts of the function that is smoothed, and any model can be certified, also one
    without gradients. It is drawn on the CPU from the seed, the scan's slices and the number of the draw alone.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a scan at one radius does not hold, of whatever class,
            because of the draws.
    """

    sigma: float = 0.25
    draws: int = 1000
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        require(self)
        for name, fits, limits in (
            ("sigma", self.sigma > 0, "above 0"),
            ("draws", self.draws >= 2, "of 2 or more"),
            ("alpha", 0 < self.alpha < 1, "between 0 and 1"),
        ):
            if not fits:
                raise InputError(f"expected {name} {limits}, got {getattr(self, name)}; change {name}")

    @property
    def default_radii(self) -> tuple[float, ...]:
        return tuple(share * self.sigma for share in SHARES)

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return self.draws + 1

    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Any:
        return self.answers(model, model, scan, seed, batch_size)

    @abstractmethod
    def answers(self, smoothed: Model, plain: Model, scan: Batch, seed: int, batch_size: int) -> Any:
        """All that the bounds follow from: the answers of one model under noise, and of another on the scan as it is.

        Args:
            plain: the model that is compared with; the same, unless something stands between the noise and it.
        """

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        yield worst_within(model, scan, self.sigma, radius, seed)


def noisy_masks(
    model: Model, scan: Batch, sigma: float, draws: int, seed: int, purpose: str, batch_size: int
) -> Iterator[Mask]:
    """The decision on the scan with each draw of noise, (slices, classes, *s); several draws share a pass if they fit.

    What the model itself draws at random, such as prompts, it draws anew for each, so that draws are independent.

    Args:
        seed: of the certificate; each slice of the scan has its own, by its name.
        purpose: draws for different purposes are independent.
    """
    model = bind(model, Setting(model.task, scan.cases, stream=purpose))  # which counts the draws, whatever the batch
    slices = len(scan.cases)
    seeds = [reseeded([seed], case.id, purpose)[0] for case in scan.cases]
    together = max(1, batch_size // slices)
    for first in range(0, draws, together):
        numbers = range(first, min(first + together, draws))
        image = torch.cat([scan.image + sigma * draw(torch.randn, scan.image, reseeded(seeds, n)) for n in numbers])
        masks = decided(model, image, scan.cases * len(numbers), batch_size, purpose)
        yield from masks.view(len(numbers), *scan.target.shape)
