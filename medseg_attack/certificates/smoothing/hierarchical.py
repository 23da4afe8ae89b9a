"""SegCertify with a coarser answer where classes cannot be told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from medseg_attack.certificates.base import Bound
from medseg_attack.certificates.entries import entry_bounds
from medseg_attack.certificates.smoothing.segcertify import SegCertify, Votes
from medseg_attack.errors import InputError
from medseg_attack.registry import register
from medseg_attack.types import Batch, Mask, Model, Task


@register("hierarchical", kind="certificate", paper="Anani et al., ICML 2024")
@dataclass(frozen=True)
class Hierarchical(SegCertify):
    """Each pixel's smoothed class, or else that it is an organ, or else nothing, is the same within the radius.

    Anani et al. (arXiv 2402.08400): the levels are the classes, organ or background, and any class. The first draws
    choose each pixel's level, the finest at which its answer leads by `gap` of their votes, and the others test it as
    `segcertify` does, with exactly their own number of trials. So no pixel is abstained from that `segcertify`
    certifies from the same draws. The paper takes the lead among the classes for all levels, and its released code
    tests with too few trials. Classes must exclude each other.

    Attributes:
        sigma: standard deviation of the noise, above 0, in [0, 1] of the window.
        draws: of noise, 2 or more, for the bounds.
        alpha: probability, between 0 and 1, that a bound of a scan at one radius does not hold, of whatever class,
            because of the draws.
        first_draws: of noise, 1 or more, which choose class and level and take no part in the test.
        gap: lead over the next answer of a level, as a share of the first draws, from 0 to 1.

    Raises:
        InputError: `gap` is not from 0 to 1, or classes may overlap.
    """

    gap: float = 0.3

    promise: ClassVar[str] = (
        "Certified is that a pixel that is not abstained from is of its class, or an organ of any class, or anything, "
        "under the smoothed model, for every change of the scan within the radius; Dice counts what is not certified "
        "to be one class as wrong, information is 1 where a class is certified, 0 where nothing is."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gap <= 1:
            raise InputError(f"expected gap from 0 to 1 for hierarchical, got {self.gap}; write gap=0.3")

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        if not task.exclusive:
            raise InputError(
                f"expected classes that exclude each other for hierarchical, got those of {task.name}, which may "
                "overlap; certify segcertify"
            )
        super().require(radius, task, shapes)

    def _leaves(self, first: Int[Tensor, "b k *s"], answer: Mask, task: Task) -> Mask:
        organ = torch.ones_like(answer)
        organ[:, 0] = False
        coarse = torch.where((answer & organ).any(1, keepdim=True), organ, ~organ)
        leaves = torch.ones_like(answer)
        for level in (coarse, answer):  # the finer one, where it leads, last
            rest = first.masked_fill(level, 0)
            rival = rest.amax(1, keepdim=True) if level is answer else rest.sum(1, keepdim=True)
            lead = (first * level).sum(1, keepdim=True) - rival
            leaves = torch.where(lead >= self.gap * self.first_draws, level, leaves)
        return leaves

    def bounds(self, observed: Votes, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        result = []
        for radius in radii:
            certified = self.certified(observed, radius, model.task)
            result += entry_bounds(scan, model, radius, observed.answer, certified, observed.clean, observed.leaves)
        return result
