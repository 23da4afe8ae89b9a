"""The Dice of a network whose Lipschitz constant is known, bounded without noise."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medseg_attack.certificates.base import Bound, Certificate
from medseg_attack.certificates.soundness import worst_within
from medseg_attack.errors import InputError
from medseg_attack.metrics.overlap import counts, dice_of
from medseg_attack.models.networks.lipschitz import LipschitzNetwork
from medseg_attack.models.segmodel import SegModel
from medseg_attack.registry import register
from medseg_attack.threat.binding import bind
from medseg_attack.types import Batch, Image, Mask, Model, Setting, Task

ROUNDING = 1e-4  # of a logit, in float32


@dataclass(frozen=True, eq=False)
class Margins:
    """The answer on a scan, and how far the network must move to turn each of it.

    Attributes:
        costs: square of the least L2 change of the scan's logits that turns each entry.
        constant: of the network.
    """

    answer: Mask
    costs: Float[Tensor, "b k *s"]
    constant: float


@register("lipschitz", kind="certificate", paper="after Massena et al., 2025")
@dataclass(frozen=True)
class Lipschitz(Certificate):
    """The Dice of a Lipschitz network cannot fall below a bound within the radius: no noise, no chance, one pass.

    A change of L2 norm r moves all logits of a scan by at most L r together. Turning an entry costs the square of its
    logit, where classes exclude each other half the square of its lead, and all that are turned share (L r)^2. The
    bound is the least Dice that this buys, of right pixels lost and wrong pixels won, cheapest first (after Massena et
    al., arXiv 2512.06010). The model must be such a network, as `unet_lipschitz` is.

    Raises:
        InputError: the network is not a Lipschitz network.
    """

    quantity: ClassVar[str] = "Dice"
    needs_repeats: ClassVar[bool] = True
    promise: ClassVar[str] = (
        "Certified is the Dice of the plain model, for every change of the scan within the radius, without noise and "
        "without chance; abstained is the share of pixels that such a change could turn one by one."
    )

    @property
    def default_radii(self) -> tuple[float, ...]:
        return 0.05, 0.1, 0.25

    def passes(self, shape: tuple[int, ...], radii: Sequence[float]) -> int:
        return 1

    def require(self, radius: float, task: Task, shapes: Sequence[tuple[int, ...]]) -> None:
        """Any radius has a bound."""

    def require_model(self, model: SegModel) -> None:
        super().require_model(model)
        got = ""
        if model.black_box:
            got = "a black box"
        elif model.head == "probabilities":
            got = "a network that answers with probabilities"
        elif not isinstance(model.net, LipschitzNetwork):
            got = "one whose constant is not known"
        elif model.size is not None or not isinstance(model.normalise, torch.nn.Identity):
            got = "one whose input is resized or normalised"
        if got:
            raise InputError(
                f"expected a Lipschitz network for the certificate lipschitz, got {got}; train unet_lipschitz, or "
                "certify expected_dice"
            )

    @torch.no_grad()
    def observe(self, model: Model, scan: Batch, radii: Sequence[float], seed: int, batch_size: int) -> Margins:
        assert isinstance(model, SegModel)
        assert isinstance(model.net, LipschitzNetwork)
        parts = []
        for first in range(0, len(scan.cases), batch_size):
            part = slice(first, first + batch_size)
            parts.append(bind(model, Setting(model.task, scan.cases[part]))(scan.image[part]))
        log_odds = torch.cat(parts)
        leads = log_odds
        if model.task.exclusive:  # logits less a number that a pixel's classes share
            logits = functional.logsigmoid(log_odds.double())
            rivals = [torch.cat((logits[:, :k], logits[:, k + 1 :]), 1).amax(1) for k in range(logits.shape[1])]
            leads = logits - torch.stack(rivals, 1)
        margin = (leads.double().abs() - ROUNDING).clamp(min=0)
        costs = margin.square() / (2 if model.task.exclusive else 1)
        return Margins(model.decide(log_odds), costs, model.net.constant())

    def bounds(self, observed: Margins, scan: Batch, model: Model, radii: Sequence[float]) -> list[Bound]:
        clean = dice_of(counts(observed.answer, scan.target).sum(0), empty=1.0, dtype=torch.float64)
        result = []
        for radius in radii:
            budget = (observed.constant * radius) ** 2
            sure = observed.costs > budget
            yes = counts(sure & observed.answer, scan.target).sum(0)
            result += [
                Bound.of(
                    scan,
                    model.task.classes[k],
                    radius,
                    clean=clean[k].item(),
                    value=clean[k].item(),
                    low=self._least(observed, scan.target, k, budget),
                    abstained=1 - _all_sure(sure, model.task).double().mean().item(),
                    n_target=int(yes[k, 0]),
                    n_certified=int(yes[k, 1]),
                    hit_certified=int(yes[k, 2]),
                )
                for k in model.task.scored
            ]
        return result

    def certain(self, observed: Margins, radius: float, model: Model) -> Bool[Tensor, "b *s"]:
        return (observed.costs > (observed.constant * radius) ** 2).all(1)

    def _least(self, observed: Margins, target: Mask, k: int, budget: float) -> float:
        """The least Dice of a class."""
        answer, truth, costs = (part[:, k].cpu().numpy() for part in (observed.answer, target, observed.costs))
        missed, extra = int((truth & ~answer).sum()), int((answer & ~truth).sum())
        return least_dice(costs[answer & truth], costs[~answer & ~truth], missed, extra, budget)

    def attacked(self, model: Model, scan: Batch, radius: float, seed: int) -> Iterator[Image]:
        yield worst_within(model, scan, 0.0, radius, seed)

    def refuted(self, observed: Margins, elsewhere: Margins, scan: Batch, model: Model, radius: float) -> str:
        dice = dice_of(counts(elsewhere.answer, scan.target).sum(0), empty=1.0, dtype=torch.float64)
        for bound in self.bounds(observed, scan, model, [radius]):
            reached = dice[model.task.classes.index(bound.cls)].item()
            if reached < bound.low - 1e-12:
                return f"Dice of {bound.cls} {reached:.3f}, certified {bound.low:.3f}"
        return ""


def least_dice(
    right: NDArray[np.float64], absent: NDArray[np.float64], missed: int, extra: int, budget: float
) -> float:
    """The least Dice that a budget buys, by losing right pixels of a class and winning wrong ones.

    Args:
        right: cost of each pixel that is rightly of the class.
        absent: cost of each pixel that is rightly not of it.
        missed: pixels of the class that are not said to be of it.
        extra: pixels that are wrongly said to be of it.

    >>> costs = np.array([4.0, 1.0]), np.array([1.0, 9.0])
    >>> [round(least_dice(*costs, 0, 0, r**2), 4) for r in (0.9, 1.0, 1.5, 2.3)]
    [1.0, 0.6667, 0.5, 0.0]
    """
    spent = np.concatenate([[0.0], np.cumsum(np.sort(right))])
    lost = np.flatnonzero(spent <= budget)
    won = np.searchsorted(np.cumsum(np.sort(absent)), budget - spent[lost], side="right")
    hit = len(right) - lost
    pixels = 2 * hit + missed + lost + extra + won
    return float(np.where(pixels > 0, 2 * hit / np.maximum(pixels, 1), 1.0).min())


def _all_sure(sure: Mask, task: Task) -> Bool[Tensor, "b h *s"]:
    """Entries that no change within the radius turns: of each pixel where classes exclude each other."""
    return sure.all(1, keepdim=True) if task.exclusive else sure
