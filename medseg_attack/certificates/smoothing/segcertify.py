"""SegCertify: the class of single pixels, certified or abstained from."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.stats import binom, norm
from torch import Tensor

from medseg_attack.certificates.base import Bound, clean_counts
from medseg_attack.certificates.bounds import fewest_draws, votes_needed
from medseg_attack.certificates.entries import entry_bounds
from medseg_attack.certificates.smoothing.base import Smoothing, noisy_masks
from medseg_attack.errors import InputError, require
from medseg_attack.registry import register
from medseg_attack.types import Batch, Mask, Model, Task

MOST_DRAWS = 10**9  # that anybody would take


@dataclass(frozen=True, eq=False)
class Votes:
    """The most frequent answer of the first draws, and the votes of the others.

    Attributes:
        clean: pixels of truth, prediction and both of the plain model.
        answer: of the first draws, one-hot where classes exclude each other.
        leaves: where classes exclude each other, those of which a pixel is to be certified as one; else the answer.
        votes: of the other draws for each class.
        draws: their number.
    """

    clean: Int[Tensor, "k 3"]
    answer: Bool[Tensor, "b k *s"]
    leaves: Bool[Tensor, "b k *s"]
    votes: Int[Tensor, "b k *s"]
    draws: int

    def for_leaves(self, leaves: Mask, exclusive: bool) -> Int[Tensor, "b h *s"]:
        """Votes for these answers, with a channel for each that is a hypothesis of its own."""
        if exclusive:
            return (self.votes * leaves).sum(1, keepdim=True)
        return torch.where(leaves, self.votes, self.draws - self.votes)


@register("segcertify", kind="certificate", paper="Fischer, Baader & Vechev, ICML 2021")
@dataclass(frozen=True)
class SegCertify(Smoothing):
    """The smoothed class of every pixel that is not abstained from is the same for every change within the radius.

    Fischer et al. (arXiv 2107.00228): the first draws choose each pixel's class, the others test whether its
    probability is above tau = Phi(r / sigma), by exactly their own number of trials and Holm's correction over all
    pixels of the scan. Where classes overlap, every channel is a yes or no of its own. Dice is bounded by counting
    what is not certified as wrong.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a scan at one radius does not hold, of whatever class,
            because of the draws.
        first_draws: of noise, 1 or more, which choose the class and take no part in the test.

    Raises:
        InputError: a field is out of range, or the draws do not suffice at the radius.
    """

    first_draws: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, first_draws=1)

    quantity: ClassVar[str] = "Dice"
    promise: ClassVar[str] = (
        "Certified is the class of the pixels that are not abstained from, under the smoothed model, for every change "
        "of the scan within the radius; an abstained pixel counts as wrong, and the plain model is not certified."
    )

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return self.draws + self.first_draws + 1

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        answers = sum(map(prod, shapes)) * (1 if task.exclusive else len(task.classes))
        needed = fewest_draws(answers, radius / self.sigma, self.alpha)
        if needed > MOST_DRAWS:
            raise InputError(
                f"expected a radius at which draws can certify one of {answers} answers, got {radius:g} with sigma "
                f"{self.sigma:g}; take a smaller radius, or a larger sigma"
            )
        if needed > self.draws:
            raise InputError(
                f"expected {needed:,} draws or more to certify one of {answers} answers at the radius {radius:g}, "
                f"got {self.draws}; take more draws, or a smaller radius"
            )

    def answers(self, smoothed: Model, plain: Model, scan: Batch, seed: int, batch_size: int) -> Votes:
        first = torch.zeros(scan.target.shape, dtype=torch.int32, device=scan.image.device)
        for mask in noisy_masks(smoothed, scan, self.sigma, self.first_draws, seed, "choice", batch_size):
            first += mask
        if plain.task.exclusive:
            answer = torch.zeros_like(scan.target).scatter_(1, first.max(1, keepdim=True).indices, True)
        else:
            answer = 2 * first > self.first_draws
        votes = torch.zeros_like(first)
        for mask in noisy_masks(smoothed, scan, self.sigma, self.draws, seed, "bound", batch_size):
            votes += mask
        leaves = self._leaves(first, answer, plain.task)
        return Votes(clean_counts(plain, scan, batch_size), answer, leaves, votes, self.draws)

    def _leaves(self, first: Int[Tensor, "b k *s"], answer: Mask, task: Task) -> Mask:
        """The classes of which each pixel is to be certified as one: here its answer alone.

        Args:
            first: votes of the first draws, which take no part in the test.
        """
        return answer

    def bounds(self, observed: Votes, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        result = []
        for radius in radii:
            certified = self.certified(observed, radius, model.task)
            result += entry_bounds(scan, model, radius, observed.answer, certified, observed.clean)
        return result

    def certain(self, observed: Votes, radius: float, model: Model) -> Bool[Tensor, "b *s"]:
        return self.certified(observed, radius, model.task).all(1)

    def certified(self, observed: Votes, radius: float, task: Task) -> Bool[Tensor, "b h *s"]:
        """The answers that no change within the radius turns."""
        agreeing = observed.for_leaves(observed.leaves, task.exclusive)
        histogram = np.bincount(agreeing.flatten().cpu().numpy(), minlength=self.draws + 1)
        return agreeing >= votes_needed(histogram, self._tau(radius), self.alpha)

    def refuted(self, observed: Votes, elsewhere: Votes, scan: Batch, model: Model, radius: float) -> str:
        """Certified answers that are significantly a minority on the changed scan."""
        certified = self.certified(observed, radius, model.task)
        agreeing = elsewhere.for_leaves(observed.leaves, model.task.exclusive)
        few = int(binom.ppf(self.alpha / max(int(certified.sum()), 1), self.draws, 0.5)) - 1
        turned = int((certified & (agreeing <= few)).sum())
        return f"{turned} certified answers are others on the changed scan" if turned else ""

    def _tau(self, radius: float) -> float:
        return float(norm.cdf(radius / self.sigma))
