"""The volume of an organ in ml, bounded from both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from medseg_attack.certificates.base import Bound
from medseg_attack.certificates.bounds import percentile_ranks
from medseg_attack.certificates.smoothing.expected_dice import CountsCertificate, DrawnCounts
from medseg_attack.certificates.soundness import worst_within
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Batch, Case, Image, LogOdds, Mask, Model, Task


@register("volume", kind="certificate", paper="after Chiang et al., NeurIPS 2020")
@dataclass(frozen=True)
class Volume(CountsCertificate):
    """The median volume of an organ on the noisy scan stays within an interval for every change within the radius.

    Percentile smoothing (Chiang et al., arXiv 2007.03730, for the hard volume here): the median stays between the
    quantiles `Phi(-r / sigma)` and `Phi(r / sigma)` of the volume under noise. Order statistics bound them, at
    alpha for both sides and all classes together.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a scan at one radius does not hold, of whatever class,
            because of the draws.

    Raises:
        InputError: a field is out of range, or the draws do not suffice at the radius.
    """

    quantity: ClassVar[str] = "ml"
    promise: ClassVar[str] = (
        "Certified is the median volume over draws of noise, for every change of the scan within the radius; whether "
        "that volume is the patient's is not."
    )

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        if self._ranks(radius, task)[0] < 1:
            raise InputError(
                f"expected a radius at which {self.draws} draws bound a volume, got {radius:g} with sigma "
                f"{self.sigma:g}; take a smaller radius, or more draws"
            )

    def bounds(self, observed: DrawnCounts, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        ml = pixel_ml(scan.cases[0])
        drawn = observed.drawn[:, :, 1].sort(0).values.double() * ml
        result = []
        for radius in radii:
            low, high = self._ranks(radius, model.task)
            result += [
                Bound.of(
                    scan,
                    model.task.classes[k],
                    radius,
                    clean=observed.clean[k, 1].item() * ml,
                    value=drawn[:, k].median().item(),
                    low=drawn[low - 1, k].item(),
                    high=drawn[high - 1, k].item(),
                )
                for k in model.task.scored
            ]
        return result

    def _ranks(self, radius: float, task: Task) -> tuple[int, int]:
        """The ranks of the bounds of one class, each class at its share of alpha."""
        return percentile_ranks(self.draws, radius / self.sigma, self.alpha / len(task.scored))

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        yield from super().attacked(model, scan, radius, seed)
        scored = list(model.task.scored)

        def grown(log_odds: LogOdds, target: Mask) -> Tensor:
            return log_odds[:, scored].sigmoid()

        yield worst_within(model, scan, self.sigma, radius, seed, grown)
        yield worst_within(model, scan, self.sigma, radius, seed, lambda *answer: -grown(*answer))

    def refuted(self, observed: DrawnCounts, elsewhere: DrawnCounts, scan: Batch, model: Model, radius: float) -> str:
        medians = self.bounds(elsewhere, scan, model, [0.0])  # the interval of the median there, from its own draws
        for bound, median in zip(self.bounds(observed, scan, model, [radius]), medians, strict=True):
            if median.high < bound.low or median.low > bound.high:
                return (
                    f"median volume of {bound.cls} {median.low:.3g}-{median.high:.3g} ml, certified "
                    f"{bound.low:.3g}-{bound.high:.3g} ml"
                )
        return ""


def pixel_ml(case: Case) -> float:
    """The volume of one pixel in ml.

    Raises:
        InputError: it is a slice of no scan.
    """
    if len(case.spacing_mm) == 2 and case.stack is None:
        raise InputError(f"expected slices of a scan for a volume, got {case.id} of none; certify expected_dice")
    between = case.stack.spacing_mm if case.stack is not None and len(case.spacing_mm) == 2 else 1.0
    return prod(case.spacing_mm) * between / 1000
