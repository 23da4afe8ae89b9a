"""The ejection fraction between two phases of the heart, bounded from both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from medseg_attack.certificates.base import Bound, decided
from medseg_attack.certificates.bounds import percentile_ranks
from medseg_attack.certificates.smoothing.base import Smoothing, noisy_masks
from medseg_attack.certificates.smoothing.volume import pixel_ml
from medseg_attack.certificates.soundness import worst_within
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Batch, Image, LogOdds, Mask, Model, Task


@dataclass(frozen=True, eq=False)
class DrawnFractions:
    """Ejection fractions in %, of the plain model and of each draw of noise."""

    clean: float
    drawn: Float[Tensor, "n"]


@register("ejection_fraction", kind="certificate", paper="after Chiang et al., NeurIPS 2020")
@dataclass(frozen=True)
class EjectionFraction(Smoothing):
    """The median ejection fraction on noisy scans stays within an interval for every change of both phases.

    Percentile smoothing (Chiang et al., arXiv 2007.03730) of `(EDV - ESV) / EDV`, the share of the volume at end
    diastole that is ejected until end systole, in %. Noise is added to both scans, and the radius is that of their
    changes together. An empty mask at end diastole has the fraction 0. The data set must say which scan is which
    phase.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a patient at one radius does not hold because of the draws.
        organ: class of the ventricle.

    Raises:
        InputError: a field is out of range, the draws do not suffice, or two phases differ in their grid.
    """

    organ: str = "lv"

    quantity: ClassVar[str] = "%"
    needs_phases: ClassVar[bool] = True
    promise: ClassVar[str] = (
        "Certified is the median ejection fraction over draws of noise, for every change of both scans that is "
        "together within the radius; whether that fraction is the patient's is not."
    )

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        if self.organ not in task.classes:
            raise InputError(
                f"expected an organ among {', '.join(task.classes)} for ejection_fraction, got {self.organ!r}; write "
                f"ejection_fraction(organ='{task.classes[task.scored[0]]}')"
            )
        if percentile_ranks(self.draws, radius / self.sigma, self.alpha)[0] < 1:
            raise InputError(
                f"expected a radius at which {self.draws} draws bound an ejection fraction, got {radius:g} with sigma "
                f"{self.sigma:g}; take a smaller radius, or more draws"
            )
        if len(set(shapes)) > 1:
            raise InputError(
                f"expected both phases of a patient on one grid, got {' and '.join(map(str, sorted(set(shapes))))}; "
                "prepare the data with --size ROWS,COLUMNS"
            )

    def answers(self, smoothed: Model, plain: Model, scan: Batch, seed: int, batch_size: int) -> DrawnFractions:
        masks = noisy_masks(smoothed, scan, self.sigma, self.draws, seed, "bound", batch_size)
        drawn = torch.stack([self._fraction(mask, scan, plain.task) for mask in masks])
        clean = decided(plain, scan.image, scan.cases, batch_size)
        return DrawnFractions(self._fraction(clean, scan, plain.task).item(), drawn)

    def _fraction(self, mask: Mask, scan: Batch, task: Task) -> Float[Tensor, ""]:
        first, last = _volumes(mask[:, task.classes.index(self.organ)].double(), scan)
        return torch.where(first > 0, 100 * (1 - last / first.clamp(min=1e-9)), 0.0)

    def bounds(self, observed: DrawnFractions, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        drawn = observed.drawn.sort().values
        result = []
        for radius in radii:
            low, high = percentile_ranks(self.draws, radius / self.sigma, self.alpha)
            ends = {"low": drawn[low - 1].item(), "high": drawn[high - 1].item()}
            value = drawn.median().item()
            result.append(Bound.of(scan, self.organ, radius, clean=observed.clean, value=value, **ends))
        return result

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        channel = model.task.classes.index(self.organ)

        def ejected(log_odds: LogOdds, target: Mask) -> Tensor:
            first, last = _volumes(log_odds[:, channel].sigmoid().double(), scan)
            return -last / first.clamp(min=1e-9)

        yield worst_within(model, scan, self.sigma, radius, seed, ejected)
        yield worst_within(model, scan, self.sigma, radius, seed, lambda *answer: -ejected(*answer))

    def refuted(
        self, observed: DrawnFractions, elsewhere: DrawnFractions, scan: Batch, model: Model, radius: float
    ) -> str:
        (bound,) = self.bounds(observed, scan, model, [radius])
        (median,) = self.bounds(elsewhere, scan, model, [0.0])  # its interval, from draws of its own
        if median.high < bound.low or median.low > bound.high:
            return (
                f"median ejection fraction {median.low:.3g}-{median.high:.3g} %, certified "
                f"{bound.low:.3g}-{bound.high:.3g} %"
            )
        return ""


def _volumes(share: Float[Tensor, "b *s"], scan: Batch) -> tuple[Tensor, Tensor]:
    """Volumes in ml at end diastole and at end systole, from each pixel's share in the organ."""
    is_last = torch.tensor([case.phase == "ES" for case in scan.cases], device=share.device)
    ml = torch.tensor([pixel_ml(case) for case in scan.cases], device=share.device, dtype=share.dtype)
    volumes = share.flatten(1).sum(1) * ml
    return volumes[~is_last].sum(), volumes[is_last].sum()
