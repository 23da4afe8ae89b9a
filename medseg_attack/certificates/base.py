"""The base of all certificates: what is observed of a model on one scan, and the bounds that follow from it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import counts
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry.foreign import part_name
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Case, Image, Mask, Model, Setting, Task, common

NORM = "the L2 norm of the whole scan's change in [0, 1] of the window"


@dataclass(frozen=True)
class Bound:
    """The certified numbers of one scan and class at one radius.

    Attributes:
        volume: name of the scan.
        group: name of the patient.
        radius: size of the change, as the certificate measures it.
        clean: the plain model's value on the untouched scan.
        value: the certified model's value on it, which may be an estimate.
        low, high: nothing within the radius takes that value below or above; NaN where that is not bounded.
        abstained: share of the scan's answers that are not certified; NaN where there is no such thing.
        information: mean of what is certified of each pixel, from 0 to 1; NaN where that is a class or nothing.
        pixels: of the scan, in all channels: a change of L2 norm r has the root mean square r / sqrt(pixels).
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
    information: float = float("nan")
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
    """A bound of a model's answers on a scan, for every change within a radius.

    A scan comes as one batch: its slices in their order, or the scan itself as one case.
    """

    quantity: ClassVar[str]  # that is bounded: "Dice", "ml" or "%"
    promise: ClassVar[str]  # what is certified and what is not, in a sentence below the table
    measure: ClassVar[str] = NORM  # of a radius, in words
    needs_repeats: ClassVar[bool] = False  # whether the model must answer the same twice
    needs_phases: ClassVar[bool] = False  # whether a scan is end diastole and end systole of a patient, in this order

    def radii(self, radii: Sequence[float] = ()) -> tuple[float, ...]:
        """Radii in rising order, each once; `default_radii` where none are asked for.

        Raises:
            InputError: a radius is below 0, infinite or NaN.
        """
        chosen = tuple(sorted(set(radii or self.default_radii)))
        if not chosen:
            raise InputError(f"expected radii to certify with {part_name(self)}, got none; name some, such as 0.1")
        if odd := [radius for radius in chosen if not 0 <= radius < float("inf")]:
            raise InputError(f"expected a finite radius of 0 or more, got {odd[0]:g}; change the radius")
        return chosen

    @property
    def weights_hash(self) -> str:
        """A hash of the weights that the certificate brings; "" of none."""
        return ""

    @property
    @abstractmethod
    def default_radii(self) -> tuple[float, ...]:
        """The radii where none are asked for."""

    @abstractmethod
    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        """Forward passes of one case of that shape."""

    @abstractmethod
    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        """Refuses a radius beyond what can be shown of a scan.

        Args:
            shapes: of its cases.
        """

    def require_model(self, model: SegModel) -> None:
        """Refuses a model of which nothing can be certified."""
        if self.needs_repeats and model.is_random:
            name = type(self).__name__.lower()
            raise InputError(
                f"expected a model that answers the same twice for {name}, got one that draws at random; certify it "
                "with expected_dice"
            )

    @abstractmethod
    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Any:
        """The model's answers on changed copies of the scan: all that the bounds at these radii follow from."""

    @abstractmethod
    def bounds(self, observed: Any, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        """The bounds at each radius and class."""

    def certain(self, observed: Any, radius: float, model: Model) -> Bool[Tensor, "b *s"] | None:
        """The pixels that are certified one by one, in all channels; None of certificates of a whole scan's number."""
        return None

    @abstractmethod
    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        """The scan changed within the radius so that the bound might not hold, in one way or in several."""

    @abstractmethod
    def refuted(self, observed: Any, elsewhere: Any, scan: Batch, model: Model, radius: float) -> str:
        """How answers on a scan that was changed within the radius contradict the bounds; "" where they do not.

        Args:
            observed: on the scan itself.
            elsewhere: on the changed scan, from other draws.
        """


def decided(model: Model, image: Image, cases: Sequence[Case], batch_size: int, stream: str = "score") -> Mask:
    """The decision on each of these images of the cases, `batch_size` of them in a pass.

    Args:
        stream: of the random numbers of a model that draws some; one that is bound to that stream goes on in it.
    """
    parts = []
    for begin in range(0, len(image), batch_size):
        part = slice(begin, begin + batch_size)
        bound = bind(model, Setting(model.task, tuple(cases[part]), stream=stream))
        with torch.no_grad():
            parts.append(bound.decide(bound(image[part])))
    return torch.cat(parts)


def clean_counts(model: Model, scan: Batch, batch_size: int) -> Int[Tensor, "k 3"]:
    """Pixels of truth, prediction and both on the untouched scan."""
    return counts(decided(model, scan.image, scan.cases, batch_size), scan.target).sum(0).cpu()
