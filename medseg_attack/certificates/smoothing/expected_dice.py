"""The expected Dice of a noisy model, bounded from below."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from medseg_attack.certificates.base import Bound, clean_counts
from medseg_attack.certificates.bounds import lower_mean, mean_slack, shifted
from medseg_attack.certificates.smoothing.base import Smoothing, noisy_masks
from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.registry import register
from medseg_attack.types import Batch, Model, Task

LEAST = 0.01  # a bound below it shows nothing


@dataclass(frozen=True, eq=False)
class DrawnCounts:
    """Pixels of truth, prediction and both of a whole scan, by class.

    Attributes:
        clean: of the plain model.
        drawn: of each draw of noise.
    """

    clean: Int[Tensor, "k 3"]
    drawn: Int[Tensor, "n k 3"]


@dataclass(frozen=True)
class CountsCertificate(Smoothing):
    """A certificate of a number that follows from a scan's pixel counts."""

    def answers(self, smoothed: Model, plain: Model, scan: Batch, seed: int, batch_size: int) -> DrawnCounts:
        masks = noisy_masks(smoothed, scan, self.sigma, self.draws, seed, "bound", batch_size)
        drawn = [counts(mask, scan.target).sum(0).cpu() for mask in masks]
        return DrawnCounts(clean_counts(plain, scan, batch_size), torch.stack(drawn))


@register("expected_dice", kind="certificate", paper="after Salman et al., NeurIPS 2019")
@dataclass(frozen=True)
class ExpectedDice(CountsCertificate):
    """The expected Dice of the model on the noisy scan cannot fall below a bound within the radius.

    For any score in [0, 1] with expectation G under the noise, a change of L2 norm r leaves at least
    `Phi(Phi^-1(G) - r / sigma)` (Salman et al., arXiv 1906.04584, lemma 2, for Dice here). G is replaced by its
    empirical Bernstein bound, at alpha for all classes together. Dice of empty masks is 1.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a scan at one radius does not hold, of whatever class,
            because of the draws.

    Raises:
        InputError: a field is out of range, or the draws do not suffice at the radius.
    """

    quantity: ClassVar[str] = "Dice"
    promise: ClassVar[str] = (
        "Certified is the mean Dice over draws of noise, for every change of the scan within the radius; the Dice of "
        "one draw, or of the plain model, is not."
    )

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        best = shifted(max(0.0, 1 - mean_slack(self.draws, self._share(task))), radius / self.sigma)
        if best < LEAST:
            raise InputError(
                f"expected a radius at which {self.draws} draws can show a Dice of {LEAST} or more, got {radius:g} "
                f"with sigma {self.sigma:g}, where a perfect model has {best:.2g}; take a smaller radius, or more draws"
            )

    def bounds(self, observed: DrawnCounts, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        clean, drawn = (dice_of(c, empty=1.0, dtype=torch.float64) for c in (observed.clean, observed.drawn))
        return [
            Bound.of(
                scan,
                model.task.classes[k],
                radius,
                clean=clean[k].item(),
                value=drawn[:, k].mean().item(),
                low=self._low(drawn[:, k].numpy(), radius, model.task),
            )
            for radius in radii
            for k in model.task.scored
        ]

    def _low(self, dice: NDArray[np.float64], radius: float, task: Task) -> float:
        return shifted(lower_mean(dice, self._share(task)), radius / self.sigma)

    def _share(self, task: Task) -> float:
        """The share of alpha of one class."""
        return self.alpha / len(task.scored)

    def refuted(self, observed: DrawnCounts, elsewhere: DrawnCounts, scan: Batch, model: Model, radius: float) -> str:
        changed = dice_of(elsewhere.drawn, empty=1.0, dtype=torch.float64)
        for bound in self.bounds(observed, scan, model, [radius]):
            values = changed[:, model.task.classes.index(bound.cls)].numpy()
            upper = 1 - lower_mean(1 - values, self.alpha)
            if upper < bound.low:
                return f"expected Dice of {bound.cls} at most {upper:.3f}, certified {bound.low:.3f}"
        return ""
