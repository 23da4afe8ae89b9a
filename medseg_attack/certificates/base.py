"""The base of all certificates: noisy answers of a model on one scan, and the bounds that follow from them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import counts
from medseg_attack.numerics.samples import draw, reseeded
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Mask, Model, Setting, Task, common


@dataclass(frozen=True)
class Bound:
    """The certified numbers of one scan and class at one radius.

    Attributes:
        volume: name of the scan.
        group: name of the patient.
        radius: in the L2 norm of the whole scan's change, in [0, 1] of the window.
        clean: the plain model's value on the untouched scan.
        value: the smoothed model's estimated value on it.
        low, high: nothing within the radius takes the smoothed value below or above; NaN where that is not bounded.
        abstained: share of the scan's answers that are not certified; NaN where there is no such thing.
        pixels: of the scan, in all channels: a change of radius r has the root mean square r / sqrt(pixels).
        width: of the window, in the scan's unit; NaN where channels differ.
        n_target, n_certified, hit_certified: pixels of the truth, those certified to be of the class, and both; -1
            where pixels are not certified one by one.
    """

    volume: str
    group: str
    cls: str
    radius: float
    clean: float
    value: float
    low: float
    high: float = float("nan")
    abstained: float = float("nan")
    pixels: int = 0
    width: float = float("nan")
    n_target: int = -1
    n_certified: int = -1
    hit_certified: int = -1

    @classmethod
    def of(cls, scan: Batch, name: str, radius: float, **numbers: Any) -> "Bound":
        """The bound of the class `name` of a scan, with the facts that its first case says of all."""
        first = scan.cases[0]
        facts: dict[str, Any] = {"volume": first.volume, "group": first.group, "width": common(first.window.width)}
        return cls(cls=name, radius=radius, pixels=scan.image.numel(), **facts, **numbers)


@dataclass(frozen=True)
class Certificate(ABC):
    """A bound of a smoothed model: its answers on a scan with Gaussian noise, over many draws of it.

    Noise is added to the whole scan on its own grid, before anything else, and is not cut to [0, 1]. So windows,
    resampling and normalisation are parts of the function that is smoothed, and any model can be certified, also one
    without gradients. It is drawn on the CPU from the seed, the scan's slices and the number of the draw alone.

    Attributes:
        sigma: standard deviation of the noise in [0, 1] of the window.
        draws: of noise, for the bounds.
        alpha: probability that a bound of a scan does not hold, of whatever class, because of the draws.
    """

    sigma: float = 0.25
    draws: int = 1000
    alpha: float = 1e-3

    quantity: ClassVar[str]  # that is bounded: "Dice", or "ml"
    promise: ClassVar[str]  # what is certified and what is not, in a sentence below the table

    def __post_init__(self) -> None:
        for name, fits, limits in (
            ("sigma", self.sigma > 0, "above 0"),
            ("draws", self.draws >= 2, "of 2 or more"),
            ("alpha", 0 < self.alpha < 1, "between 0 and 1"),
        ):
            if not fits:
                raise InputError(f"expected {name} {limits}, got {getattr(self, name)}; change {name}")

    @property
    def forwards(self) -> int:
        """Forward passes of each slice, or of each 3-D scan."""
        return self.draws + 1

    @abstractmethod
    def require(self, radius: float, task: Task, pixels: int) -> None:
        """Refuses a radius beyond what the draws can show of a scan of so many pixels."""

    @abstractmethod
    def observe(self, model: Model, scan: Batch, seed: int, batch_size: int) -> Any:
        """The model's answers on the noisy scan: all that the bounds follow from."""

    @abstractmethod
    def bounds(self, observed: Any, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        """The bounds at each radius and class."""

    @abstractmethod
    def refuted(self, observed: Any, elsewhere: Any, scan: Batch, model: Model, radius: float) -> str:
        """How answers on a scan that was changed within the radius contradict the bounds; "" where they do not.

        Args:
            observed: on the scan itself.
            elsewhere: on the changed scan, from other draws.
        """


def noisy_masks(
    model: Model, scan: Batch, sigma: float, draws: int, seed: int, purpose: str, batch_size: int
) -> Iterator[Mask]:
    """The decision on the scan with each draw of noise, (slices, classes, *s); several draws share a pass if they fit.

    Args:
        seed: of the certificate; each slice of the scan has its own, by its name.
        purpose: draws for different purposes are independent.
    """
    slices = len(scan.cases)
    seeds = [reseeded([seed], case.id, purpose)[0] for case in scan.cases]
    together = max(1, batch_size // slices)
    for first in range(0, draws, together):
        numbers = range(first, min(first + together, draws))
        image = torch.cat([scan.image + sigma * draw(torch.randn, scan.image, reseeded(seeds, n)) for n in numbers])
        cases = scan.cases * len(numbers)
        parts = [
            model_at.decide(model_at(image[begin : begin + batch_size]))
            for begin in range(0, len(image), batch_size)
            for model_at in [bind(model, Setting(model.task, cases[begin : begin + batch_size]))]
        ]
        yield from torch.cat(parts).view(len(numbers), *scan.target.shape)


def clean_counts(model: Model, scan: Batch, batch_size: int) -> Int[Tensor, "k 3"]:
    """Pixels of truth, prediction and both on the untouched scan."""
    (mask,) = noisy_masks(model, scan, 0.0, 1, 0, "clean", batch_size)
    return counts(mask, scan.target).sum(0).cpu()
